//! The bitmap oracle.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use crate::{Frame, FrameCount, FrameRange, FreeError, Order, State, Via, Zone};

/// What is known about every frame of a span, kept in the plainest way.
#[derive(Debug)]
pub struct Oracle {
    start: u64,
    max_order: u32,
    /// Per frame: `None` is a hole.
    states: Vec<Option<State>>,
    populated: Vec<bool>,
    /// Held blocks: start to order.
    blocks: BTreeMap<u64, u32>,
}

impl Oracle {
    /// All holes.
    #[must_use]
    pub fn new(span: FrameRange, max_order: Order) -> Self {
        let len = usize::try_from(span.count().get()).unwrap_or(0);
        Self {
            start: span.start().get(),
            max_order: u32::from(max_order.get()),
            states: vec![None; len],
            populated: vec![false; len],
            blocks: BTreeMap::new(),
        }
    }

    fn index(&self, frame: u64) -> Option<usize> {
        usize::try_from(frame.checked_sub(self.start)?)
            .ok()
            .filter(|&at| at < self.states.len())
    }

    /// A frame's state; `None` for holes and frames outside.
    #[must_use]
    pub fn state(&self, frame: u64) -> Option<State> {
        self.states.get(self.index(frame)?).copied().flatten()
    }

    /// Whether a frame is populated.
    #[must_use]
    pub fn is_populated(&self, frame: u64) -> bool {
        self.index(frame)
            .and_then(|at| self.populated.get(at))
            .copied()
            .unwrap_or(false)
    }

    /// Whether every frame of a range is in this state.
    #[must_use]
    pub fn all(&self, range: FrameRange, state: State) -> bool {
        frames(range).all(|frame| self.state(frame) == Some(state))
    }

    /// Frames of the span in this state.
    #[must_use]
    pub fn count(&self, state: State) -> u64 {
        self.states
            .iter()
            .filter(|&&found| found == Some(state))
            .count() as u64
    }

    /// Frames that are free and populated.
    #[must_use]
    pub fn free_populated(&self) -> u64 {
        let both = self.states.iter().zip(&self.populated);
        both.filter(|&(&state, &populated)| state == Some(State::Free) && populated)
            .count() as u64
    }

    /// Populated frames of a range.
    #[must_use]
    pub fn populated_in(&self, range: FrameRange) -> u64 {
        frames(range)
            .filter(|&frame| self.is_populated(frame))
            .count() as u64
    }

    /// Sets what is known about a range's population.
    pub fn populate(&mut self, range: FrameRange, populated: bool) {
        for frame in frames(range) {
            if let Some(place) = self.index(frame).and_then(|at| self.populated.get_mut(at)) {
                *place = populated;
            }
        }
    }

    /// The held block around a frame.
    #[must_use]
    pub fn block(&self, frame: u64) -> Option<(u64, u32)> {
        let (&start, &order) = self.blocks.range(..=frame).next_back()?;
        (frame < start + (1 << order)).then_some((start, order))
    }

