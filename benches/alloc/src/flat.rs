//! Time per operation against the size of memory, 1 GiB to 1 TiB of simulated frames.

use buddy_alloc::{
    Backing, Config, Frame, FrameCount, FrameRange, Order, Preference, RangeBuf, TakeRequest, Zone,
};
use serde_json::json;

use crate::work::now;
use crate::{Random, ours, row};

/// A zone of which the balloon-sized rest is in use, so that small blocks live all over it.
fn fragmented(frames: u64) -> (Zone<'static>, *mut [u64]) {
    let (mut zone, memory) = ours::zone(frames);
    // Every other 4 MiB is taken, by address.
    let step = (frames >> 11).max(1);
    for block in 0..step {
        let _ = zone.allocate_at(Frame::new(block << 11), Order::new(10).unwrap());
    }
    (zone, memory)
}

/// Median over runs of a body that returns operations and nanoseconds.
fn median(mut body: impl FnMut() -> (u64, u64)) -> f64 {
    let mut runs: Vec<f64> = (0..7)
        .map(|_| {
            let (ops, ns) = body();
            ns as f64 / ops as f64
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// Prints one row per size and test.
pub(crate) fn run(quick: bool) {
    for gib in [1u64, 4, 16, 64, 256, 1024] {
        if quick && gib > 16 {
            break;
        }
        let frames = gib << 18;
        let print = |test: &str, ns: f64| {
            let ns = (ns * 100.0).round() / 100.0;
            row(
                &json!({ "allocator": "ours (no lock)", "test": test, "gib": gib, "ns_per_op": ns }),
            );
        };
        let (mut zone, memory) = ours::zone(frames);
        // Nothing but blocks of the largest order: each allocation splits through all orders,
        // each free merges through all of them.
        print(
            "flat_worst",
            median(|| {
                let start = now();
                for _ in 0..100_000 {
                    let frame = zone
                        .allocate(Order::FRAME, Preference::Unpopulated)
                        .unwrap();
                    zone.free(frame, Order::FRAME).unwrap();
                }
                (200_000, now() - start)
            }),
        );
        drop(unsafe { Box::from_raw(memory) });
        let (mut zone, memory) = fragmented(frames);
        let mut random = Random::new(3);
        let mut blocks: Vec<(Frame, Order)> = Vec::new();
        for _ in 0..1 << 14 {
            let order = Order::new(random.order() as u8).unwrap();
            blocks.extend(
                zone.allocate(order, Preference::Populated)
                    .map(|frame| (frame, order)),
            );
        }
        print(
            "flat_steady",
            median(|| {
                let start = now();
                for _ in 0..200_000 {
                    let nth = random.below(blocks.len());
                    let (frame, order) = blocks[nth];
                    zone.free(frame, order).unwrap();
                    blocks[nth] = (zone.allocate(order, Preference::Populated).unwrap(), order);
                }
                (400_000, now() - start)
            }),
        );
        print(
            "flat_pair",
            median(|| {
                let start = now();
                for _ in 0..200_000 {
                    let frame = zone.allocate(Order::FRAME, Preference::Any).unwrap();
                    zone.free(frame, Order::FRAME).unwrap();
                }
                (400_000, now() - start)
            }),
        );
        print(
            "flat_take",
            median(|| {
                let mut places = [FrameRange::block(Frame::new(0), Order::FRAME); 64];
                let start = now();
                for _ in 0..1000 {
                    let mut sink = RangeBuf::new(&mut places, FrameCount::new(4096));
                    zone.take(TakeRequest::default(), &mut sink);
                    for &range in sink.ranges() {
                        zone.put(range, Backing::Populated).unwrap();
                    }
                }
                (1000 * 4096, now() - start)
            }),
        );
        drop(unsafe { Box::from_raw(memory) });
    }
    fragmentable();
    let words =
        Config::new().metadata_words(FrameRange::new(Frame::new(0), FrameCount::new(1 << 29)));
    eprintln!(
        "metadata of 2 TiB: {:.4} %",
        words as f64 * 8.0 / (1u64 << 41) as f64 * 100.0
    );
}

/// Blocks of 2 MiB left whole under a mixed load, by the number kept for being fragmented: small
/// demands of all orders come and go, their number swings between 1/8 and 3/8 of memory.
fn fragmentable() {
    for kept in [0, 4, 8, 16, 32, 64] {
        let frames = 1u64 << 16;
        let span = FrameRange::new(Frame::new(0), FrameCount::new(frames));
        let config = Config::new().with_fragmentable(kept);
        let mut memory = vec![0; config.metadata_words(span)];
        let mut zone = Zone::new(span, config, &mut memory).unwrap();
        zone.add_range(span, Backing::Unpopulated).unwrap();
        let mut random = Random::new(1);
        let (mut live, mut used) = (Vec::new(), 0);
        for step in 0..frames * 8 {
            let level = if (step * 4 / frames).is_multiple_of(2) {
                6
            } else {
                2
            };
            if used < frames * level / 16 {
                let order = Order::new(random.order().min(8) as u8).unwrap();
                live.push((zone.allocate(order, Preference::Populated).unwrap(), order));
                used += order.frames();
            } else {
                let (frame, order) = live.swap_remove(random.below(live.len()));
                zone.free(frame, order).unwrap();
                used -= order.frames();
            }
        }
        let whole = zone.stats().free_in_blocks(Order::MIB_2).get() >> 9;
        row(
            &json!({ "allocator": "ours (no lock)", "test": "breakable", "kept": kept,
            "whole_blocks": whole, "of": frames >> 9 }),
        );
    }
}
