//! Looking for frames by place: what a migration needs to know.

use super::Zone;
use super::balloon::Via;
use crate::frame::FrameRange;
use crate::node::{Kind, Slot};

impl Zone<'_> {
    /// The first free frames inside `within`, clipped to it: (a part of) one block or region.
    ///
    /// Regions without a free frame cost one word each, others one look per block.
    #[must_use]
    pub fn next_free(&self, within: FrameRange) -> Option<FrameRange> {
        let next_region = |region| self.regions.next_free(region);
        let granule = 1 << self.regions.order();
        let all = |region| (self.regions.counts(region).free == granule).then_some(());
        self.next_in(within, next_region, all, |slot| {
            matches!(slot, Slot::Free(_)).then_some(())
        })
        .map(|(range, ())| range)
    }

    /// The first ballooned frames inside `within` that share a path, clipped to it: (a part of)
    /// one block or region.
    ///
    /// Regions without ballooned frames are skipped 64 words at a time.
    #[must_use]
    pub fn next_ballooned(&self, within: FrameRange) -> Option<(FrameRange, Via)> {
        let [told, bulk] = &self.given;
        let next_region = |region| match told.next(region) {
            Some(found) if found == region => Some(found),
            found => [found, bulk.next(region)].into_iter().flatten().min(),
        };
        let all = |region| {
            let paths = [(told, Via::Inflate), (bulk, Via::Bulk)];
            let whole = paths
                .into_iter()
                .find(|(given, _)| given.are_all(region, 0));
            whole.map(|(_, via)| via)
        };
        self.next_in(within, next_region, all, |slot| match slot {
            Slot::Held(Kind::Inflate, _) => Some(Via::Inflate),
            Slot::Held(Kind::Bulk, _) => Some(Via::Bulk),
            _ => None,
        })
    }

    /// The first block inside `within` that `wanted` wants, region by region; of a region that is
    /// `all` of one kind what lies inside.
    fn next_in<R>(
        &self,
        within: FrameRange,
        next_region: impl Fn(u64) -> Option<u64>,
        all: impl Fn(u64) -> Option<R>,
        wanted: impl Fn(Slot) -> Option<R>,
    ) -> Option<(FrameRange, R)> {
        let order = self.regions.order();
        let (low, high) = (self.span.start().get(), self.span.end().get());
        let mut at = within.start().get().max(low);
        let end = within.end().get().min(high);
        while at < end {
            let region = next_region(at >> order)?;
            at = at.max(region << order);
            let region_end = end.min((region + 1) << order);
            if let Some(what) = all(region).filter(|_| at < region_end) {
                return Some((FrameRange::raw(at, region_end), what));
            }
            let start = at;
            while at < region_end {
                let Some((head, order, slot)) = self.next_block(start, at) else {
                    at += 1;
                    continue;
                };
                let block_end = (head + (1 << order)).min(end);
                if let Some(what) = wanted(slot) {
                    return Some((FrameRange::raw(at, block_end), what));
                }
                at = block_end;
            }
        }
        None
    }
}
