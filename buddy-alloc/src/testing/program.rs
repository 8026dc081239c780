//! Programs: every operation of a zone with small numbers as arguments.

use alloc::vec;
use alloc::vec::Vec;

use super::oracle::{Oracle, frames};
use crate::{
    AllocError, Backing, Config, Frame, FrameCount, FrameRange, FreeError, GivePath, Isolated,
    Order, Preference, RangeBuf, ReportAsk, ReportCursor, State, TakeAsk, TakeStop, Zone,
};

/// One step. Numbers are reduced to what makes sense, so that any value is a valid action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of the same name")]
pub enum Action {
    Allocate {
        order: u8,
        preference: u8,
    },
    AllocateRange {
        count: u16,
        align: u8,
        preference: u8,
    },
    AllocateAt {
        at: u32,
        order: u8,
    },
    AllocateRangeAt {
        at: u32,
        count: u16,
    },
    /// Frees the n-th used block properly.
    Free {
        nth: u16,
    },
    /// Frees whatever is there, with any order.
    FreeWild {
        at: u32,
        order: u8,
    },
    FreeRange {
        at: u32,
        count: u16,
    },
    FreeUnpopulated {
        at: u32,
        count: u16,
    },
    /// Splits the n-th used block.
    Split {
        nth: u16,
        into: u8,
    },
    Reserve {
        at: u32,
        count: u16,
    },
    Unreserve {
        at: u32,
        count: u16,
        backing: u8,
    },
    Add {
        at: u32,
        count: u16,
        backing: u8,
    },
    Take {
        wanted: u16,
        ranges: u8,
        unit: u8,
        untouched: bool,
        below: Option<u32>,
    },
    TakeAt {
        at: u32,
        count: u16,
    },
    Put {
        nth: u16,
        backing: u8,
    },
    PutUnchanged {
        nth: u16,
    },
    Store {
        nth: u16,
        bulk: bool,
    },
    Recall {
        wanted: u16,
        ranges: u8,
        bulk: bool,
    },
    Isolate {
        order: u8,
        populated: u16,
    },
    IsolateAt {
        at: u32,
        order: u8,
    },
    Unisolate {
        nth: u16,
        backing: u8,
    },
}

/// A zone and what to do with it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Frames of the span.
    pub span: FrameRange,
    /// Settings of the zone.
    pub config: Config,
    /// Whether all of the span is added first, and as what.
    pub added: Option<Backing>,
    /// What to do.
    pub actions: Vec<Action>,
}

/// Runs a program on a new zone and compares every answer and the final state with the oracle.
///
/// # Panics
/// On any difference.
pub fn run(program: &Program) {
    let words = program.config.metadata_words(program.span);
    let mut memory = vec![0; words];
    run_on(program, &mut memory, program.actions.len());
}

/// As [`run`], in caller memory, comparing the whole state every `interval` actions too.
///
/// # Panics
/// On any difference.
#[expect(clippy::expect_used, reason = "a test's check")]
pub fn run_on(program: &Program, memory: &mut [u64], interval: usize) {
    let mut zone = Zone::new(program.span, program.config, memory).expect("a valid zone");
    let oracle = Oracle::new(program.span, zone.max_order());
    let mut machine = Machine {
        span: program.span,
        oracle,
        cursor: ReportCursor::default(),
        breakable: program.config.breakable != 0,
    };
    if let Some(backing) = program.added {
        zone.add_range(program.span, backing)
            .expect("the span is empty");
        machine.oracle.set(program.span, State::Free);
        machine
            .oracle
            .populate(program.span, backing.is_populated());
    }
    for (step, &action) in program.actions.iter().enumerate() {
        machine.step(&mut zone, action);
        if (step + 1) % interval.max(1) == 0 {
            machine.oracle.check(&zone);
        }
    }
    machine.oracle.check(&zone);
}

struct Machine {
    span: FrameRange,
    oracle: Oracle,
    cursor: ReportCursor,
    breakable: bool,
}

const PREFERENCES: [Preference; 3] = [
    Preference::Populated,
    Preference::Untouched,
    Preference::Any,
];
const BACKINGS: [Backing; 3] = [Backing::Populated, Backing::Untouched, Backing::Unknown];

fn order_of(number: u8) -> Order {
    Order::new(number % 20).unwrap_or(Order::MAX)
}

#[expect(clippy::indexing_slicing, reason = "reduced")]
fn preference_of(number: u8) -> Preference {
    PREFERENCES[usize::from(number) % 3]
}

#[expect(clippy::indexing_slicing, reason = "reduced")]
fn backing_of(number: u8) -> Backing {
    BACKINGS[usize::from(number) % 3]
}

