//! The host side: what a hypervisor, a VMM or a simulator implements.
//!
//! Rules that hold for every method:
//! * The engine calls with its own counters consistent, and never re-enters itself. The host
//!   holds whatever lock guards the engine and the table during the whole call; a method must
//!   not take a lock that is ordered before that one.
//! * No method populates. [`Host::lookup`] answers what is there, nothing else.
//! * `gfn` and `mfn` arguments are aligned to `order`; the run never leaves the guest.

use core::error::Error;
use core::fmt;

use crate::{Alarm, Backing, Entry, FrameCount, Gfn, Leaf, Mfn, Node, Order, Stats};

/// A table write that stopped early, because table memory ran out or the run changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetError {
    /// Frames from the start of the run that do have the new entry.
    pub applied: FrameCount,
}

impl SetError {
    /// Nothing was changed.
    pub const NOTHING: Self = Self {
        applied: FrameCount::ZERO,
    };
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table write stopped after {} frames", self.applied)
    }
}

impl Error for SetError {}

/// The table could not be changed to stop writers; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeError;

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("run could not be frozen")
    }
}

impl Error for FreezeError {}

/// Who else may reach a frame, apart from the guest's own translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Users {
    /// Nobody.
    None,
    /// The device model or a back end has it mapped.
    Device,
    /// A device may write it past the tables (passthrough, vhost, direct I/O in flight).
    Dma,
    /// Shared with the hypervisor itself, a page table, or otherwise not plain RAM.
    Special,
}

/// What to do when no frame is left and nothing can be reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Hold the virtual CPU until the balloon or the target helps.
    Pause,
    /// Raise the guest's share by up to this many frames, now.
    Lend(FrameCount),
    /// End the guest.
    Crash,
}

/// What the engine tells the host after the fact, for derived tables, logs and map caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Frames became RAM on `mfn`: set the reverse map, mark them dirty.
    Populated {
        /// First guest frame.
        gfn: Gfn,
        /// First machine frame.
        mfn: Mfn,
        /// Length of the run.
        count: FrameCount,
    },
    /// Frames left the table: clear the reverse map of *every* frame, drop map caches.
    Unmapped {
        /// First guest frame.
        gfn: Gfn,
        /// First machine frame.
        mfn: Mfn,
        /// Length of the run.
        count: FrameCount,
        /// The guest frames are promises now (content known), not holes.
        promised: bool,
    },
    /// A promise of superpage size or larger is populated in smaller parts from now on.
    Splintered {
        /// First frame of the superpage.
        gfn: Gfn,
    },
    /// Small entries became one leaf, without copying.
    Promoted {
        /// First frame of the leaf.
        gfn: Gfn,
        /// Its size.
        order: Order,
    },
    /// The race between guest and balloon looks lost, or no longer does.
    Pressure(Alarm),
}

/// The host of one guest. Twelve methods have no default worth having; the rest refine.
pub trait Host {
    /// The leaf that holds `gfn`. Never populates.
    fn lookup(&self, gfn: Gfn) -> Leaf;

    /// Gives the whole run this entry, splitting or replacing leaves as needed.
    ///
    /// Each leaf changes atomically (break-before-make is the host's business). A run of
    /// superpage order becomes one leaf where the table allows. Ends a freeze of the run. A host
    /// whose memory has borders inside such a run (memory slots) cuts it there by itself. A log of
    /// dirty pages is written here: [`Event::Populated`] comes when the guest reaches the page.
    ///
    /// # Errors
    /// How many frames from the start have the new entry; the rest keep the old one. The
    /// write of one existing leaf at its own order should not fail: with it the engine takes back
    /// what it began. If it does, no frame is lost, but a run may end in two parts.
    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError>;

    /// After this and a [`flush`](Host::flush) no virtual CPU writes the run.
    ///
    /// # Errors
    /// When a leaf had to be split and could not be: nothing is changed.
    fn freeze(&mut self, gfn: Gfn, order: Order) -> Result<(), FreezeError>;

