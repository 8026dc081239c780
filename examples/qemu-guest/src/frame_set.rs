//! Which frames the workload holds: a bit each, beside the allocator's account,
//! so that the two can be compared.

use core::fmt;

use buddy_alloc::{Frame, FrameCount, FrameRange};

/// The caller's words do not cover the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall;

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too few words for a bit per frame")
    }
}

impl core::error::Error for TooSmall {}

/// A set of frames within a span.
#[derive(Debug)]
pub struct FrameSet<'m> {
    span: FrameRange,
    words: &'m mut [u64],
    count: u64,
}

const BITS: u64 = 64;

impl<'m> FrameSet<'m> {
    /// Words needed for a span.
    #[must_use]
    pub const fn words(span: FrameRange) -> u64 {
        span.count().get().div_ceil(BITS)
    }

    /// The empty set, in `words`.
    ///
    /// # Errors
    /// When they are too few.
    pub fn new(span: FrameRange, words: &'m mut [u64]) -> Result<Self, TooSmall> {
        if (words.len() as u64) < Self::words(span) {
            return Err(TooSmall);
        }
        words.fill(0);
        Ok(Self {
            span,
            words,
            count: 0,
        })
    }

    /// Frames in the set.
    #[must_use]
    pub const fn count(&self) -> FrameCount {
        FrameCount::new(self.count)
    }

    /// Adds the frames of `range`, as far as they lie in the span.
    pub fn insert(&mut self, range: FrameRange) {
        self.change(range, |word, mask| word | mask);
    }

    /// Removes the frames of `range`.
    pub fn remove(&mut self, range: FrameRange) {
        self.change(range, |word, mask| word & !mask);
    }

    fn change(&mut self, range: FrameRange, to: impl Fn(u64, u64) -> u64) {
        let (mut at, end) = (self.bit(range.start()), self.bit(range.end()));
        while at < end {
            let (low, stop) = (at % BITS, end.min(at - at % BITS + BITS));
            let mask = (u64::MAX >> (BITS - (stop - at))) << low;
            if let Some(word) = index(at).and_then(|index| self.words.get_mut(index)) {
                let new = to(*word, mask);
                self.count += u64::from(new.count_ones());
                self.count -= u64::from(word.count_ones());
                *word = new;
            }
            at = stop;
        }
    }

    /// The first run of frames in the set at or behind `from`.
    #[must_use]
    pub fn next_run(&self, from: Frame) -> Option<FrameRange> {
        let start = self.find(self.bit(from), |word| word)?;
        let end = self
            .find(start, |word| !word)
            .unwrap_or(self.span.count().get());
        let base = self.span.start().get();
        Some(FrameRange::between(
            Frame::new(base + start),
            Frame::new(base + end),
        ))
    }

    /// The runs of the set, rising.
    pub fn runs(&self) -> impl Iterator<Item = FrameRange> + '_ {
        let mut from = self.span.start();
        core::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.end();
            Some(run)
        })
    }

    /// The first bit at or behind `from` that is set in `view` of its word.
    fn find(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let mut mask = u64::MAX << (from % BITS);
        for (number, word) in (from / BITS..).zip(self.words.get(index(from)?..)?) {
            let found = view(*word) & mask;
            if found != 0 {
                let bit = number * BITS + u64::from(found.trailing_zeros());
                return Some(bit).filter(|bit| *bit < self.span.count().get());
            }
            mask = u64::MAX;
        }
        None
    }

    /// The bit of a frame, moved into the span.
    fn bit(&self, frame: Frame) -> u64 {
        let offset = frame.get().saturating_sub(self.span.start().get());
        offset.min(self.span.count().get())
    }
}

fn index(bit: u64) -> Option<usize> {
    usize::try_from(bit / BITS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use alloc::vec::Vec;

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange::between(Frame::new(start), Frame::new(end))
    }

    #[test]
    fn agrees_with_a_set_of_numbers() {
        let span = range(100, 100 + 200);
        let mut words = vec![u64::MAX; 4];
        let mut set = FrameSet::new(span, &mut words).unwrap();
        let mut model = BTreeSet::new();
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let mut random = |below: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % below
            };
            let start = 100 + random(201);
            let end = (start + random(90)).min(300);
            if random(2) == 0 {
                set.insert(range(start, end));
                model.extend(start..end);
            } else {
                set.remove(range(start, end));
                model.retain(|frame| !(start..end).contains(frame));
            }
            assert_eq!(set.count().get(), model.len() as u64);
            let frames: Vec<u64> = set
                .runs()
                .flat_map(|run| run.start().get()..run.end().get())
                .collect();
            assert_eq!(frames, model.iter().copied().collect::<Vec<_>>());
            let starts: Vec<u64> = set.runs().map(|run| run.start().get()).collect();
            assert!(
                starts.iter().all(|start| !model.contains(&(start - 1))),
                "runs are maximal"
            );
        }
    }

    #[test]
    fn frames_outside_the_span_are_left_out() {
        let mut words = vec![0; 1];
        let mut set = FrameSet::new(range(10, 20), &mut words).unwrap();
        set.insert(range(0, 1000));
        assert_eq!(set.runs().collect::<Vec<_>>(), [range(10, 20)]);
        assert_eq!(set.next_run(Frame::new(20)), None);
    }

    #[test]
    fn too_few_words() {
        let mut words = vec![0; 1];
        assert_eq!(
            FrameSet::new(range(0, 65), &mut words).err(),
            Some(TooSmall)
        );
    }
}
