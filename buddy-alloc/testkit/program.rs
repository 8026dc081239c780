//! Programs run on a zone and on the oracle.

use alloc::vec;
use alloc::vec::Vec;

use super::action::{Action, Program, backing_of, order_of, preference_of};
use super::oracle::{Oracle, frames};
use crate::{
    AllocError, Frame, FrameCount, FrameRange, FreeBatchError, FreeError, IsolateRequest, Isolated,
    Order, Preference, RangeBuf, ReportCursor, Shortage, State, TakeRequest, Via, Zone,
};

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
        fragmentable: program.config.fragmentable != 0,
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
    fragmentable: bool,
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
                preference,
                only,
                below,
            } => {
                let below = below.map_or(u64::MAX, |at| self.frame(at));
                let ask = TakeRequest {
                    unit: order_of(unit % 12),
                    below: Frame::new(below),
                    preference: preference_of(preference),
                    only,
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
                    let via = if bulk { Via::Bulk } else { Via::Inflate };
                    assert_eq!(zone.store(range, via), Ok(()));
                    self.oracle.set(range, State::Ballooned(via));
                    self.oracle.populate(range, false);
                }
            }
            Action::Recall {
                wanted,
                ranges,
                unit,
                bulk,
            } => {
                let via = if bulk { Via::Bulk } else { Via::Inflate };
                self.recall(zone, via, order_of(unit % 12), wanted, ranges);
            }
            Action::Isolate { order, populated } => {
                let ask = IsolateRequest {
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
            Action::AllocateBatch {
                wanted,
                ranges,
                unit,
                preference,
            } => {
                let (unit, preference) = (order_of(unit % 12), preference_of(preference));
                self.allocate_batch(zone, unit, preference, wanted, ranges);
            }
            Action::FreeBatch { nth, ranges, at } => self.free_batch(zone, nth, ranges, at),
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
                        .any(|&(_, k, any_populated)| k >= wanted && any_populated == class)
                };
                let any_populated = self.oracle.populated_in(range) != 0;
                match preference {
                    _ if self.fragmentable => {}
                    Preference::Populated => assert_eq!(any_populated, has(true)),
                    Preference::Unpopulated => assert!(!has(false) || !any_populated),
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

    fn take(&mut self, zone: &mut Zone<'_>, ask: TakeRequest, wanted: u16, ranges: u8) {
        let wanted = u64::from(wanted) % 5000;
        let mut places = vec![FrameRange::block(Frame::new(0), Order::FRAME); usize::from(ranges)];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zone.take(ask, &mut sink);
        let populated = sink.populated().get();
        let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
        assert!(taken <= wanted);
        let mut found = 0;
        // What is preferred is not merged with the rest.
        let kind =
            |range| ask.preference != Preference::Any && self.oracle.populated_in(range) != 0;
        for (&one, &next) in sink.ranges().iter().zip(sink.ranges().iter().skip(1)) {
            let alike = kind(one) == kind(next);
            assert!(
                one.end() != next.start() || !alike,
                "neighbours were not merged"
            );
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
            stop == Shortage::None,
            full,
            "{ask:?}: {stop:?}, {taken} of {wanted}"
        );
        let preferred = |unit| match ask.preference {
            Preference::Populated => self.oracle.populated_in(unit) != 0,
            Preference::Unpopulated => self.oracle.populated_in(unit) == 0,
            Preference::Any => true,
        };
        let others = |&range: &FrameRange| {
            let units = units(range, ask.unit);
            units.filter(|&unit| !preferred(unit)).count() as u64
        };
        let ranges_taken = sink.ranges().iter().map(|range| {
            let (others, count) = (others(range), range.count().get() >> ask.unit.get());
            assert!(others == 0 || others == count, "{ask:?} merged {range}");
            others
        });
        let has_other = ranges_taken.sum::<u64>() != 0;
        assert!(!has_other || !ask.only, "{ask:?} took others");
        let left = self.oracle.free_blocks();
        let left_units: Vec<_> = left
            .iter()
            .flat_map(|&(start, order, _)| {
                units(
                    FrameRange::new(Frame::new(start), FrameCount::new(1 << order)),
                    ask.unit,
                )
            })
            .filter(|range| range.end() <= ask.below)
            .collect();
        let better = left_units.iter().find(|&&unit| preferred(unit));
        if has_other {
            assert_eq!(better, None, "{ask:?} took another unit before it");
        }
        if !full && ranges != 0 && wanted - taken > unit {
            assert_eq!(better, None, "{ask:?} left it");
            assert!(ask.only || left_units.is_empty(), "{ask:?} left {left:?}");
        }
        if stop == Shortage::Empty {
            assert!(left.is_empty());
        }
    }

    fn recall(&mut self, zone: &mut Zone<'_>, via: Via, unit: Order, wanted: u16, ranges: u8) {
        let wanted = u64::from(wanted) % 5000;
        let state = State::Ballooned(via);
        let whole = self.blocks(state, zone.granule());
        let mut places = vec![FrameRange::block(Frame::new(0), Order::FRAME); usize::from(ranges)];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let mut stop = Shortage::Again;
        while stop == Shortage::Again {
            stop = zone.recall(via, unit, &mut sink);
        }
        let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
        let full = sink.ranges().len() == usize::from(ranges) || taken == wanted;
        assert_eq!(stop == Shortage::None, full, "recall");
        for &range in sink.ranges() {
            let odd = (range.start().get() | range.count().get()) & (unit.frames() - 1);
            assert_eq!(odd, 0, "{range} is not made of blocks of {unit}");
            assert!(
                self.oracle.all(range, state),
                "{range} was not ballooned by {via:?}"
            );
            self.oracle.set(range, State::InHand);
        }
        let left = self.blocks(state, unit);
        if !full && wanted - taken >= unit.frames() {
            assert_eq!(left, [], "left behind");
        }
        let touched = |block: &&FrameRange| !self.oracle.all(**block, state);
        let broken = |block: &&FrameRange| !self.oracle.all(**block, State::InHand);
        assert!(whole.iter().filter(touched).filter(broken).count() <= 1);
        if unit < zone.granule() && whole.iter().any(|block| touched(&block)) {
            let scattered = |unit: &FrameRange| {
                !whole
                    .iter()
                    .any(|block| block.start() <= unit.start() && unit.end() <= block.end())
            };
            assert!(!left.iter().any(scattered), "a whole block came first");
        }
        if stop == Shortage::Empty {
            assert_eq!(self.oracle.count(state), 0);
        }
    }

    /// The aligned blocks of which every frame is in a state.
    fn blocks(&self, state: State, order: Order) -> Vec<FrameRange> {
        let (start, end) = (self.span.start().get(), self.span.end().get());
        let starts = (start.next_multiple_of(order.frames())..end).step_by(1 << order.get());
        starts
            .map(|start| FrameRange::block(Frame::new(start), order))
            .filter(|&block| self.oracle.all(block, state))
            .collect()
    }

    fn allocate_batch(
        &mut self,
        zone: &mut Zone<'_>,
        unit: Order,
        preference: Preference,
        wanted: u16,
        ranges: u8,
    ) {
        let wanted = u64::from(wanted) % 5000;
        let mut places = vec![FrameRange::block(Frame::new(0), Order::FRAME); usize::from(ranges)];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zone.allocate_batch(unit, preference, &mut sink);
        let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
        let mut populated = 0;
        for &range in sink.ranges() {
            let odd = (range.start().get() | range.count().get()) & (unit.frames() - 1);
            assert_eq!(odd, 0, "{range} is not made of blocks of {unit}");
            populated += self.oracle.populated_in(range);
            self.take_free(range, State::Used);
            self.oracle.populate(range, true);
        }
        assert_eq!(sink.populated().get(), populated);
        let full = sink.ranges().len() == usize::from(ranges) || taken == wanted;
        assert_eq!(stop == Shortage::None, full, "{taken} of {wanted}");
        if !full && wanted - taken >= unit.frames() {
            self.assert_no_block(unit);
        }
    }

    fn free_batch(&mut self, zone: &mut Zone<'_>, nth: u16, ranges: u8, at: u32) {
        let mut batch: Vec<_> = (0..u16::from(ranges % 8))
            .filter_map(|more| self.nth_range(State::Used, nth.wrapping_add(more * 3)))
            .collect();
        batch.push(self.range(at, u16::from(ranges)));
        let result = zone.free_batch(&batch);
        let freed = result.map_or_else(|FreeBatchError { freed, .. }| freed, |()| batch.len());
        for (number, &range) in batch.iter().enumerate() {
            let good = self.oracle.all(range, State::Used);
            assert!(
                number > freed || good == (number < freed),
                "{number} {result:?}"
            );
            if number < freed {
                self.oracle.set(range, State::Free);
            }
        }
    }
}

/// The whole units of a free range that starts at one or is smaller.
fn units(range: FrameRange, unit: Order) -> impl Iterator<Item = FrameRange> {
    (0..range.count().get() / unit.frames()).map(move |nth| {
        let start = range.start().get() + nth * unit.frames();
        FrameRange::block(Frame::new(start), unit)
    })
}
