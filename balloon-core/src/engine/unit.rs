//! In which blocks frames are given: 2 MiB where the host maps so, 4 KiB where
//! nothing else is left.
//!
//! Giving 4 KiB out of a block costs the host its large mapping. Falling back
//! is therefore an event of its own, counted and announced, never silent; and
//! it ends as soon as every given block is whole again.

use super::relief::next_held;
use super::{Engine, Io, held};
use crate::events::Event;
use crate::policy::Granularity;
use crate::source::{Ledger, Shortage};
use crate::transport::{Capabilities, Limits, Transport};
use crate::units::{FrameCount, Order, Pfn};

/// The unit in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnitState {
    order: Order,
    /// Some given frame may be part of a broken block.
    downgraded: bool,
    /// The host is to be told the unit.
    untold: bool,
    /// The source had no whole block when last asked.
    blocks_gone: bool,
    /// How far the ledger was found to hold whole blocks only, but for the one this lies in.
    whole_below: Pfn,
    /// Frames seen on the way: a ledger that cannot look shows none.
    seen: FrameCount,
    /// Searches that ended at the bound of one call; wraps.
    searches: u32,
}

impl UnitState {
    pub(super) const fn new() -> Self {
        Self {
            order: Order::FRAME,
            downgraded: false,
            untold: false,
            blocks_gone: false,
            whole_below: Pfn::new(0),
            seen: FrameCount::ZERO,
            searches: 0,
        }
    }

    pub(super) const fn order(self) -> Order {
        self.order
    }

    pub(super) const fn searches(self) -> u32 {
        self.searches
    }

    pub(super) const fn whole_below(self) -> Pfn {
        self.whole_below
    }

    /// The host may know nothing of a downgrade.
    pub(super) const fn expect_new_host(&mut self) {
        self.untold |= self.downgraded;
    }
}

impl<const N: usize> Engine<N> {
    /// The smallest block to ask for to give `deficit` frames.
    ///
    /// Whole blocks first even after a downgrade: each one given spares another.
    pub(super) fn ask_order(&mut self, deficit: FrameCount, caps: &Capabilities) -> Order {
        match self.policy.granularity {
            Granularity::Frames => Order::FRAME,
            Granularity::Whole(order) => order,
            Granularity::Adaptive if self.unit.blocks_gone || deficit < caps.unit.frames() => {
                Order::FRAME
            }
            Granularity::Adaptive => caps.unit,
        }
    }

    /// The block in which frames are taken back as long as there are whole ones.
    pub(super) fn return_order(&self, limits: Limits, caps: &Capabilities) -> Order {
        let unit = match self.policy.granularity {
            Granularity::Frames => Order::FRAME,
            Granularity::Whole(order) => order,
            Granularity::Adaptive => caps.unit,
        };
        // After a reset the host has none of them, in one piece or not.
        let whole = self.policy.granularity.smallest() > Order::FRAME;
        if limits.hold(unit) && (whole || !self.mode.is_resetting()) {
            unit
        } else {
            Order::FRAME
        }
    }

    /// Whether a search ended at the bound of one call: the next one gets further.
    pub(super) const fn goes_on(&mut self, stop: Shortage) -> bool {
        let again = matches!(stop, Shortage::Again);
        self.unit.searches = self.unit.searches.wrapping_add(again as u32);
        again
    }

    /// Whole blocks may be there again: a new burst asks for them.
    pub(super) const fn expect_blocks(&mut self) {
        self.unit.blocks_gone = false;
    }

    /// The source had no block of `order`: true if smaller ones may be asked for.
    pub(super) fn blocks_ran_out(&mut self, order: Order) -> bool {
        let may_fall_back =
            self.policy.granularity == Granularity::Adaptive && order > Order::FRAME;
        self.unit.blocks_gone |= may_fall_back;
        may_fall_back
    }

    /// Notes in which blocks frames were just given, and says so if it is news.
    pub(super) fn note_inflated<T: Transport, S>(
        &mut self,
        order: Order,
        reason: Shortage,
        io: &mut Io<'_, T, S>,
    ) {
        let from = io.caps.unit;
        let fell_back = self.policy.granularity == Granularity::Adaptive && order < from;
        if fell_back && !self.unit.downgraded {
            self.unit.downgraded = true;
            self.counters.downgrades = self.counters.downgrades.wrapping_add(1);
            self.events.push(Event::Downgraded { from, reason });
            self.unit.untold = true;
        }
        if !self.unit.downgraded || fell_back {
            self.unit.order = order;
        }
        self.forget_whole_blocks();
    }

    /// Given frames are about to change: what was found whole may not be.
    pub(super) const fn forget_whole_blocks(&mut self) {
        self.unit.whole_below = Pfn::new(0);
        self.unit.seen = FrameCount::ZERO;
    }

    /// Looks whether all given frames make whole blocks again, as far as the budget
    /// reaches.
    pub(super) fn look_for_upgrade<T: Transport, S: Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        let adaptive = self.policy.granularity == Granularity::Adaptive;
        if !adaptive || !self.unit.downgraded {
            return;
        }
        while self.unit.whole_below != Pfn::LIMIT && io.budget.spend_look() {
            let from = self.unit.whole_below;
            // A neighbour given by the other path belongs to the same block.
            let inside = !from.is_aligned(io.caps.unit);
            match next_held(io.source, from) {
                Some((range, _)) if range.start() == from || !inside => {
                    let whole = inside || range.start().is_aligned(io.caps.unit);
                    self.unit.seen = self.unit.seen.saturating_add(range.count());
                    self.unit.whole_below = if whole { range.end() } else { Pfn::LIMIT };
                }
                // The end, or a broken block: looked at again once the balloon has changed.
                found => {
                    let all = self.unit.seen == held(io.source);
                    if found.is_none() && !inside && all {
                        self.upgrade(io);
                    }
                    self.unit.whole_below = Pfn::LIMIT;
                }
            }
        }
    }

    fn upgrade<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) {
        self.unit.downgraded = false;
        let order = io.caps.unit;
        self.unit.order = order;
        self.counters.upgrades = self.counters.upgrades.wrapping_add(1);
        self.events.push(Event::Upgraded(order));
        self.unit.untold = true;
    }

    /// Tells the host the unit if it changed; again later if that fails.
    pub(super) fn announce_unit<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) {
        if !self.unit.untold || self.failed.is_some() || self.host.is_waiting(io.now) {
            return;
        }
        let told = io.transport.announce_unit(self.unit.order);
        self.unit.untold = self.note(told, io.now).is_none();
    }
}
