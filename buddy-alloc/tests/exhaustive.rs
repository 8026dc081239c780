//! Every program of a few operations on a few frames.

use buddy_alloc::testing::{Action, Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange};

/// Small spaces leave little to choose: these reach every state of up to 16 frames.
const ACTIONS: [Action; 16] = [
    Action::Allocate {
        order: 0,
        preference: 0,
    },
    Action::Allocate {
        order: 0,
        preference: 1,
    },
    Action::Allocate {
        order: 1,
        preference: 2,
    },
    Action::Allocate {
        order: 2,
        preference: 0,
    },
    Action::AllocateRange {
        count: 3,
        align: 0,
        preference: 2,
    },
    Action::AllocateAt { at: 5, order: 0 },
    Action::Free { nth: 0 },
    Action::Free { nth: 1 },
    Action::FreeRange { at: 3, count: 2 },
    Action::FreeUnpopulated { at: 2, count: 4 },
    Action::Take {
        wanted: 3,
        ranges: 2,
        unit: 0,
        untouched: true,
        below: None,
    },
    Action::Store { nth: 0, bulk: true },
    Action::Recall {
        wanted: 2,
        ranges: 1,
        bulk: true,
    },
    Action::Put { nth: 0, backing: 1 },
    Action::Isolate {
        order: 0,
        populated: 1,
    },
    Action::AllocateBatch {
        wanted: 6,
        ranges: 2,
        unit: 0,
        preference: 0,
    },
];

fn run_all(start: u64, frames: u64, depth: u32, added: Backing) {
    let span = FrameRange::new(Frame::new(start), FrameCount::new(frames));
    let config = Config::new().with_granule(Config::MIN_GRANULE);
    let mut memory = vec![0; config.metadata_words(span)];
    let mut program = Program {
        span,
        config,
        added: Some(added),
        actions: Vec::new(),
    };
    for number in 0..ACTIONS.len().pow(depth) {
        let mut rest = number;
        program.actions.clear();
        for _ in 0..depth {
            program.actions.extend(ACTIONS.get(rest % ACTIONS.len()));
            rest /= ACTIONS.len();
        }
        run_on(&program, &mut memory, usize::MAX);
    }
}

#[test]
fn four_frames() {
    run_all(0, 4, if cfg!(miri) { 1 } else { 4 }, Backing::Untouched);
}

#[test]
fn seven_frames_off_alignment() {
    run_all(3, 7, if cfg!(miri) { 1 } else { 4 }, Backing::Populated);
}

#[test]
fn sixteen_frames() {
    run_all(0, 16, if cfg!(miri) { 1 } else { 4 }, Backing::Untouched);
}
