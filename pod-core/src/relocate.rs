//! Moving one guest frame's entry to a hole: what a guest's balloon compaction asks for.
//!
//! The guest has a hole (a ballooned page) where it wants memory, and memory where it wants the
//! hole. Doing it as one operation changes no count, so it works at the guest's limit, above it,
//! and with no free frame in the host.
//!
//! Three ways lead there. Content that has to be kept moves with its frame; a host that cannot do
//! that populates the destination first and copies. Content that nobody needs never moves: the
//! destination is populated with the frame it wants and the source released, or the source is
//! released first and the destination promised.

use core::error::Error;
use core::fmt;

use crate::batch::{Batch, Job};
use crate::frame::Flushed;
use crate::pod::Dying;
use crate::{
    Backing, Budget, Entry, Event, Frame, FrameCount, Gfn, Host, Mfn, NeedsFlush, Order, Pattern,
    Pod, Users, Zeroed,
};

/// Whether the content has to move along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The destination has to read what the source held.
    Keep,
    /// Nobody cares (balloon pages): the destination gets the frame that makes its superpage
    /// whole again if that can be had, zeroed. If not it becomes a promise, and the source's
    /// frame its backing: by the time of the touch the right frame may be back.
    Discard,
}

/// Why an entry was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelocateError {
    /// The guest is being torn down.
    Dying,
    /// A run is not on the map, not aligned, or the order is too large.
    OutOfRange,
    /// The destination is not all hole.
    Occupied,
    /// The source is not one run of RAM or promise, or the host can neither move nor copy it.
    NotMovable,
    /// Somebody else uses the frame.
    InUse,
    /// No memory for a table; nothing was changed.
    NoTableMemory,
    /// The host cannot move frames, and there is none to copy to: the cache is empty, and the
    /// guest is at its limit or the host has no memory.
    NoFrame,
    /// A part or all of both is hole now: the table failed on the way there and on the way back.
    /// The frames are back in the cache or with the host.
    BothHoles,
    /// The source could be removed only in part: so many pages from the start are moved, the
    /// others stayed.
    Partial(FrameCount),
    /// A part or all of the source stayed, and the table would not take the destination back. What
    /// the source still has is the content; where it is a hole, the destination's is.
    BothMapped,
}

impl fmt::Display for RelocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dying => "guest is dying",
            Self::OutOfRange => "run is not on the guest's map",
            Self::Occupied => "destination is not a hole",
            Self::NotMovable => "source is not one run of memory or promise",
            Self::InUse => "frame has another user",
            Self::NoTableMemory => "no memory for a table",
            Self::NoFrame => "no frame to copy to",
            Self::BothHoles => "table failed twice, both runs have holes",
            Self::Partial(_) => "only the start of the run was moved",
            Self::BothMapped => "table failed twice, both runs are mapped",
        })
    }
}

impl Error for RelocateError {}

impl From<Dying> for RelocateError {
    fn from(_: Dying) -> Self {
        Self::Dying
    }
}

