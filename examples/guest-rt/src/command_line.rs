//! The kernel command line: `key=value` words, separated by blanks.

use heapless::String;

/// What the boot loader passed, kept for the guest's whole life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    text: String<{ Self::CAPACITY }>,
    cut: bool,
}

impl CommandLine {
    /// Bytes kept; the rest is [cut](Self::is_cut).
    pub const CAPACITY: usize = 1024;

    /// Takes over what the boot loader passed; bytes that are not ASCII read
    /// as `?`.
    pub fn from_bytes(bytes: impl IntoIterator<Item = u8>) -> Self {
        let mut line = Self::default();
        for byte in bytes {
            let shown = if byte.is_ascii() {
                char::from(byte)
            } else {
                '?'
            };
            if line.text.push(shown).is_err() {
                line.cut = true;
                break;
            }
        }
        line
    }

    /// The whole line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the boot loader passed more than fits.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }

    /// The value of `key`; the last one wins, as on any command line.
    #[must_use]
    pub fn get<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.values(key).next_back()
    }

    /// All values of `key`, in order.
    #[must_use]
    pub fn values<'a>(&'a self, key: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.text
            .split_ascii_whitespace()
            .filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CommandLine {
        CommandLine::from_bytes(text.bytes())
    }

    #[test]
    fn finds_values_by_whole_key() {
        let line = line("  token=ab-1 path=pfn keep= x=token=9 ");
        assert_eq!(line.get("token"), Some("ab-1"));
        assert_eq!(line.get("path"), Some("pfn"));
        assert_eq!(line.get("keep"), Some(""));
        assert_eq!(line.get("tok"), None);
        assert_eq!(line.get("fill"), None);
    }

    #[test]
    fn the_last_value_wins() {
        assert_eq!(line("fill=all fill=none").get("fill"), Some("none"));
    }

    #[test]
    fn overlong_and_foreign_bytes_are_harmless() {
        let long = CommandLine::from_bytes(core::iter::repeat_n(0xff, 5000));
        assert!(long.is_cut());
        assert_eq!(long.as_str().len(), CommandLine::CAPACITY);
        assert!(long.as_str().chars().all(|c| c == '?'));
        assert!(!line("a=b").is_cut());
    }
}
