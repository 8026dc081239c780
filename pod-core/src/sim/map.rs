//! Sets of frames as bits: the one place that uses `bitvec`.
//!
//! Its element-wise `set` is undefined under Miri's stacked borrows and clean under tree borrows,
//! so tests that come through here run under the latter only.

use alloc::vec::Vec;

use bitvec::vec::BitVec;

/// A set of small numbers.
#[derive(Clone, Debug)]
pub(crate) struct Map(BitVec<usize>);

impl Map {
    pub(crate) fn new(len: usize) -> Self {
        Self(BitVec::repeat(false, len))
    }

    pub(crate) fn has(&self, at: u64) -> bool {
        usize::try_from(at)
            .ok()
            .and_then(|i| self.0.get(i).as_deref().copied())
            .unwrap_or(false)
    }

    /// Sets a run; whether all of it was different before.
    pub(crate) fn put(&mut self, at: u64, count: u64, value: bool) -> bool {
        let range = at as usize..(at + count) as usize;
        let slice = &mut self.0[range];
        let changed = if value { slice.not_any() } else { slice.all() };
        slice.fill(value);
        changed
    }

    /// Whether any bit of the run is set.
    pub(crate) fn any(&self, at: u64, count: u64) -> bool {
        let end = ((at + count) as usize).min(self.0.len());
        let start = (at as usize).min(end);
        self.0[start..end].any()
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.count_ones() as u64
    }

    /// First aligned run of `count` clear bits at or after `from`, in steps of `count`.
    pub(crate) fn clear_run(&self, count: usize, from: usize) -> Option<u64> {
        let from = from.div_ceil(count) * count;
        (from..self.0.len().saturating_sub(count - 1))
            .step_by(count)
            .find(|i| self.0[*i..*i + count].not_any())
            .map(|i| i as u64)
    }

    pub(crate) fn ones(&self) -> Vec<u64> {
        self.0.iter_ones().map(|i| i as u64).collect()
    }
}
