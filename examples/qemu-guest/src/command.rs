//! What the host can tell a running guest to do.

/// A line on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Check the kept frames.
    Verify,
    /// Print the counters.
    Stats,
    /// Print the counters of what runs beside the balloon.
    Beside,
    /// Take all free frames and write the pattern to them.
    Fill,
    /// Free all but the share to keep.
    Free,
    /// End with success.
    Quit,
    /// Panic, to prove that such a run is seen to fail.
    Panic,
}

impl Command {
    /// The command on this line, if it is one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        Some(match line.trim_ascii() {
            "verify" => Self::Verify,
            "stats" => Self::Stats,
            "beside" => Self::Beside,
            "fill" => Self::Fill,
            "free" => Self::Free,
            "quit" => Self::Quit,
            "panic" => Self::Panic,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_are_commands() {
        assert_eq!(Command::parse(" quit "), Some(Command::Quit));
        assert_eq!(Command::parse("quit now"), None);
        assert_eq!(Command::parse("Quit"), None);
        assert_eq!(Command::parse(""), None);
    }
}