impl Machine {
    /// A frame in the span or just around it.
    fn frame(&self, at: u32) -> u64 {
        let near = self.span.count().get() + 4;
        (self.span.start().get() + u64::from(at) % near).saturating_sub(2)
    }

    fn range(&self, at: u32, count: u16) -> FrameRange {
        let count = FrameCount::new(u64::from(count) % 1200);
        FrameRange::new(Frame::new(self.frame(at)), count)
    }

    /// The n-th block in a state, counted around.
    fn nth(&self, state: State, nth: u16) -> Option<(u64, u32)> {
        let found: Vec<_> = self.oracle.held(state).collect();
        found
            .get(usize::from(nth).checked_rem(found.len())?)
            .copied()
    }

    fn nth_range(&self, state: State, nth: u16) -> Option<FrameRange> {
        let (start, order) = self.nth(state, nth)?;
        Some(FrameRange::new(
            Frame::new(start),
            FrameCount::new(1 << order),
        ))
    }

    #[expect(clippy::too_many_lines, reason = "one arm per operation")]
    fn step(&mut self, zone: &mut Zone<'_>, action: Action) {
        match action {
            Action::Allocate { order, preference } => {
                self.allocate(zone, order_of(order), preference_of(preference));
            }
            Action::AllocateRange {
                count,
                align,
                preference,
            } => {
                let count = FrameCount::new(u64::from(count) % 1200);
                let align = order_of(align % 12);
                let found = zone.allocate_range(count, align, preference_of(preference));
                let order = Order::holding(count).map_or(align, |order| order.max(align));
                match found {
                    Ok(range) => {
                        assert_eq!(range.count(), count);
                        assert_eq!(range.start().get() & (align.frames() - 1), 0);
                        self.take_free(range, State::Used);
                        self.oracle.populate(range, true);
                    }
                    Err(AllocError::TooLarge) => {
                        assert!(order > zone.max_order() || count == FrameCount::ZERO);
                    }
                    Err(error) => {
                        assert_eq!(error, AllocError::Exhausted);
                        self.assert_no_block(order);
                    }
                }
            }
            Action::AllocateAt { at, order } => {
                let (frame, order) = (self.frame(at), order_of(order));
                let fits = frame & (order.frames() - 1) == 0 && order <= zone.max_order();
                let range = FrameRange::block(Frame::new(frame), order);
                let free = fits && self.oracle.all(range, State::Free);
                let result = zone.allocate_at(Frame::new(frame), order);
                assert_eq!(result.is_ok(), free, "{result:?} at {range}");
                if free {
                    self.take_free(range, State::Used);
                    self.oracle.populate(range, true);
                }
            }
            Action::AllocateRangeAt { at, count } => {
                let range = self.range(at, count);
                let result = zone.allocate_range_at(range);
                self.expect_taken(range, result.is_ok(), State::Used);
                if result.is_ok() {
                    self.oracle.populate(range, true);
                }
            }
            Action::Free { nth } => {
                if let Some((start, order)) = self.nth(State::Used, nth) {
                    self.free(zone, start, order);
                }
            }
            Action::FreeWild { at, order } => {
                let (frame, order) = (self.frame(at), u32::from(order_of(order).get()));
                self.free(zone, frame, order);
            }
            Action::FreeRange { at, count } => {
                let range = self.range(at, count);
                let result = zone.free_range(range);
                self.expect_freed(range, result.is_ok(), State::Used, None);
            }
            Action::FreeUnpopulated { at, count } => {
                let range = self.range(at, count);
                let result = zone.free_unpopulated(range);
                self.expect_freed(range, result.is_ok(), State::Used, Some(false));
            }
            Action::Split { nth, into } => {
                if let Some((start, order)) = self.nth(State::Used, nth) {
                    let into = order_of(into);
                    let result = zone.split_block(Frame::new(start), Order::raw(order), into);
                    if u32::from(into.get()) > order {
                        assert_eq!(result, Err(FreeError::WrongOrder));
                    } else {
                        assert_eq!(result, Ok(()));
                        self.oracle.split(start, order, u32::from(into.get()));
                    }
                }
            }
            Action::Reserve { at, count } => {
                let range = self.range(at, count);
                let result = zone.reserve(range);
                self.expect_taken(range, result.is_ok(), State::Reserved);
            }
            Action::Unreserve { at, count, backing } => {
                let (range, backing) = (self.range(at, count), backing_of(backing));
                let result = zone.unreserve(range, backing);
                let populated = Some(backing.is_populated());
                self.expect_freed(range, result.is_ok(), State::Reserved, populated);
            }
            Action::Add { at, count, backing } => {
                let (range, backing) = (self.range(at, count), backing_of(backing));
                let result = zone.add_range(range, backing);
                let holes = frames(range).all(|frame| self.oracle.state(frame).is_none())
                    && (range.is_empty() || self.span.covers(range));
                assert_eq!(result.is_ok(), holes, "add {range}");
                if holes {
                    self.oracle.set(range, State::Free);
                    self.oracle.populate(range, backing.is_populated());
                }
            }
            Action::Take {
                wanted,
                ranges,
                unit,
                untouched,
                below,
            } => {
                let below = below.map_or(u64::MAX, |at| self.frame(at));
                let ask = TakeAsk {
                    unit: order_of(unit % 12),
                    below: Frame::new(below),
                    untouched,
                };
                self.take(zone, ask, wanted, ranges);
            }
            Action::TakeAt { at, count } => {
                let range = self.range(at, count);
                let result = zone.take_at(range);
                self.expect_taken(range, result.is_ok(), State::InHand);
            }
            Action::Put { nth, backing } => {
                if let Some(range) = self.nth_range(State::InHand, nth) {
                    let backing = backing_of(backing);
                    let result = zone.put(range, backing);
                    let populated = Some(backing.is_populated());
                    self.expect_freed(range, result.is_ok(), State::InHand, populated);
                }
            }
            Action::PutUnchanged { nth } => {
                if let Some(range) = self.nth_range(State::InHand, nth) {
                    let result = zone.put_unchanged(range);
                    self.expect_freed(range, result.is_ok(), State::InHand, None);
                }
            }
            Action::Store { nth, bulk } => {
                if let Some(range) = self.nth_range(State::InHand, nth) {
                    let path = if bulk { GivePath::Bulk } else { GivePath::Told };
                    assert_eq!(zone.store(range, path), Ok(()));
                    self.oracle.set(range, State::Ballooned(path));
                    self.oracle.populate(range, false);
                }
            }
            Action::Recall {
                wanted,
                ranges,
                bulk,
            } => {
                let path = if bulk { GivePath::Bulk } else { GivePath::Told };
                self.recall(zone, path, wanted, ranges);
            }
            Action::Isolate { order, populated } => {
                let ask = ReportAsk {
                    order: order_of(order % 10),
                    populated: FrameCount::new(u64::from(populated) % 600),
                };
                match zone.isolate_next(&mut self.cursor, ask) {
                    Isolated::Block(range) => {
                        assert!(range.count().get() >= ask.order.frames());
                        assert!(self.oracle.populated_in(range) >= ask.populated.get().max(1));
                        self.take_free(range, State::Isolated);
                    }
                    Isolated::Again | Isolated::Done => {}
                }
            }
            Action::IsolateAt { at, order } => {
                let (frame, order) = (self.frame(at), order_of(order));
                let range = FrameRange::block(Frame::new(frame), order);
                let result = zone.isolate_at(Frame::new(frame), order);
                if frame & (order.frames() - 1) == 0 {
                    self.expect_taken(range, result.is_ok(), State::Isolated);
                } else {
                    assert!(result.is_err());
                }
            }
            Action::Unisolate { nth, backing } => {
                if let Some(range) = self.nth_range(State::Isolated, nth) {
                    let backing = backing_of(backing);
                    let result = zone.unisolate(range, backing);
                    let populated = Some(backing.is_populated());
                    self.expect_freed(range, result.is_ok(), State::Isolated, populated);
                }
            }
        }
    }

