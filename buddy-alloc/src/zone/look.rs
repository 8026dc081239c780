//! Looking for frames by place: what a migration needs to know.

use super::{GivePath, State, Zone};
use crate::frame::{Frame, FrameCount, FrameRange};

impl Zone<'_> {
    /// The first free frames inside `within`, clipped to it: (a part of) one block.
    ///
    /// Regions without a free frame cost one word each, others one look per block.
    #[must_use]
    pub fn next_free(&self, within: FrameRange) -> Option<FrameRange> {
        let next_region = |region| self.regions.next_free(region);
        self.look(within, next_region, |state| {
            (state == State::Free).then_some(())
        })
        .map(|(range, ())| range)
    }

    /// The first ballooned frames inside `within` that share a path, clipped to it: (a part of)
    /// one block.
    ///
    /// Regions without ballooned frames are skipped 64 words at a time.
    #[must_use]
    pub fn next_ballooned(&self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        let next_region = |region| {
            let found = self.given.iter().filter_map(|given| given.next(region));
            found.min()
        };
        self.look(within, next_region, |state| match state {
            State::Ballooned(path) => Some(path),
            _ => None,
        })
    }

    /// The first block inside `within` that `wanted` wants, region by region.
    fn look<R>(
        &self,
        within: FrameRange,
        next_region: impl Fn(u64) -> Option<u64>,
        wanted: impl Fn(State) -> Option<R>,
    ) -> Option<(FrameRange, R)> {
        let order = self.regions.order();
        let (low, high) = (self.span.start().get(), self.span.end().get());
        let mut at = within.start().get().max(low);
        let end = within.end().get().min(high);
        while at < end {
            let region = next_region(at >> order)?;
            at = at.max(region << order);
            let region_end = end.min((region + 1) << order);
            while at < region_end {
                let Some(found) = self.state(Frame::new(at)) else {
                    at += 1;
                    continue;
                };
                let block_end = found.block.end().get().min(end);
                if let Some(what) = wanted(found.state) {
                    let count = FrameCount::new(block_end - at);
                    return Some((FrameRange::new(Frame::new(at), count), what));
                }
                at = block_end;
            }
        }
        None
    }
}
