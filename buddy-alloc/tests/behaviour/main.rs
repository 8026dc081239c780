//! What the documentation promises, one property a test.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod balloon;
mod batches;
mod blocks;
mod misuse;
mod reuse;
mod spans;

use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange, Order, Zone};

pub(crate) fn order(order: u8) -> Order {
    Order::new(order).unwrap()
}

pub(crate) fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Frame::new(start), FrameCount::new(count))
}

pub(crate) fn with_zone<R>(
    frames: u64,
    config: Config,
    backing: Backing,
    test: impl FnOnce(&mut Zone<'_>) -> R,
) -> R {
    let span = range(0, frames);
    let mut memory = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new(span, config, &mut memory).unwrap();
    zone.add_range(span, backing).unwrap();
    test(&mut zone)
}
