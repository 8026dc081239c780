//! Programs of all operations of a zone, against the bitmap oracle.

use arbitrary::{Arbitrary, Unstructured};
use buddy_alloc::testing::{Action, Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange, Order};

/// What a zone is built from; reduced to what makes sense below.
#[derive(Arbitrary, Debug)]
struct Shape {
    start: u16,
    frames: u16,
    max_order: u8,
    granule: u8,
    fragmentable: u8,
    added: u8,
}

/// The numbers of one action.
#[derive(Arbitrary, Debug)]
struct Step {
    operation: u8,
    at: u16,
    count: u16,
    order: u8,
    kind: u8,
}

impl Step {
    fn action(&self) -> Action {
        let Self {
            at,
            count,
            order,
            kind,
            ..
        } = *self;
        let (at, nth, bulk) = (u32::from(at), at, kind & 1 == 1);
        match self.operation % 23 {
            0 => Action::Allocate {
                order,
                preference: kind,
            },
            1 => Action::AllocateRange {
                count,
                align: order,
                preference: kind,
            },
            2 => Action::AllocateAt { at, order },
            3 => Action::AllocateRangeAt { at, count },
            4 => Action::Free { nth },
            5 => Action::FreeWild { at, order },
            6 => Action::FreeRange { at, count },
            7 => Action::FreeUnpopulated { at, count },
            8 => Action::Split { nth, into: order },
            9 => Action::Reserve { at, count },
            10 => Action::Unreserve {
                at,
                count,
                backing: kind,
            },
            11 => Action::Add {
                at,
                count,
                backing: kind,
            },
            12 => Action::Take {
                wanted: count,
                ranges: kind,
                unit: order,
                preference: kind / 4,
                only: kind & 2 != 0,
                below: (kind & 1 == 1).then_some(at),
            },
            13 => Action::TakeAt { at, count },
            14 => Action::Put { nth, backing: kind },
            15 => Action::PutUnchanged { nth },
            16 => Action::Store { nth, bulk },
            17 => Action::Recall {
                wanted: count,
                ranges: order,
                unit: kind / 2,
                bulk,
            },
            18 => Action::Isolate {
                order,
                populated: count,
            },
            19 => Action::IsolateAt { at, order },
            20 => Action::AllocateBatch {
                wanted: count,
                ranges: kind,
                unit: order,
                preference: kind,
            },
            21 => Action::FreeBatch {
                nth,
                ranges: kind,
                at,
            },
            _ => Action::Unisolate { nth, backing: kind },
        }
    }
}

impl Shape {
    fn program(&self, actions: Vec<Action>) -> Program {
        let order = |number| Order::new(number).unwrap_or(Order::MAX);
        let (max, granule) = (self.max_order % 18 + 1, self.granule % 6 + 6);
        let fragmentable = if granule > max {
            0
        } else {
            u32::from(self.fragmentable % 4)
        };
        let config = Config::new()
            .with_max_order(order(max))
            .with_granule(order(granule))
            .with_fragmentable(fragmentable);
        let frames = FrameCount::new(u64::from(self.frames % 2048) + 1);
        let added = match self.added % 4 {
            0 => None,
            1 => Some(Backing::Populated),
            2 => Some(Backing::Unpopulated),
            _ => Some(Backing::Unknown),
        };
        let span = FrameRange::new(Frame::new(u64::from(self.start)), frames);
        Program {
            span,
            config,
            added,
            actions,
        }
    }
}

/// Runs the program that the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let Ok(shape) = Shape::arbitrary(&mut bytes) else {
        return;
    };
    let mut actions = Vec::new();
    while bytes.len() >= 7
        && actions.len() < 400
        && let Ok(step) = Step::arbitrary(&mut bytes)
    {
        actions.push(step.action());
    }
    let program = shape.program(actions);
    let mut memory = vec![0; program.config.metadata_words(program.span)];
    run_on(&program, &mut memory, 16);
}
