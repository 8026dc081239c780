//! Lines of text from single bytes.

use heapless::{String, Vec};

/// Collects bytes of a console until a line is complete.
///
/// Lines longer than `N` bytes are dropped whole: half a command must not be
/// taken for another one.
#[derive(Debug, Default)]
pub struct LineBuffer<const N: usize> {
    bytes: Vec<u8, N>,
    overlong: bool,
}

impl<const N: usize> LineBuffer<N> {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            overlong: false,
        }
    }

    /// Adds a byte; returns the line it completed, without its end.
    ///
    /// Either of CR and LF ends a line; empty lines are passed over.
    pub fn push(&mut self, byte: u8) -> Option<String<N>> {
        if byte != b'\n' && byte != b'\r' {
            self.overlong |= self.bytes.push(byte).is_err();
            return None;
        }
        let bytes = core::mem::take(&mut self.bytes);
        let overlong = core::mem::take(&mut self.overlong);
        if bytes.is_empty() || overlong {
            return None;
        }
        String::from_utf8(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String as StdString, ToString};
    use alloc::vec::Vec as StdVec;

    fn feed(text: &[u8]) -> StdVec<StdString> {
        let mut buffer = LineBuffer::<8>::new();
        text.iter()
            .filter_map(|byte| buffer.push(*byte))
            .map(|line| line.to_string())
            .collect()
    }

    #[test]
    fn lines_end_with_cr_or_lf() {
        assert_eq!(feed(b"verify\r\nquit\nst"), ["verify", "quit"]);
    }

    #[test]
    fn overlong_and_broken_lines_are_dropped_whole() {
        assert_eq!(feed(b"12345678\n"), ["12345678"]);
        assert_eq!(feed(b"123456789quit\nquit\n"), ["quit"]);
        assert_eq!(feed(b"\xff\xfe\nquit\n"), ["quit"]);
    }
}
