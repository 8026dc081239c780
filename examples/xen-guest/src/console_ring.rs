//! The console of a domain: two byte streams in a page shared with the first
//! domain's console daemon.

use transport_xen::SharedPage;

const INPUT: usize = 0;
const INPUT_BYTES: u32 = 1024;
const OUTPUT: usize = 1024;
const OUTPUT_BYTES: u32 = 2048;
const INPUT_CONSUMER: usize = 3072;
const INPUT_PRODUCER: usize = 3076;
const OUTPUT_CONSUMER: usize = 3080;
const OUTPUT_PRODUCER: usize = 3084;

/// The guest's end of the page. Own indices are kept here, the other side's
/// are never believed.
#[derive(Debug)]
pub struct ConsoleRing<P> {
    page: P,
    written: u32,
    read: u32,
}

impl<P: SharedPage> ConsoleRing<P> {
    /// Goes on where the page stands.
    pub fn new(page: P) -> Self {
        let (written, read) = (page.load(OUTPUT_PRODUCER), page.load(INPUT_CONSUMER));
        Self {
            page,
            written,
            read,
        }
    }

    /// Writes what there is room for; returns the bytes left over.
    pub fn write<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let used = self.written.wrapping_sub(self.page.load(OUTPUT_CONSUMER));
        // A reader that claims more than was written gets nothing.
        let room = OUTPUT_BYTES.saturating_sub(used) as usize;
        let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        for byte in now {
            let at = OUTPUT + (self.written % OUTPUT_BYTES) as usize;
            self.page.write(at, &[*byte]);
            self.written = self.written.wrapping_add(1);
        }
        self.page.store(OUTPUT_PRODUCER, self.written);
        later
    }

    /// Whether the other side has taken everything written.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.page.load(OUTPUT_CONSUMER) == self.written
    }

    /// The bytes of input there are, at most what the ring holds: the other side
    /// may write for ever.
    pub fn input(&mut self) -> impl Iterator<Item = u8> {
        (0..INPUT_BYTES).map_while(|_| self.read())
    }

    fn read(&mut self) -> Option<u8> {
        let there = self.page.load(INPUT_PRODUCER).wrapping_sub(self.read);
        if there == 0 || there > INPUT_BYTES {
            return None;
        }
        let mut byte = [0];
        let at = INPUT + (self.read % INPUT_BYTES) as usize;
        self.page.read(at, &mut byte);
        self.read = self.read.wrapping_add(1);
        self.page.store(INPUT_CONSUMER, self.read);
        let [byte] = byte;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use transport_xen::testing::FakePage;

    #[test]
    fn output_waits_for_room() {
        let mut page = FakePage::new();
        let mut ring = ConsoleRing::new(page.clone());
        let text: Vec<u8> = (0..3000u32).map(|n| n.to_le_bytes()[0]).collect();
        let left = ring.write(&text);
        assert_eq!(left.len(), 3000 - 2048);
        assert!(!ring.is_drained());
        page.store(OUTPUT_CONSUMER, 2048);
        assert!(ring.write(left).is_empty());
        page.store(OUTPUT_CONSUMER, 3000);
        assert!(ring.is_drained());
        let mut byte = [0];
        page.read(OUTPUT + 2999 % 2048, &mut byte);
        assert_eq!(byte[0], text[2999]);
    }

    #[test]
    fn input_comes_in_order() {
        let mut page = FakePage::new();
        let mut ring = ConsoleRing::new(page.clone());
        assert_eq!(ring.input().next(), None);
        page.write(INPUT, b"ab");
        page.store(INPUT_PRODUCER, 2);
        assert_eq!(ring.input().collect::<Vec<_>>(), b"ab");
    }

    #[test]
    fn a_writer_that_never_stops_is_heard_for_one_ring() {
        let mut page = FakePage::new();
        let mut ring = ConsoleRing::new(page.clone());
        page.store(INPUT_PRODUCER, 1024);
        let heard = ring.input().zip(1u32..).map(|(_, n)| {
            page.store(INPUT_PRODUCER, 1024 + n);
            n
        });
        assert_eq!(heard.last(), Some(1024));
    }

    #[test]
    fn wild_indices_stop_the_ring_and_nothing_else() {
        let mut page = FakePage::new();
        let mut ring = ConsoleRing::new(page.clone());
        page.store(INPUT_PRODUCER, 5000);
        assert_eq!(ring.input().next(), None);
        page.store(OUTPUT_CONSUMER, 77);
        assert_eq!(ring.write(b"x"), b"x");
    }
}
