//! Where ranges of frames go, and how neighbours become one range on the way.

use super::alloc::Preference;
use crate::frame::{FrameCount, FrameRange};
#[cfg(doc)]
use crate::zone::Zone;

/// Where [`Zone::take`], [`Zone::allocate_batch`] and [`Zone::recall`] lay ranges.
pub trait RangeSink {
    /// Most frames the next push may have; zero to stop.
    fn wanted(&self) -> FrameCount;

    /// Receives a range of at most [`wanted`](Self::wanted) frames, `populated` of which the host
    /// backs with memory. From now on they are the receiver's.
    fn push(&mut self, range: FrameRange, populated: FrameCount);
}

/// A [`RangeSink`] over a slice.
#[derive(Debug)]
pub struct RangeBuf<'a> {
    ranges: &'a mut [FrameRange],
    len: usize,
    wanted: u64,
    populated: u64,
}

impl<'a> RangeBuf<'a> {
    /// A sink for `wanted` frames in at most `ranges.len()` ranges.
    #[must_use]
    pub const fn new(ranges: &'a mut [FrameRange], wanted: FrameCount) -> Self {
        Self {
            ranges,
            len: 0,
            wanted: wanted.get(),
            populated: 0,
        }
    }

    /// The ranges received.
    #[must_use]
    pub fn ranges(&self) -> &[FrameRange] {
        self.ranges.get(..self.len).unwrap_or_default()
    }

    /// How many of the received frames are populated.
    #[must_use]
    pub const fn populated(&self) -> FrameCount {
        FrameCount::new(self.populated)
    }
}

impl RangeSink for RangeBuf<'_> {
    fn wanted(&self) -> FrameCount {
        FrameCount::new(if self.len < self.ranges.len() {
            self.wanted
        } else {
            0
        })
    }

    fn push(&mut self, range: FrameRange, populated: FrameCount) {
        if let Some(place) = self.ranges.get_mut(self.len) {
            *place = range;
            self.len += 1;
            self.wanted = self.wanted.saturating_sub(range.count().get());
            self.populated += populated.get();
        }
    }
}

/// Takes pieces of free blocks and merges neighbours before they reach the sink.
pub(super) struct Taker<'s, S> {
    pub(super) sink: &'s mut S,
    pub(super) unit: u32,
    pub(super) below: u64,
    /// Which units count.
    pub(super) class: Preference,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) populated: u64,
}

impl<'s, S: RangeSink> Taker<'s, S> {
    /// Takes nothing yet.
    pub(super) const fn new(sink: &'s mut S, unit: u32, below: u64, class: Preference) -> Self {
        Self {
            sink,
            unit,
            below,
            class,
            start: 0,
            end: 0,
            populated: 0,
        }
    }

    pub(super) fn flush(&mut self) {
        if self.start < self.end {
            let populated = FrameCount::new(self.populated);
            self.sink
                .push(FrameRange::raw(self.start, self.end), populated);
        }
        (self.start, self.end, self.populated) = (0, 0, 0);
    }

    /// How many frames may follow at `at`, in whole units.
    pub(super) fn room(&mut self, at: u64) -> u64 {
        let mask = !((1 << self.unit) - 1);
        if self.start < self.end {
            let left = self
                .sink
                .wanted()
                .get()
                .saturating_sub(self.end - self.start)
                & mask;
            if at == self.end && left != 0 {
                return left;
            }
            self.flush();
        }
        self.sink.wanted().get() & mask
    }

    pub(super) fn add(&mut self, start: u64, end: u64, populated: u64) {
        if self.start == self.end {
            self.start = start;
        }
        self.end = end;
        self.populated += populated;
    }
}
