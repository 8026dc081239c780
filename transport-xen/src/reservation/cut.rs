//! Cutting runs into extents.

use balloon_core::{FrameCount, FrameRange, Order, Pfn};

/// 64 KiB: gives most of what larger extents save on the way out.
pub(super) const MEDIUM: Order = match Order::new(4) {
    Some(order) => order,
    None => Order::FRAME,
};

/// Shorter rests go frame by frame: another order is another hypercall.
const WORTH: u64 = 64;

/// Whether a range begins with a whole superpage.
pub(super) fn is_whole(range: FrameRange) -> bool {
    fits(range, Order::SUPERPAGE)
}

fn fits(range: FrameRange, order: Order) -> bool {
    range.start().is_aligned(order) && range.count() >= order.frames()
}

/// Where the extents of a range begin.
pub(super) fn starts(range: FrameRange, order: Order) -> impl Iterator<Item = Pfn> + Clone {
    let (start, size) = (range.start().get(), order.frames().get());
    (0..range.count().get() / size).map(move |n| Pfn::new(start + n * size))
}

/// The first extent of a range, and what is left; extents up to order `singly` go
/// frame by frame.
pub(super) fn next_extent(range: FrameRange, singly: Order) -> (Order, Option<FrameRange>) {
    let order = if is_whole(range) && singly < Order::SUPERPAGE {
        Order::SUPERPAGE
    } else if singly < MEDIUM && fits(range, MEDIUM) && range.count() >= FrameCount::new(WORTH) {
        MEDIUM
    } else {
        Order::FRAME
    };
    (order, range.split_at(order.frames()).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
        fn cuts_cover_the_range_without_a_gap(start in 0u64..2048, count in 1u64..4096) {
            let mut rest = FrameRange::new(Pfn::new(start), FrameCount::new(count));
            let (mut at, mut superpages) = (start, 0);
            while let Some(range) = rest {
                let (order, next) = next_extent(range, Order::FRAME);
                prop_assert_eq!(range.start().get(), at);
                prop_assert!(range.start().is_aligned(order));
                superpages += u64::from(order == Order::SUPERPAGE);
                at += order.frames().get();
                rest = next;
            }
            prop_assert_eq!(at, start + count);
            let (first, end) = (start.div_ceil(512), (start + count) / 512);
            prop_assert_eq!(superpages, end.saturating_sub(first), "every whole superpage is one");
        }
    }
}