    /// Held blocks in a state: start and order.
    pub fn held(&self, state: State) -> impl Iterator<Item = (u64, u32)> + use<'_> {
        let blocks = self.blocks.iter().map(|(&start, &order)| (start, order));
        blocks.filter(move |&(start, _)| self.state(start) == Some(state))
    }

    /// Puts all frames of a range in a state; as one block, or in as few as its alignment allows.
    pub fn set(&mut self, range: FrameRange, state: State) {
        let (start, end) = (range.start().get(), range.end().get());
        if range.is_empty() {
            return;
        }
        for border in [start, end] {
            if let Some((head, order)) = self.block(border)
                && head != border
            {
                self.blocks.remove(&head);
                self.cut(head, border);
                self.cut(border, head + (1 << order));
            }
        }
        self.blocks.retain(|&at, _| at < start || at >= end);
        if state != State::Free {
            self.cut(start, end);
        }
        for frame in frames(range) {
            if let Some(place) = self.index(frame).and_then(|at| self.states.get_mut(at)) {
                *place = Some(state);
            }
        }
    }

    /// Splits a held block into parts of an order.
    pub fn split(&mut self, start: u64, order: u32, into: u32) {
        self.blocks.remove(&start);
        for part in 0..1u64 << (order - into) {
            self.blocks.insert(start + (part << into), into);
        }
    }

    fn cut(&mut self, mut start: u64, end: u64) {
        while start < end {
            let order = (end - start)
                .ilog2()
                .min(start.trailing_zeros())
                .min(self.max_order);
            self.blocks.insert(start, order);
            start += 1 << order;
        }
    }

    /// What freeing a block must answer.
    ///
    /// # Errors
    /// The expected refusal.
    pub fn expect_free(&self, frame: u64, order: u32) -> Result<(), FreeError> {
        match self.state(frame) {
            None => Err(FreeError::Foreign),
            Some(State::Free) => Err(FreeError::DoubleFree),
            Some(State::Reserved) => Err(FreeError::Reserved),
            Some(State::Isolated) => Err(FreeError::Isolated),
            Some(State::InHand | State::Ballooned(_)) => Err(FreeError::Ballooned),
            Some(State::Used) => match self.block(frame) {
                Some((head, _)) if head != frame => Err(FreeError::Interior),
                Some((_, found)) if found == order => Ok(()),
                _ => Err(FreeError::WrongOrder),
            },
        }
    }

    /// Maximal aligned free blocks: start, order, any populated.
    #[must_use]
    pub fn free_blocks(&self) -> BTreeSet<(u64, u32, bool)> {
        let mut found = BTreeSet::new();
        let end = self.start + self.states.len() as u64;
        let mut at = self.start;
        while at < end {
            let fits = |order: u32| {
                let block = FrameRange::new(Frame::new(at), FrameCount::new(1 << order));
                at & ((1 << order) - 1) == 0 && self.all(block, State::Free)
            };
            let Some(order) = (0..=self.max_order).take_while(|&order| fits(order)).last() else {
                at += 1;
                continue;
            };
            let block = FrameRange::new(Frame::new(at), FrameCount::new(1 << order));
            found.insert((at, order, self.populated_in(block) != 0));
            at += 1 << order;
        }
        found
    }

    /// Compares everything a zone can be asked for with what the oracle knows.
    ///
    /// # Panics
    /// On any difference.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test's check, indices are orders"
    )]
    pub fn check(&self, zone: &Zone<'_>) {
        let stats = zone.stats();
        let count = |state| FrameCount::new(self.count(state));
        assert_eq!(stats.free, count(State::Free), "free");
        assert_eq!(stats.used, count(State::Used), "used");
        assert_eq!(stats.reserved, count(State::Reserved), "reserved");
        assert_eq!(stats.isolated, count(State::Isolated), "isolated");
        assert_eq!(stats.in_hand, count(State::InHand), "in hand");
        for via in [Via::Inflate, Via::Bulk] {
            assert_eq!(zone.ballooned(via), count(State::Ballooned(via)), "{via:?}");
        }
        assert_eq!(
            stats.free_populated,
            FrameCount::new(self.free_populated()),
            "populated"
        );
        let mut expected = self.free_blocks();
        for order in Order::all() {
            let mut by_class = [0; 2];
            for block in zone.free_blocks(order) {
                by_class[usize::from(block.any_populated)] += 1;
                let key = (
                    block.start.get(),
                    u32::from(order.get()),
                    block.any_populated,
                );
                assert!(expected.remove(&key), "{block:?} is no maximal free block");
            }
            assert_eq!(stats.blocks[usize::from(order.get())], by_class, "{order}");
        }
        assert!(expected.is_empty(), "free blocks in no list: {expected:?}");
        let end = self.start + self.states.len() as u64;
        for frame in self.start..end {
            let found = zone.state(Frame::new(frame));
            assert_eq!(
                found.map(|block| block.state),
                self.state(frame),
                "frame {frame}"
            );
            let Some(found) = found.filter(|found| found.state != State::Free) else {
                continue;
            };
            // Frames in the hands of a balloon are ranges, their blocks are the zone's affair.
            assert!(
                self.all(found.block, found.state),
                "{found:?} around {frame}"
            );
            if let (State::Used, Some((head, order))) = (found.state, self.block(frame)) {
                let block = FrameRange::new(Frame::new(head), FrameCount::new(1 << order));
                assert_eq!(found.block, block, "block around {frame}");
            }
        }
        let granule = zone.granule();
        let mut at = self.start;
        while at < end {
            let region = FrameRange::block(Frame::new(at), granule);
            let here = |state: &dyn Fn(u64) -> bool| {
                FrameCount::new(frames(region).filter(|&frame| state(frame)).count() as u64)
            };
            if let Some(found) = zone.region_use(Frame::new(at)) {
                let free = |frame| self.state(frame) == Some(State::Free);
                assert_eq!(found.managed, here(&|frame| self.state(frame).is_some()));
                assert_eq!(found.free, here(&free), "free in region of {at}");
                let both = |frame| free(frame) && self.is_populated(frame);
                assert_eq!(
                    found.free_populated,
                    here(&both),
                    "populated in region of {at}"
                );
            }
            at = region.end().get();
        }
    }
}

/// The frame numbers of a range.
pub(super) fn frames(range: FrameRange) -> core::ops::Range<u64> {
    range.start().get()..range.end().get()
}
