//! What happened, for a person to read.

/// Where the lines go.
#[derive(Debug)]
pub(crate) enum Trace {
    /// Nowhere.
    Off,
    /// Each is printed at once.
    Printed(usize),
    /// The last ones are kept, after so many in all.
    Kept(usize, Vec<String>),
}

impl Trace {
    /// Lines that are kept.
    const LAST: usize = 40;

    pub(crate) const fn kept() -> Self {
        Self::Kept(0, Vec::new())
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        match self {
            Self::Off => {}
            Self::Printed(line) => {
                *line += 1;
                eprintln!("{line:>5}  {}", text());
            }
            Self::Kept(line, lines) => {
                *line += 1;
                if lines.len() == Self::LAST {
                    lines.remove(0);
                }
                lines.push(format!("{line:>5}  {}", text()));
            }
        }
    }

    /// Prints what was kept.
    pub(crate) fn print(&self) {
        let Self::Kept(_, lines) = self else { return };
        lines.iter().for_each(|line| eprintln!("{line}"));
    }
}
