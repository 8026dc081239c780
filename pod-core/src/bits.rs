//! 512 bits with searches for aligned runs: which parts of a block are in the cache.

use crate::Order;

/// Bit 0 of every aligned group of 2^k bits.
const STARTS: [u64; 7] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// Bits of one block; the unit of a bit is the level's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bits([u64; 8]);

impl Bits {
    pub(crate) const EMPTY: Self = Self([0; 8]);

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// Words of an aligned run, with the mask of its bits in each.
    fn run(start: u16, order: Order) -> (usize, usize, u64) {
        let word = usize::from(start >> 6);
        match order.get() {
            0..6 => (word, 1, ((1 << (1 << order.get())) - 1) << (start & 63)),
            large => (word, 1 << (large.min(9) - 6), u64::MAX),
        }
    }

    pub(crate) fn insert(&mut self, start: u16, order: Order) {
        let (first, words, mask) = Self::run(start, order);
        for w in self.0.iter_mut().skip(first).take(words) {
            *w |= mask;
        }
    }

    pub(crate) fn remove(&mut self, start: u16, order: Order) {
        let (first, words, mask) = Self::run(start, order);
        for w in self.0.iter_mut().skip(first).take(words) {
            *w &= !mask;
        }
    }

    /// Whether every bit of the run is set.
    pub(crate) fn covers(&self, start: u16, order: Order) -> bool {
        let (first, words, mask) = Self::run(start, order);
        self.0
            .iter()
            .skip(first)
            .take(words)
            .all(|w| w & mask == mask)
    }

    /// Whether any bit of the run is set.
    pub(crate) fn touches(&self, start: u16, order: Order) -> bool {
        let (first, words, mask) = Self::run(start, order);
        self.0.iter().skip(first).take(words).any(|w| w & mask != 0)
    }

    /// Starts of the aligned runs of 2^order (at most 64) set bits in a word.
    fn runs_in(word: u64, order: u8) -> u64 {
        let mut runs = word;
        for (k, starts) in (0..order).zip(STARTS.iter().skip(1)) {
            runs &= (runs >> (1 << k)) & starts;
        }
        runs
    }

    /// The lowest aligned run of set bits of this order.
    pub(crate) fn find(&self, order: Order) -> Option<u16> {
        if order.get() <= 6 {
            return self.0.iter().zip(0_u16..).find_map(|(&w, i)| {
                let runs = Self::runs_in(w, order.get());
                (runs != 0).then(|| i * 64 + u16::try_from(runs.trailing_zeros()).unwrap_or(0))
            });
        }
        let words = 1 << (order.get().min(9) - 6);
        let group = self
            .0
            .chunks(words)
            .position(|g| g.iter().all(|&w| w == u64::MAX))?;
        u16::try_from(group * words * 64).ok()
    }

    /// Order of the largest aligned run of set bits.
    pub(crate) fn best(&self) -> Option<Order> {
        let mut found = None;
        for order in 0..=9 {
            let order = Order::clamped(order);
            if self.find(order).is_none() {
                break;
            }
            found = Some(order);
        }
        found
    }

    /// Positions of the set bits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().zip(0_u16..).flat_map(|(&w, i)| {
            (0..64_u16)
                .filter(move |b| w >> b & 1 == 1)
                .map(move |b| i * 64 + b)
        })
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers below 512")]
mod tests {
    use super::*;

    /// Every order and start against the plain definition.
    #[test]
    fn runs_agree_with_single_bits() {
        let mut seed = 7_u64;
        let rounds = if cfg!(miri) { 39..40 } else { 0..200 };
        for round in rounds {
            let mut bits = Bits::EMPTY;
            let mut plain = [false; 512];
            for _ in 0..(round % 40) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let order = (seed >> 40) % 10;
                let start = ((seed >> 20) % 512) >> order << order;
                let value = seed >> 63 == 0;
                let o = Order::new(order as u8).unwrap();
                if value {
                    bits.insert(start as u16, o)
                } else {
                    bits.remove(start as u16, o)
                }
                plain[start as usize..][..1 << order].fill(value);
            }
            assert_eq!(bits.count() as usize, plain.iter().filter(|b| **b).count());
            let mut best = None;
            for order in 0..=9_u8 {
                let o = Order::new(order).unwrap();
                let first = plain.chunks(1 << order).position(|c| c.iter().all(|b| *b));
                assert_eq!(bits.find(o).map(usize::from), first.map(|p| p << order));
                if first.is_some() {
                    best = Some(o);
                }
                for (i, c) in plain.chunks(1 << order).enumerate() {
                    let start = (i << order) as u16;
                    assert_eq!(bits.covers(start, o), c.iter().all(|b| *b));
                    assert_eq!(bits.touches(start, o), c.iter().any(|b| *b));
                }
            }
            assert_eq!(bits.best(), best);
            assert!(bits.iter().eq((0..512).filter(|i| plain[usize::from(*i)])));
        }
    }
}
