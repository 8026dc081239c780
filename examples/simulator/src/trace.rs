//! What happened, for a person to read.

/// Prints each event if asked to.
#[derive(Debug)]
pub(crate) struct Trace {
    on: bool,
    line: usize,
}

impl Trace {
    pub(crate) const fn new(on: bool) -> Self {
        Self { on, line: 0 }
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.on {
            self.line += 1;
            eprintln!("{:>5}  {}", self.line, text());
        }
    }
}
