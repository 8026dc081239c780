//! Random programs of all operations against the bitmap oracle.

use buddy_alloc::testing::{Action, Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange, Order};

mod common;
use common::{Random, random_action};

fn program(seed: u64, start: u64, frames: u64, config: Config, steps: usize) -> Program {
    let mut random = Random::new(seed);
    let added = match random.below(4) {
        0 => None,
        1 => Some(Backing::Populated),
        2 => Some(Backing::Unknown),
        _ => Some(Backing::Unpopulated),
    };
    let actions: Vec<Action> = (0..steps).map(|_| random_action(&mut random)).collect();
    let span = FrameRange::new(Frame::new(start), FrameCount::new(frames));
    Program {
        span,
        config,
        added,
        actions,
    }
}

fn check(program: &Program, interval: usize) {
    let mut memory = vec![0; program.config.metadata_words(program.span)];
    run_on(program, &mut memory, interval);
}

#[test]
fn small_spans_with_every_step_checked() {
    for seed in 0..if cfg!(miri) { 6 } else { 250 } {
        let mut random = Random::new(seed ^ 0xabcd);
        let frames = 1 + random.below(if cfg!(miri) { 100 } else { 300 });
        let start = random.below(1000);
        let max = u8::try_from(1 + random.below(10)).unwrap();
        let config = Config::new()
            .with_max_order(Order::new(max).unwrap())
            .with_granule(Config::MIN_GRANULE)
            .with_fragmentable(if max >= 6 {
                u32::try_from(random.below(3)).unwrap()
            } else {
                0
            });
        check(
            &program(
                seed,
                start,
                frames,
                config,
                if cfg!(miri) { 40 } else { 200 },
            ),
            1,
        );
    }
}

/// Takes in units of all orders from blocks of many granules with little populated in them.
#[test]
fn units_are_taken_where_memory_is_populated() {
    for seed in 0..if cfg!(miri) { 2 } else { 100 } {
        let mut random = Random::new(seed ^ 0x5eed);
        let frames = 1 + random.below(if cfg!(miri) { 200 } else { 3000 });
        let mut actions = Vec::new();
        for _ in 0..4 {
            let at = u32::try_from(random.below(frames)).unwrap();
            let count = u16::try_from(1 + random.below(100)).unwrap();
            actions.push(Action::AllocateRangeAt { at, count });
            actions.push(Action::FreeRange { at, count });
            actions.push(Action::Take {
                wanted: u16::try_from(random.below(5000)).unwrap(),
                ranges: 8,
                unit: u8::try_from(random.below(12)).unwrap(),
                preference: u8::try_from(random.below(3)).unwrap(),
                only: random.below(2) == 0,
                below: (random.below(4) == 0).then_some(at),
            });
        }
        let program = Program {
            span: FrameRange::new(Frame::new(random.below(100)), FrameCount::new(frames)),
            config: Config::new().with_granule(Config::MIN_GRANULE),
            added: Some(Backing::Unpopulated),
            actions,
        };
        let steps = program.actions.len();
        check(&program, steps);
    }
}

/// Sizes around powers of two: the last frame of a full area has to be a frame like any other.
#[test]
fn spans_around_powers_of_two() {
    let steps = if cfg!(miri) { 20 } else { 400 };
    for (order, seeds) in [(9u32, 24), (16, 4), (18, 1)] {
        if cfg!(miri) && order > 9 {
            continue;
        }
        for frames in [(1u64 << order) - 1, 1 << order, (1 << order) + 1] {
            for seed in 0..seeds {
                let start = [0, 1 << order, 12_345][usize::try_from(seed % 3).unwrap()];
                check(
                    &program(seed + frames, start, frames, Config::new(), steps),
                    steps / 2,
                );
            }
        }
    }
}
