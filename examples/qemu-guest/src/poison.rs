//! A kernel that relies on what its free frames hold.

use buddy_alloc::{Frame, FrameCount, FrameRange, Zone};

use crate::workload::{Check, Damage, Ram};

/// What every free frame is full of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poison(u64);

impl Poison {
    /// `value`, repeated.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        let [a, b, c, d] = value.to_ne_bytes();
        Self(u64::from_ne_bytes([a, b, c, d, a, b, c, d]))
    }

    /// Writes it to a frame that is about to be free.
    pub fn fill(self, frame: Frame, ram: &mut (impl Ram + ?Sized)) {
        ram.fill(frame, self.0);
    }

    /// Writes it to every free frame.
    pub fn fill_free(self, zone: &Zone<'_>, ram: &mut impl Ram) {
        for frame in free_frames(zone) {
            self.fill(frame, ram);
        }
    }

    /// Checks every free frame; the number of them.
    ///
    /// # Errors
    /// When some hold something else.
    pub fn check_free(self, zone: &Zone<'_>, ram: &impl Ram) -> Result<FrameCount, Damage> {
        let mut check = Check::default();
        free_frames(zone).for_each(|frame| check.add(frame, ram.holds(frame, self.0)));
        check.verdict()
    }
}

/// Every free frame of an allocator.
pub fn free_frames(zone: &Zone<'_>) -> impl Iterator<Item = Frame> {
    let mut left = zone.span();
    core::iter::from_fn(move || {
        let found = zone.next_free(left)?;
        left = FrameRange::between(found.end(), left.end());
        Some(found)
    })
    .flat_map(|run| (run.start().get()..run.end().get()).map(Frame::new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::vec;
    use buddy_alloc::{Backing, Config, Order, Preference};

    #[derive(Default)]
    struct Fake(BTreeMap<u64, u64>);

    impl Ram for Fake {
        fn fill(&mut self, frame: Frame, word: u64) {
            self.0.insert(frame.get(), word);
        }

        fn holds(&self, frame: Frame, word: u64) -> bool {
            self.0.get(&frame.get()) == Some(&word)
        }
    }

    #[test]
    fn all_free_frames_and_no_others_hold_it() {
        let span = FrameRange::between(Frame::new(16), Frame::new(1024));
        let mut metadata = vec![0; Config::new().metadata_words(span)];
        let mut zone = Zone::new(span, Config::new(), &mut metadata).unwrap();
        zone.add_range(span, Backing::Populated).unwrap();
        let mut ram = Fake::default();
        let used = zone.allocate(Order::MIB_2, Preference::Any).unwrap();

        let poison = Poison::new(0x1234_5678);
        poison.fill_free(&zone, &mut ram);
        assert!(!ram.0.contains_key(&used.get()));
        assert_eq!(ram.0.len(), 1008 - 512);
        assert_eq!(poison.check_free(&zone, &ram), Ok(FrameCount::new(496)));
        assert!(ram.0.values().all(|word| *word == 0x1234_5678_1234_5678));

        ram.fill(Frame::new(17), 0);
        let damage = poison.check_free(&zone, &ram).unwrap_err();
        assert_eq!((damage.bad, damage.of, damage.first.get()), (1, 496, 17));
    }
}
