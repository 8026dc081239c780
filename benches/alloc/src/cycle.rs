//! What the balloon and the host get: metadata, footprint, share of populated frames.
//!
//! One program for all: it grows to 3/8 of memory, churns, and gives back down to 1/8; the host
//! takes 1/4. Then, eight times: the program frees 1/16, the balloon deflates by 1/16 and the host
//! asks for it back. The row carries the lowest share of frames that the host really backed in
//! these later inflations.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::pool::SMALL_PAGES;
use crate::work::{FRAMES, IN_PAGE_FRAMES, now};
use crate::{Candidate, Frames, Random, heap};

/// Nanoseconds for one program.
const LIMIT: u64 = 20_000_000_000;

struct World<'a> {
    allocator: &'a dyn Frames,
    host: Vec<bool>,
    blocks: Vec<(u64, u32)>,
    used: u64,
    peak: u64,
    random: Random,
    mixed: bool,
    until: u64,
    steps: u32,
}

impl World<'_> {
    /// `None` once the limit is passed; looks at the clock now and then.
    fn in_time(&mut self) -> Option<()> {
        self.steps += 1;
        (!self.steps.is_multiple_of(256) || now() < self.until).then_some(())
    }

    fn grow_to(&mut self, frames: u64) -> Option<()> {
        while self.used < frames {
            let order = if self.mixed { self.random.order() } else { 0 };
            let frame = self.allocator.alloc(order)?;
            let place = frame as usize;
            self.host[place..place + (1 << order)].fill(true);
            self.used += 1 << order;
            self.blocks.push((frame, order));
            self.in_time()?;
        }
        self.peak = self.peak.max(self.used);
        Some(())
    }

    fn shrink_to(&mut self, frames: u64) -> Option<()> {
        while self.used > frames {
            let (frame, order) = self
                .blocks
                .swap_remove(self.random.below(self.blocks.len()));
            self.allocator.free(frame, order);
            self.used -= 1 << order;
            self.in_time()?;
        }
        Some(())
    }

    fn inflate(&mut self, frames: u64) -> Option<(Vec<(u64, u64)>, f64)> {
        let mut taken = Vec::new();
        self.allocator.inflate(frames, &mut taken);
        let (mut all, mut backed) = (0, 0);
        for &(start, count) in &taken {
            let range = start as usize..(start + count) as usize;
            backed += self.host[range.clone()]
                .iter()
                .filter(|&&backed| backed)
                .count();
            self.host[range].fill(false);
            all += count;
        }
        self.in_time()?;
        Some((taken, backed as f64 / all.max(1) as f64))
    }
}

/// Share in the worst later inflation, and frames populated over peak use.
fn program(allocator: &dyn Frames, frames: u64, mixed: bool) -> Option<(f64, f64)> {
    let mut world = World {
        allocator,
        host: vec![false; frames as usize],
        blocks: vec![],
        used: 0,
        peak: 0,
        random: Random::new(42),
        mixed,
        until: now() + LIMIT,
        steps: 0,
    };
    world.grow_to(frames / 8 * 3)?;
    for _ in 0..4 {
        world.shrink_to(frames / 4)?;
        world.grow_to(frames / 8 * 3)?;
    }
    let populated = world.host.iter().filter(|&&backed| backed).count();
    let footprint = populated as f64 / world.peak as f64;
    world.shrink_to(frames / 8)?;
    let mut ballooned = VecDeque::from(world.inflate(frames / 4)?.0);
    let mut worst = f64::INFINITY;
    for _ in 0..8 {
        world.shrink_to(frames / 16)?;
        // Give 1/16 back, the part taken longest ago first.
        let (mut left, mut back) = (frames / 16, Vec::new());
        while left > 0 && !ballooned.is_empty() {
            let (start, count) = ballooned[0];
            let part = count.min(left);
            back.push((start, part));
            left -= part;
            if part == count {
                ballooned.pop_front();
            } else {
                ballooned[0] = (start + part, count - part);
            }
        }
        allocator.deflate(&back);
        let (taken, share) = world.inflate(frames / 16)?;
        worst = worst.min(share);
        ballooned.extend(taken);
        world.grow_to(frames / 8)?;
    }
    Some((worst, footprint))
}

/// Metadata per frame, and whether frames become resident that nobody writes to: every frame is
/// allocated once, every other one freed.
fn residence(candidate: &Candidate, frames: u64) -> (f64, bool) {
    let before = resident();
    SMALL_PAGES.store(true, Ordering::Relaxed);
    let allocator = (candidate.make)(frames);
    SMALL_PAGES.store(false, Ordering::Relaxed);
    let ((), heap) = heap::peak_during(|| {
        let mut taken = Vec::new();
        let until = now() + LIMIT / 4;
        while let Some(frame) = allocator.alloc(0) {
            if frame % 2 == 0 && (frame % 1024 != 0 || now() < until) {
                allocator.free(frame, 0);
                taken.push(frame);
            }
            if taken.len() as u64 * 2 >= frames {
                break;
            }
        }
    });
    // The vector of the test is no metadata of the allocator's.
    let own = (frames / 2).next_power_of_two() * 8 * 3 / 2;
    let metadata = allocator.metadata() + heap.saturating_sub(own);
    let grown = resident().saturating_sub(before);
    let touched = candidate.in_page && grown > frames / 2;
    (metadata as f64 / (frames << 12) as f64 * 100.0, touched)
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

/// The row of an allocator.
pub(crate) fn run(candidate: &Candidate, quick: bool) -> Value {
    let frames = if candidate.in_page {
        IN_PAGE_FRAMES
    } else {
        FRAMES
    };
    let frames = if quick { frames / 16 } else { frames };
    let single = program(&*(candidate.make)(frames), frames, false);
    let mixed = program(&*(candidate.make)(frames), frames, true);
    let (metadata, touches) = residence(candidate, frames);
    let round = |value: f64| (value * 10_000.0).round() / 10_000.0;
    let share = |found: Option<(f64, f64)>| found.map(|(share, _)| round(share));
    let both = [share(single), share(mixed)];
    json!({
        "allocator": candidate.name,
        "metadata_percent": round(metadata),
        "cycle_share": both.into_iter().flatten().reduce(f64::min),
        "cycle_share_4k": both[0],
        "cycle_share_mixed": both[1],
        "footprint_ratio": mixed.or(single).map(|(_, footprint)| round(footprint)),
        "touches_free_frames": touches,
        "refuses": candidate.refuses,
    })
}