    fn assert_no_block(&self, order: Order) {
        let order = u32::from(order.get());
        let blocks = self.oracle.free_blocks();
        assert!(
            blocks.iter().all(|&(_, found, _)| found < order),
            "refused with {blocks:?}"
        );
    }

    fn allocate(&mut self, zone: &mut Zone<'_>, order: Order, preference: Preference) {
        match zone.allocate(order, preference) {
            Ok(frame) => {
                assert_eq!(frame.get() & (order.frames() - 1), 0, "alignment");
                let range = FrameRange::new(frame, FrameCount::new(order.frames()));
                let wanted = u32::from(order.get());
                let blocks = self.oracle.free_blocks();
                let has = |class| {
                    blocks
                        .iter()
                        .any(|&(_, k, hot)| k >= wanted && hot == class)
                };
                let hot = self.oracle.populated_in(range) != 0;
                match preference {
                    _ if self.breakable => {}
                    Preference::Populated => assert_eq!(hot, has(true)),
                    Preference::Untouched => assert!(!has(false) || !hot),
                    Preference::Any => {
                        let fit = blocks.iter().map(|b| b.1).filter(|&k| k >= wanted).min();
                        let from = blocks.iter().find(|&&(start, k, _)| {
                            frame.get() >= start && frame.get() < start + (1 << k)
                        });
                        assert_eq!(fit, from.map(|b| b.1), "best fit");
                    }
                }
                self.take_free(range, State::Used);
                self.oracle.populate(range, true);
            }
            Err(AllocError::TooLarge) => assert!(order > zone.max_order()),
            Err(error) => {
                assert_eq!(error, AllocError::Exhausted);
                self.assert_no_block(order);
            }
        }
    }