    /// Undoes a freeze, of the whole run or of a part. Needs no memory, cannot fail.
    fn thaw(&mut self, gfn: Gfn, order: Order);

    /// Returns when no stale second-stage translation is left on any CPU.
    fn flush(&mut self);

    /// Who else uses any frame of the run. The one test for "may be taken", on every path.
    fn users(&mut self, mfn: Mfn, order: Order) -> Users;

    /// First word of the frame, or `None` if it is surely not one word repeated.
    ///
    /// A cheap rejection while the guest still runs; wrong only towards `Some`.
    fn peek(&mut self, mfn: Mfn) -> Option<u64>;

    /// Whether the whole frame is `word` repeated ([`scan`](crate::scan) does it fast).
    fn is_filled(&mut self, mfn: Mfn, word: u64) -> bool;

    /// Fills the run with `word`: 0 for frames on their way into the cache, a pattern's word
    /// for a promise that carries one.
    fn fill(&mut self, mfn: Mfn, order: Order, word: u64);

    /// A frame for this guest, of exactly this order, from this node if possible.
    fn alloc(&mut self, order: Order, node: Node) -> Option<Backing>;

    /// The guest's frame goes back to the host. Nothing can reach it any more.
    fn free(&mut self, frame: Backing);

    /// Whether the guest is being torn down. Polled at each step; once true, always true.
    fn dying(&self) -> bool;

    /// Whether the call should return soon. Polled at each step.
    fn should_yield(&self) -> bool {
        false
    }

    /// Whether a freeze stops reads as well as writes (unmapping does, write protection does
    /// not). If it does, one flush per batch is enough instead of two.
    fn freeze_stops_reads(&self) -> bool {
        false
    }

    /// Exactly this frame, if it is free in the host: lets a superpage become whole again.
    fn alloc_at(&mut self, _mfn: Mfn, _order: Order) -> Option<Backing> {
        None
    }

    /// Whether the superpage was written since the last call for it; `true` if unknown.
    ///
    /// Test and clear. A host that clears dirty bits must also drop translations which
    /// remember them as set.
    fn written(&mut self, _gfn: Gfn) -> bool {
        true
    }

    /// The largest leaf allowed here (a superpage is an optimisation, never a right).
    fn max_order(&self, _gfn: Gfn) -> Order {
        Order::MAX
    }

    /// The node a guest frame should be backed from.
    fn home(&self, _gfn: Gfn) -> Node {
        Node::default()
    }

    /// The node a machine frame belongs to.
    fn node_of(&self, _mfn: Mfn) -> Node {
        Node::default()
    }

    /// A frame of the cache turned out broken and left the engine for good.
    fn retire(&mut self, _mfn: Mfn) {}

    /// Whether [`set`](Host::set) puts a frame with its content at another guest frame, as a table
    /// of machine frames does. A user-space host, whose frames are only numbers, cannot.
    ///
    /// If not, a [`relocate`](crate::Pod::relocate) that keeps the content asks for a
    /// [`copy`](Host::copy).
    fn moves_frames(&self) -> bool {
        false
    }

    /// Populates the hole at `to` with this entry, as [`set`](Host::set) does, and with the
    /// content of the frozen run at `from`, which stays there.
    ///
    /// The frames of the entry are in no table. No virtual CPU sees the destination without the
    /// content. Asked only of a host that cannot move frames.
    ///
    /// # Errors
    /// How many frames from the start are populated with their content; none if the host cannot
    /// copy.
    fn copy(&mut self, _from: Gfn, _to: Gfn, _order: Order, _entry: Entry) -> Result<(), SetError> {
        Err(SetError::NOTHING)
    }

    /// Notes that the frame must not be taken away any more (see [`Pod::pin`](crate::Pod::pin)).
    fn pin(&mut self, _mfn: Mfn, _order: Order) {}

    /// Something happened. Called when it is complete.
    fn event(&mut self, _event: Event) {}

    /// Nothing is left for `gfn`, after a complete pass over the guest's memory.
    fn exhausted(&mut self, _gfn: Gfn, _stats: &Stats) -> Policy {
        Policy::Pause
    }
}
