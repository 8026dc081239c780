use alloc::vec::Vec;

use super::*;

#[test]
fn a_kernels_own_numbers_fit() {
    assert_eq!(FrameCount::from_usize(7).to_usize(), 7);
    assert_eq!(Bytes::from_usize(usize::MAX).to_usize(), usize::MAX);
    assert_eq!(FrameCount::MAX.to_usize(), usize::MAX);
    assert_eq!(
        Order::holding(Bytes::new(2 << 20).frames()),
        Some(Order::SUPERPAGE)
    );
    assert_eq!(FrameRange::within(u64::MAX, Bytes::new(u64::MAX)), None);
    assert_eq!(FrameRange::within(1, Bytes::new(8190)), None);
}

#[test]
fn a_range_is_never_empty_nor_beyond_the_limit() {
    let range = |start, count| FrameRange::new(Pfn::new(start), FrameCount::new(count));
    assert_eq!(range(5, 0), None);
    assert_eq!(range(u64::MAX, 1), None);
    assert_eq!(range(u64::MAX, u64::MAX), None);
    assert_eq!(range(Pfn::LIMIT.get(), 1), None);
    assert_eq!(range(Pfn::LIMIT.get() - 1, 1).unwrap().end(), Pfn::LIMIT);
}

#[test]
fn a_split_keeps_every_frame() {
    let range = FrameRange::new(Pfn::new(10), FrameCount::new(4)).unwrap();
    let lens = |at| {
        let (head, tail) = range.split_at(FrameCount::new(at));
        (head.map(|r| r.count().get()), tail.map(|r| r.count().get()))
    };
    assert_eq!(lens(0), (None, Some(4)));
    assert_eq!(lens(1), (Some(1), Some(3)));
    assert_eq!(lens(4), (Some(4), None));
    assert_eq!(lens(9), (Some(4), None));
    let frames: Vec<u64> = range.frames().map(Pfn::get).collect();
    assert_eq!(frames, [10, 11, 12, 13]);
    assert_eq!(range.frames().len(), 4);
}

#[test]
fn orders_and_rounding() {
    assert_eq!(Order::new(40), None);
    assert_eq!(Order::SUPERPAGE.frames().bytes(), Bytes::new(2 << 20));
    assert_eq!(
        FrameCount::new(1023).round_down(Order::SUPERPAGE),
        FrameCount::new(512)
    );
    assert!(Pfn::new(512).is_aligned(Order::SUPERPAGE));
    assert!(!Pfn::new(511).is_aligned(Order::SUPERPAGE));
    assert_eq!(Pfn::containing(0x1fff), Pfn::new(1));
    assert_eq!(Pfn::new(1).address(), 0x1000);
    assert_eq!(FrameCount::MAX.bytes(), Bytes::new(u64::MAX));
}

#[test]
fn time_saturates() {
    assert_eq!(
        Nanos::from_secs(u64::MAX).saturating_add(Nanos::new(1)),
        Nanos::new(u64::MAX)
    );
    assert_eq!(Nanos::new(1).saturating_sub(Nanos::new(2)), Nanos::ZERO);
}
