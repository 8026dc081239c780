//! Every program of a few operations on a few frames.

use buddy_alloc::testing::{Action, Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange};

/// Small spaces leave little to choose: these reach every state of up to 16 frames but for those that
/// take [`MORE`].
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
        preference: 0,
        only: false,
        below: None,
    },
    Action::Store { nth: 0, bulk: true },
    Action::Recall {
        wanted: 2,
        ranges: 1,
        unit: 0,
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

/// The other operations, and calls that are wrong more often than not.
const MORE: [Action; 15] = [
    Action::AllocateRangeAt { at: 3, count: 3 },
    Action::AllocateRange {
        count: 2,
        align: 3,
        preference: 1,
    },
    Action::FreeWild { at: 4, order: 1 },
    Action::FreeWild { at: 5, order: 0 },
    Action::Split { nth: 0, into: 0 },
    Action::Reserve { at: 4, count: 3 },
    Action::Unreserve {
        at: 5,
        count: 2,
        backing: 0,
    },
    Action::Add {
        at: 1,
        count: 3,
        backing: 2,
    },
    Action::Take {
        wanted: 4,
        ranges: 9,
        unit: 1,
        preference: 0,
        only: true,
        below: Some(8),
    },
    Action::Take {
        wanted: 4,
        ranges: 3,
        unit: 0,
        preference: 1,
        only: false,
        below: None,
    },
    Action::TakeAt { at: 6, count: 2 },
    Action::PutUnchanged { nth: 0 },
    Action::FreeBatch {
        nth: 0,
        ranges: 2,
        at: 3,
    },
    Action::IsolateAt { at: 4, order: 1 },
    Action::Unisolate { nth: 0, backing: 1 },
];

fn run_all(actions: &[Action], start: u64, frames: u64, depth: u32, added: Option<Backing>) {
    let span = FrameRange::new(Frame::new(start), FrameCount::new(frames));
    let config = Config::new().with_granule(Config::MIN_GRANULE);
    let mut memory = vec![0; config.metadata_words(span)];
    let mut program = Program {
        span,
        config,
        added,
        actions: Vec::new(),
    };
    for number in 0..actions.len().pow(depth) {
        let mut rest = number;
        program.actions.clear();
        for _ in 0..depth {
            program.actions.extend(actions.get(rest % actions.len()));
            rest /= actions.len();
        }
        run_on(&program, &mut memory, usize::MAX);
    }
}

const DEPTH: u32 = if cfg!(miri) { 1 } else { 4 };

#[test]
fn four_frames() {
    run_all(&ACTIONS, 0, 4, DEPTH, Some(Backing::Unpopulated));
}

#[test]
fn seven_frames_off_alignment() {
    run_all(&ACTIONS, 3, 7, DEPTH, Some(Backing::Populated));
}

#[test]
fn sixteen_frames() {
    run_all(&ACTIONS, 0, 16, DEPTH, Some(Backing::Unpopulated));
}

/// Every operation after every two others.
#[test]
fn all_operations() {
    let all = [ACTIONS.as_slice(), &MORE].concat();
    for (start, frames, added) in [
        (0, 16, Some(Backing::Populated)),
        (3, 7, Some(Backing::Unpopulated)),
        (1, 9, None),
    ] {
        run_all(&all, start, frames, DEPTH.min(3), added);
    }
}