    fn free(&mut self, zone: &mut Zone<'_>, start: u64, order: u32) {
        let result = zone.free(Frame::new(start), Order::raw(order));
        assert_eq!(
            result,
            self.oracle.expect_free(start, order),
            "free {start} of order {order}"
        );
        if result.is_ok() {
            let range = FrameRange::new(Frame::new(start), FrameCount::new(1 << order));
            self.oracle.set(range, State::Free);
            self.oracle.populate(range, true);
        }
    }

    /// Frames changed from free to another state.
    fn take_free(&mut self, range: FrameRange, state: State) {
        assert!(self.oracle.all(range, State::Free), "{range} was not free");
        self.oracle.set(range, state);
    }

    fn expect_taken(&mut self, range: FrameRange, done: bool, state: State) {
        assert_eq!(
            done,
            self.oracle.all(range, State::Free),
            "{range} to {state:?}"
        );
        if done {
            self.oracle.set(range, state);
        }
    }

    fn expect_freed(
        &mut self,
        range: FrameRange,
        done: bool,
        from: State,
        populated: Option<bool>,
    ) {
        assert_eq!(done, self.oracle.all(range, from), "{range} from {from:?}");
        if done {
            self.oracle.set(range, State::Free);
            if let Some(populated) = populated {
                self.oracle.populate(range, populated);
            }
        }
    }

    fn take(&mut self, zone: &mut Zone<'_>, ask: TakeAsk, wanted: u16, ranges: u8) {
        let wanted = u64::from(wanted) % 5000;
        let mut places = vec![FrameRange::block(Frame::new(0), Order::FRAME); usize::from(ranges)];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zone.take(ask, &mut sink);
        let populated = sink.populated().get();
        let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
        assert!(taken <= wanted);
        let mut found = 0;
        for (one, next) in sink.ranges().iter().zip(sink.ranges().iter().skip(1)) {
            assert_ne!(one.end(), next.start(), "neighbours were not merged");
        }
        let unit = ask.unit.frames() - 1;
        for &range in sink.ranges() {
            assert!(range.end() <= ask.below && !range.is_empty());
            assert_eq!(
                (range.start().get() | range.count().get()) & unit,
                0,
                "unit"
            );
            found += self.oracle.populated_in(range);
            self.take_free(range, State::InHand);
        }
        assert_eq!(found, populated);
        let full = sink.ranges().len() == usize::from(ranges) || taken == wanted;
        assert_eq!(
            stop == TakeStop::Enough,
            full,
            "{ask:?}: {stop:?}, {taken} of {wanted}"
        );
        let below = |&(start, ..): &(u64, u32, bool)| start < ask.below.get();
        let left = self.oracle.free_blocks();
        if ask.unit == Order::FRAME && populated < taken {
            let hot = frames(self.span)
                .filter(|&f| f < ask.below.get() && self.oracle.state(f) == Some(State::Free))
                .any(|f| self.oracle.is_populated(f));
            assert!(
                !hot,
                "an unpopulated frame was taken before a populated one"
            );
        }
        let room = ranges != 0 && wanted - taken > unit;
        if !full && room && ask.untouched && ask.below.get() == u64::MAX {
            let order = u32::from(ask.unit.get());
            assert!(
                !left.iter().filter(|b| below(b)).any(|b| b.1 >= order),
                "left {left:?}"
            );
        }
        if stop == TakeStop::Empty {
            assert!(left.is_empty());
        }
    }

    fn recall(&mut self, zone: &mut Zone<'_>, path: GivePath, wanted: u16, ranges: u8) {
        let wanted = u64::from(wanted) % 5000;
        let mut places = vec![FrameRange::block(Frame::new(0), Order::FRAME); usize::from(ranges)];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zone.recall(path, &mut sink);
        let state = State::Ballooned(path);
        let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
        let full = sink.ranges().len() == usize::from(ranges) || taken == wanted;
        assert_eq!(stop == TakeStop::Enough, full, "recall");
        for &range in sink.ranges() {
            assert!(
                self.oracle.all(range, state),
                "{range} was not ballooned by {path:?}"
            );
            self.oracle.set(range, State::InHand);
        }
        if stop != TakeStop::Enough {
            assert_eq!(self.oracle.count(state), 0, "frames left behind");
        }
    }
}