impl Pod<'_> {
    /// Moves the entry of `from` to the hole `to`; afterwards `from` is the hole.
    ///
    /// Splits at most the one leaf `from` lies in.
    ///
    /// # Errors
    /// See [`RelocateError`]; all but `BothHoles`, `Partial` and `BothMapped` leave what the
    /// guest has where it was. Leaves may be split, and a frame taken out be back in the cache.
    pub fn relocate<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        from: Gfn,
        to: Gfn,
        order: Order,
        content: Content,
        budget: &mut Budget,
    ) -> Result<(), RelocateError> {
        let length = order.frames();
        let on_map = self.end_of(from, length).is_some() && self.end_of(to, length).is_some();
        let aligned = from.is_aligned(order) && to.is_aligned(order);
        if !on_map || !aligned || order > self.superpage() || from == to {
            return Err(RelocateError::OutOfRange);
        }
        self.check_alive(host)?;
        let mut at = to;
        while at.get() < to.get() + length.get() {
            budget.spend(1);
            let leaf = host.lookup(at);
            if leaf.entry != Entry::Hole {
                return Err(RelocateError::Occupied);
            }
            at = at.plus(leaf.room_from(at).max(1));
        }
        budget.spend(1);
        let source = host.lookup(from);
        if source.order < order {
            return Err(RelocateError::NotMovable);
        }
        match source.at(from) {
            Entry::Hole | Entry::Special => Err(RelocateError::NotMovable),
            promise @ Entry::Promise(_) => {
                self.move_promise(host, (from, to, order), promise, budget)
            }
            Entry::Ram { mfn, .. } if host.users(mfn, order) != Users::None => {
                Err(RelocateError::InUse)
            }
            ram @ Entry::Ram { mfn, attr } => {
                let runs = (from, to, order);
                let result = match content {
                    Content::Keep if host.moves_frames() => {
                        self.move_frame(host, runs, ram, mfn, budget)
                    }
                    Content::Keep => match self.any_frame(host, to, order, budget) {
                        Some(frame) => self.swap(host, runs, (mfn, attr), frame, content, budget),
                        None => Err(RelocateError::NoFrame),
                    },
                    Content::Discard => match self.own_frame(host, to, order, budget) {
                        Some(frame) => self.swap(host, runs, (mfn, attr), frame, content, budget),
                        None => self.swap_promise(host, runs, (mfn, attr), budget),
                    },
                };
                let index = self.regions().index_of(to);
                self.promote(host, index, budget);
                result
            }
        }
    }

    /// No frame is involved: the promise moves.
    fn move_promise<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (from, to, order): (Gfn, Gfn, Order),
        promise: Entry,
        budget: &mut Budget,
    ) -> Result<(), RelocateError> {
        let length = order.frames().get();
        let taken_back = |gone: bool| match gone {
            true => RelocateError::NoTableMemory,
            false => RelocateError::BothMapped,
        };
        let (applied, complete) = self.write(host, to, order, Entry::Hole, promise);
        if !complete {
            let gone = self.undo(host, (to, applied), promise, Entry::Hole, budget);
            return Err(taken_back(gone == applied));
        }
        let (applied, complete) = self.write(host, from, order, promise, Entry::Hole);
        if complete {
            return Ok(());
        }
        // What the source does not take back stays at the destination.
        let back = self.undo(host, (from, applied), Entry::Hole, promise, budget);
        let gone = if back == applied {
            self.undo(host, (to, length), promise, Entry::Hole, budget) == length
        } else {
            let rest = (to.plus(applied), length - applied);
            self.undo(host, (to, back), promise, Entry::Hole, budget);
            self.undo(host, rest, promise, Entry::Hole, budget);
            false
        };
        Err(taken_back(gone))
    }

    /// Writes back what was just written, leaf by leaf: that needs no memory and should not fail.
    /// How many frames from the start have the entry again.
    fn undo<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (gfn, count): (Gfn, u64),
        was: Entry,
        now: Entry,
        budget: &mut Budget,
    ) -> u64 {
        let mut done = 0;
        while done < count {
            let at = gfn.plus(done);
            budget.spend(1);
            let room = host.lookup(at).room_from(at).min(count - done);
            let order = Order::fitting(at.get(), room, Order::MAX);
            let (applied, complete) =
                self.write(host, at, order, was.advanced(done), now.advanced(done));
            done += applied;
            if !complete {
                break;
            }
        }
        done
    }

    /// The frame that belongs at `to` in its region's machine run, if it can be had.
    fn own_frame<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        to: Gfn,
        order: Order,
        budget: &mut Budget,
    ) -> Option<Frame<Zeroed>> {
        let index = self.regions().index_of(to);
        let run = self.region(index).run()?;
        let base = Mfn::new(u64::from(run) << self.superpage().get());
        let own = base.plus(self.page_of(to));
        let cached = self.cache().take_at(own, order);
        if cached.is_some() || !self.may_grow(order) {
            return cached;
        }
        let backing = host.alloc_at(own, order)?;
        if (backing.mfn(), backing.order()) != (own, order) {
            host.free(backing);
            return None;
        }
        Some(backing.into_zeroed(host, budget))
    }

    /// Whether the host may be asked for one more run, until the source's is back with it. With
    /// debt that would stay too, and the guest own more than before.
    const fn may_grow(&self, order: Order) -> bool {
        let owned = self.st.populated + self.st.cache.count() + order.frames().get();
        self.debt() == 0 && owned <= self.st.cfg.limit.get()
    }

    /// A frame to copy to: its own, one of the cache, or, without debt, one more of the host.
    fn any_frame<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        to: Gfn,
        order: Order,
        budget: &mut Budget,
    ) -> Option<Frame<Zeroed>> {
        let node = host.home(to);
        let own = self.own_frame(host, to, order, budget);
        if let Some(frame) = own.or_else(|| self.cache().take(order, node)) {
            return Some(frame);
        }
        if !self.may_grow(order) {
            return None;
        }
        let backing = host.alloc(order, node)?;
        if backing.order() != order {
            host.free(backing);
            return None;
        }
        Some(backing.into_zeroed(host, budget))
    }

    /// The destination gets `frame`, the source's own goes where released frames go.
    fn swap<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (from, to, order): (Gfn, Gfn, Order),
        ram: (Mfn, crate::Attr),
        frame: Frame<Zeroed>,
        content: Content,
        budget: &mut Budget,
    ) -> Result<(), RelocateError> {
        let mut batch = Batch::EMPTY;
        let mfn = frame.mfn();
        let index = self.regions().index_of(to);
        if !self.hold(host, &mut batch, from, order, ram, Job::Give(Entry::Hole)) {
            self.return_own(host, Backing::Zeroed(frame), index, budget);
            return Err(RelocateError::NoTableMemory);
        }
        let entry = Entry::Ram { mfn, attr: ram.1 };
        let copied = content == Content::Keep;
        let (applied, complete) = if copied {
            // No virtual CPU writes the source any more.
            Flushed::new(host);
            budget.spend_on(order.frames());
            let result = host.copy(from, to, order, entry);
            self.written(to, order, Entry::Hole, entry, result)
        } else {
            self.write(host, to, order, Entry::Hole, entry)
        };
        if !complete {
            host.thaw(from, order);
            let gone = self.undo(host, (to, applied), entry, Entry::Hole, budget);
            let (stuck, length) = (applied - gone, order.frames().get());
            if stuck > 0 {
                host.event(Event::Populated {
                    gfn: to.plus(gone),
                    mfn: mfn.plus(gone),
                    count: FrameCount::new(stuck),
                });
            }
            if !copied && applied == 0 {
                self.return_own(host, Backing::Zeroed(frame), index, budget);
            } else {
                let flushed = Flushed::new(host);
                let start = if stuck == 0 { length } else { gone };
                for (mfn, order) in Self::pieces(mfn, start)
                    .chain(Self::pieces(mfn.plus(applied), length - applied.max(start)))
                {
                    let piece = Frame::<NeedsFlush>::unmapped(mfn, order).flushed(&flushed);
                    self.return_own(host, Backing::Dirty(piece), index, budget);
                }
            }
            return Err(match stuck {
                0 if copied && applied == 0 => RelocateError::NotMovable,
                0 => RelocateError::NoTableMemory,
                _ => RelocateError::BothMapped,
            });
        }
        host.event(Event::Populated {
            gfn: to,
            mfn,
            count: order.frames(),
        });
        let kept = self.settle(host, &mut batch, budget).kept;
        if kept == 0 {
            return Ok(());
        }
        // The destination holds the only copy of what was removed: that stays there.
        let moved = order.frames().get() - kept;
        let copy = (to.plus(moved), mfn.plus(moved), kept);
        let taken_back = self.take_back(host, copy, entry.advanced(moved), budget);
        self.settle_run(index);
        self.stayed(host, moved, taken_back)
    }

    /// Removes the end of a copy, of which the guest keeps the original; whether all is gone.
    fn take_back<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (gfn, mfn, count): (Gfn, Mfn, u64),
        entry: Entry,
        budget: &mut Budget,
    ) -> bool {
        let used =
            Self::pieces(mfn, count).any(|(mfn, order)| host.users(mfn, order) != Users::None);
        if used {
            return false;
        }
        let gone = self.undo(host, (gfn, count), entry, Entry::Hole, budget);
        if gone > 0 {
            let flushed = Flushed::new(host);
            self.let_go(host, (gfn, mfn, gone), &flushed, budget);
        }
        gone == count
    }

    /// The answer where the source, or its end, is still there.
    fn stayed<H: Host + ?Sized>(
        &mut self,
        host: &H,
        moved: u64,
        taken_back: bool,
    ) -> Result<(), RelocateError> {
        self.check_alive(host)?;
        Err(match (taken_back, moved) {
            (false, _) => RelocateError::BothMapped,
            // A user appeared while the source was being frozen: it keeps its frame.
            (true, 0) => RelocateError::InUse,
            (true, _) => RelocateError::Partial(FrameCount::new(moved)),
        })
    }

    /// The destination becomes a promise, the source's frame goes to the cache for it.
    fn swap_promise<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (from, to, order): (Gfn, Gfn, Order),
        ram: (Mfn, crate::Attr),
        budget: &mut Budget,
    ) -> Result<(), RelocateError> {
        let promise = Entry::Promise(Pattern::ZERO);
        let mut batch = Batch::EMPTY;
        if !self.hold(host, &mut batch, from, order, ram, Job::Give(Entry::Hole)) {
            return Err(RelocateError::NoTableMemory);
        }
        let (applied, complete) = self.write(host, to, order, Entry::Hole, promise);
        if !complete {
            host.thaw(from, order);
            let gone = self.undo(host, (to, applied), promise, Entry::Hole, budget);
            return Err(match applied - gone {
                0 => RelocateError::NoTableMemory,
                _ => RelocateError::BothMapped,
            });
        }
        let settled = self.settle(host, &mut batch, budget);
        self.st.alarm.returned += settled.stolen;
        let kept = settled.kept;
        if kept == 0 {
            return Ok(());
        }
        let moved = order.frames().get() - kept;
        let end = (to.plus(moved), kept);
        let taken_back = self.undo(host, end, promise, Entry::Hole, budget) == kept;
        self.stayed(host, moved, taken_back)
    }

    fn return_own<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        frame: Backing,
        index: u32,
        budget: &mut Budget,
    ) {
        if self.debt() > 0 {
            let zeroed = frame.into_zeroed(host, budget);
            self.stash(host, zeroed, Some(index));
        } else {
            host.free(frame);
        }
        self.settle_run(index);
    }

    fn move_frame<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (from, to, order): (Gfn, Gfn, Order),
        ram: Entry,
        mfn: Mfn,
        budget: &mut Budget,
    ) -> Result<(), RelocateError> {
        if host.freeze(from, order).is_err() {
            return Err(RelocateError::NoTableMemory);
        }
        let mut flushed = Flushed::new(host);
        if host.users(mfn, order) != Users::None || self.check_alive(host).is_err() {
            host.thaw(from, order);
            self.split_noted(from, order);
            self.check_alive(host)?;
            return Err(RelocateError::InUse);
        }
        let length = order.frames().get();
        let (applied, complete) = self.write(host, from, order, ram, Entry::Hole);
        if !complete {
            let back = self.undo(host, (from, applied), Entry::Hole, ram, budget);
            Self::thaw_rest(host, from, order, applied);
            if back == applied {
                return Err(RelocateError::NoTableMemory);
            }
            let flushed = Flushed::new(host);
            let lost = (from.plus(back), mfn.plus(back), applied - back);
            self.let_go(host, lost, &flushed, budget);
            return Err(RelocateError::BothHoles);
        }
        if !host.freeze_stops_reads() {
            flushed = Flushed::new(host);
        }
        let (applied, complete) = self.write(host, to, order, Entry::Hole, ram);
        if complete {
            let count = order.frames();
            host.event(Event::Unmapped {
                gfn: from,
                mfn,
                count,
                promised: false,
            });
            host.event(Event::Populated {
                gfn: to,
                mfn,
                count,
            });
            return Ok(());
        }
        let gone = self.undo(host, (to, applied), ram, Entry::Hole, budget);
        if gone > 0 {
            // The guest may have used them there.
            flushed = Flushed::new(host);
        }
        // What the destination does not give back has moved.
        let stuck = (from.plus(gone), mfn.plus(gone), applied - gone);
        if stuck.2 > 0 {
            let count = FrameCount::new(stuck.2);
            host.event(Event::Unmapped {
                gfn: stuck.0,
                mfn: stuck.1,
                count,
                promised: false,
            });
            host.event(Event::Populated {
                gfn: to.plus(gone),
                mfn: stuck.1,
                count,
            });
        }
        let (first, second) = match stuck.2 {
            0 => (length, length),
            _ => (gone, applied),
        };
        let mut lost = false;
        for (start, end) in [(0, first), (second, length)] {
            let (gfn, count) = (from.plus(start), end - start);
            let back = self.undo(host, (gfn, count), Entry::Hole, ram.advanced(start), budget);
            if back < count {
                lost = true;
                let rest = (gfn.plus(back), mfn.plus(start + back), count - back);
                self.let_go(host, rest, &flushed, budget);
            }
        }
        Err(match (lost, stuck.2) {
            (true, _) => RelocateError::BothHoles,
            (false, 0) => RelocateError::NoTableMemory,
            (false, _) => RelocateError::BothMapped,
        })
    }

    /// Frames that are out of the table for good: to the cache while promises lack frames.
    fn let_go<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        (gfn, mfn, count): (Gfn, Mfn, u64),
        flushed: &Flushed,
        budget: &mut Budget,
    ) {
        host.event(Event::Unmapped {
            gfn,
            mfn,
            count: FrameCount::new(count),
            promised: false,
        });
        for (mfn, order) in Self::pieces(mfn, count) {
            let frame = Frame::<NeedsFlush>::unmapped(mfn, order).flushed(flushed);
            if self.debt() > 0 {
                let zeroed = frame.cleared(host, budget);
                self.stash(host, zeroed, None);
            } else {
                host.free(Backing::Dirty(frame));
            }
        }
    }
}
