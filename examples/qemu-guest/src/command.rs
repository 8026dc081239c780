//! What the host can tell a running guest to do.

/// A line on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Check the kept frames.
    Verify,
    /// Print the counters.
    Stats,
    /// Print what was agreed on with the device.
    Device,
    /// Print the counters of what runs beside the balloon.
    Services,
    /// Take all free frames and write the pattern to them.
    Fill,
    /// Free all but the share to keep.
    Free,
    /// Take all free frames, find that so many more are needed, and see what the
    /// balloon can do.
    Need(u64),
    /// Let the device go that the host wants out of its slot; the driver is not
    /// told.
    Eject,
    /// End with success.
    Quit,
    /// Panic, to prove that such a run is seen to fail.
    Panic,
}

impl Command {
    /// The command on this line, if it is one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_ascii();
        if let Some(frames) = line.strip_prefix("need ") {
            return frames.parse().ok().map(Self::Need);
        }
        Some(match line {
            "verify" => Self::Verify,
            "stats" => Self::Stats,
            "device" => Self::Device,
            "services" => Self::Services,
            "fill" => Self::Fill,
            "free" => Self::Free,
            "eject" => Self::Eject,
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
        assert_eq!(Command::parse("need 12\r"), Some(Command::Need(12)));
        assert_eq!(Command::parse("need more"), None);
        assert_eq!(Command::parse("quit now"), None);
        assert_eq!(Command::parse("Quit"), None);
        assert_eq!(Command::parse(""), None);
    }
}
