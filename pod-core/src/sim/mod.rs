//! A simulated host: the engine's own tests and the tests of other hosts run on it.
//!
//! It has second-stage tables with three leaf sizes and a budget of table pages, translation
//! caches that keep stale entries until flushed, guest writers that use them at the worst moment,
//! a model of page contents, and a script of failures. It checks what no return value shows: a
//! frame has one home, a populated page has the promised content, nothing reaches a frame that
//! was given away, and the guest reads what it wrote. A violation panics.
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    reason = "a simulator stops at the first mistake"
)]

mod boot;
mod full;
mod host;
mod key;
mod map;
mod program;
mod table;
mod world;

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use crate::{Config, Entry, Event, Gfn, Leaf, Mfn, Order, Policy, Users};
use map::Map;
use table::Table;

pub use boot::{Balloon, Boot, Outcome, Scrub};
pub use full::Full;
pub use program::{Step, run_program};
pub use table::TableWork;
pub use world::{Memory, World};

/// Content of a page, as far as the engine can tell contents apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// One word repeated.
    Filled(u64),
    /// Data from the first word on.
    Data(u64),
    /// Looks zero in its first line, and is not.
    Late(u64),
}

impl Content {
    /// All zero.
    pub const ZERO: Self = Self::Filled(0);
}

/// Why an access of the guest did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A promise: the host has to call [`Pod::demand`](crate::Pod::demand).
    Promise,
    /// Nothing there.
    Hole,
    /// Frozen: the guest waits until the engine is done.
    Frozen,
}

/// Failures to come, by number of the callback.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// This fallible callback gives the adverse answer (1 is the next one).
    pub fail_at: Option<u64>,
    /// So do all after it.
    pub fail_on: bool,
    /// A failing table write of n frames applies this many of them, modulo n.
    pub prefix: u64,
    /// The guest starts dying at this callback.
    pub die_at: Option<u64>,
    pub(crate) fallible: Cell<u64>,
    pub(crate) calls: Cell<u64>,
}

impl Script {
    /// Fallible callbacks so far.
    #[must_use]
    pub const fn fallible(&self) -> u64 {
        self.fallible.get()
    }

    /// All callbacks so far.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.calls.get()
    }
}

/// What the host of the simulation does differently from the usual.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Traits {
    /// Freezing removes the mapping; otherwise it write-protects.
    pub unmaps: bool,
    /// Fresh frames hold old data.
    pub dirty_heap: bool,
    /// Only single frames are free, one in each superpage.
    pub scattered: bool,
    /// The host tracks writes.
    pub tracks_writes: bool,
    /// Memory nodes: each has an equal part of the machine and is home to one of the guest.
    pub nodes: u8,
    /// Largest leaf allowed.
    pub max_order: Order,
    /// What to do on exhaustion.
    pub policy: Policy,
    /// A table refuses leaves of superpage size: it writes 2^9 small entries instead, and a
    /// failure may come in the middle (a user-space host).
    pub logical: bool,
    /// The last virtual CPU uses every entry the moment it becomes RAM, and goes on writing
    /// through that translation until the next flush.
    pub eager: bool,
    /// Cannot map a frame elsewhere with its content, but copy it.
    pub copies: bool,
    /// The write of an existing leaf at its own order may fail, too.
    pub own_order_fails: bool,
    /// Always wants the engine to return.
    pub hurried: bool,
    /// Forgets to drop stale translations: for showing that the checks notice.
    pub forgets_flush: bool,
}

/// Counters of one simulated host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Work {
    /// Table lookups.
    pub lookups: u64,
    /// Flushes of all translation caches.
    pub flushes: u64,
    /// First words read.
    pub peeks: u64,
    /// Whole pages read.
    pub scans: u64,
    /// Whole pages written.
    pub fills: u64,
    /// Runs given back by the engine.
    pub frees: u64,
    /// Guest accesses that needed the engine.
    pub faults: u64,
}

/// One guest's host.
#[derive(Clone, Debug)]
pub struct Sim {
    /// Failures to come.
    pub script: Script,
    /// Behaviour of the host.
    pub traits: Traits,
    /// Writes that vCPUs issue right before the next flush, if a translation lets them.
    pub writers: Vec<(usize, Gfn, Content)>,
    /// Those that went through since this was last cleared.
    pub landed: Vec<(Gfn, Content)>,
    /// Events since this was last cleared, if recording.
    pub events: Vec<Event>,
    /// Whether to record events.
    pub recording: bool,
    /// Counters.
    pub work: Work,
    table: Table,
    frozen: Map,
    content: Vec<Content>,
    taken: Map,
    mapped: Map,
    pinned: Map,
    special: Map,
    retired: Vec<u64>,
    /// Frames the host can still give.
    heap_left: u64,
    heap_at: usize,
    tlb: Vec<BTreeMap<u64, (u64, bool)>>,
    reverse: Vec<u64>,
    log: Map,
    written: Vec<bool>,
    truth: Vec<Option<Content>>,
    config: Config,
    lookups: Cell<u64>,
}

const UNMAPPED: u64 = u64::MAX;

impl Sim {
    /// A host with `machine` frames for a guest of `config`, and this many virtual CPUs.
    #[must_use]
    pub fn new(config: &Config, machine: u64, vcpus: usize) -> Self {
        let max = config.max.get();
        Self {
            script: Script::default(),
            traits: Traits {
                unmaps: true,
                dirty_heap: true,
                scattered: false,
                tracks_writes: true,
                nodes: 1,
                max_order: Order::MAX,
                policy: Policy::Pause,
                logical: false,
                eager: false,
                copies: false,
                own_order_fails: false,
                hurried: false,
                forgets_flush: false,
            },
            writers: Vec::new(),
            landed: Vec::new(),
            events: Vec::new(),
            recording: false,
            work: Work::default(),
            table: Table::new(config.geometry, max),
            frozen: Map::new(max as usize),
            content: vec![Content::Data(0xdead); machine as usize],
            taken: Map::new(machine as usize),
            mapped: Map::new(machine as usize),
            pinned: Map::new(machine as usize),
            special: Map::new(machine as usize),
            retired: Vec::new(),
            heap_left: machine,
            heap_at: 0,
            tlb: vec![BTreeMap::new(); vcpus],
            reverse: vec![UNMAPPED; machine as usize],
            log: Map::new(max as usize),
            written: vec![true; max.div_ceil(config.geometry.size()) as usize],
            truth: vec![None; max as usize],
            config: *config,
            lookups: Cell::new(0),
        }
    }

    /// Frames of the host that are free.
    #[must_use]
    pub const fn heap_left(&self) -> u64 {
        self.heap_left
    }

    /// Limits what the host can still give.
    pub const fn set_heap(&mut self, frames: u64) {
        self.heap_left = frames;
    }

    /// Table pages the host can still give; `None` for as many as wanted.
    pub const fn set_table_pages(&mut self, pages: Option<u32>) {
        self.table.pages = pages;
    }

    /// Table pages left.
    #[must_use]
    pub const fn table_pages(&self) -> Option<u32> {
        self.table.pages
    }

    /// Work of the table.
    #[must_use]
    pub const fn table_work(&self) -> TableWork {
        self.table.work
    }

    /// The leaf at a frame, without counting as a callback.
    #[must_use]
    pub fn leaf(&self, gfn: Gfn) -> Leaf {
        self.table.lookup(gfn)
    }

    /// Lookups by the engine.
    #[must_use]
    pub const fn lookup_count(&self) -> u64 {
        self.lookups.get()
    }

    /// All work for the engine: lookups, and pages peeked at, scanned or filled.
    #[must_use]
    pub const fn page_work(&self) -> u64 {
        self.lookups.get() + self.work.peeks + self.work.scans + self.work.fills
    }

    /// Somebody else uses the frame now, or no longer does.
    pub fn set_pinned(&mut self, mfn: Mfn, pinned: bool) {
        self.pinned.put(mfn.get(), 1, pinned);
    }

    /// The frame is shared with the hypervisor.
    pub fn set_special(&mut self, mfn: Mfn) {
        self.special.put(mfn.get(), 1, true);
    }

    /// Gives an entry another state, behind the engine's back (log-dirty, read-only).
    pub fn set_attr(&mut self, gfn: Gfn, attr: crate::Attr) {
        if let Entry::Ram { mfn, .. } = self.table.lookup(gfn).at(gfn) {
            self.table.split_to(gfn, Order::FRAME);
            self.table
                .write(gfn, Order::FRAME, Entry::Ram { mfn, attr });
        }
    }

    /// Maps a frame where the engine did not put it.
    pub fn set_frame(&mut self, gfn: Gfn, mfn: Mfn) {
        self.table.split_to(gfn, Order::FRAME);
        self.table.write(gfn, Order::FRAME, Entry::ram(mfn));
    }

    /// Frames the host calls dirty for migration.
    #[must_use]
    pub fn dirty_log(&self) -> Vec<u64> {
        self.log.ones()
    }

    /// Broken frames that left the engine.
    #[must_use]
    pub fn retired(&self) -> &[u64] {
        &self.retired
    }

    /// Frames of the host that this guest owns: mapped or in the engine's cache.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.taken.count()
    }

    fn user_of(&self, mfn: u64, count: u64) -> Users {
        if self.special.any(mfn, count) {
            Users::Special
        } else if self.pinned.any(mfn, count) {
            Users::Dma
        } else {
            Users::None
        }
    }

    /// A virtual CPU writes a page; stale translations count.
    ///
    /// # Errors
    /// The fault, if no translation allows it.
    pub fn guest_write(&mut self, vcpu: usize, gfn: Gfn, content: Content) -> Result<(), Fault> {
        let mfn = match self.tlb[vcpu].get(&gfn.get()) {
            Some((mfn, true)) => *mfn,
            _ => {
                let mfn = self.walk(gfn, true)?;
                self.tlb[vcpu].insert(gfn.get(), (mfn, true));
                mfn
            }
        };
        self.content[mfn as usize] = content;
        self.truth[gfn.get() as usize] = Some(content);
        let region = gfn.get() / self.config.geometry.size();
        self.written[region as usize] = true;
        self.log.put(gfn.get(), 1, true);
        Ok(())
    }

    /// A virtual CPU reads a page.
    ///
    /// # Errors
    /// The fault, if no translation allows it.
    pub fn guest_read(&mut self, vcpu: usize, gfn: Gfn) -> Result<Content, Fault> {
        let mfn = match self.tlb[vcpu].get(&gfn.get()) {
            Some((mfn, _)) => *mfn,
            None => {
                let mfn = self.walk(gfn, false)?;
                self.tlb[vcpu].insert(gfn.get(), (mfn, false));
                mfn
            }
        };
        Ok(self.content[mfn as usize])
    }

    fn walk(&mut self, gfn: Gfn, write: bool) -> Result<u64, Fault> {
        if self.frozen.has(gfn.get()) && (write || self.traits.unmaps) {
            return Err(Fault::Frozen);
        }
        match self.table.lookup(gfn).at(gfn) {
            Entry::Ram { mfn, .. } => Ok(mfn.get()),
            Entry::Promise(_) => {
                self.work.faults += 1;
                Err(Fault::Promise)
            }
            Entry::Hole | Entry::Special => Err(Fault::Hole),
        }
    }

    /// What the guest would read at a frame, without a translation.
    #[must_use]
    pub fn visible(&self, gfn: Gfn) -> Option<Content> {
        match self.table.lookup(gfn).at(gfn) {
            Entry::Ram { mfn, .. } => Some(self.content[mfn.get() as usize]),
            Entry::Promise(p) => Some(Content::Filled(self.config.word(p))),
            Entry::Hole | Entry::Special => None,
        }
    }

    /// The guest gave the content of these pages up: what became a promise reads as its pattern.
    pub fn forget(&mut self, gfn: Gfn, count: u64) {
        for i in 0..count {
            let at = gfn.plus(i);
            if let Entry::Promise(_) = self.table.lookup(at).entry {
                self.truth[at.get() as usize] = self.visible(at);
            }
        }
    }

    /// The guest expects this content (after an operation that moves or drops it).
    pub fn expect(&mut self, gfn: Gfn, content: Option<Content>) {
        self.truth[gfn.get() as usize] = content;
    }

    /// Checks what must hold between operations.
    pub fn check(&self) {
        for gfn in (0..self.config.max.get()).map(Gfn::new) {
            let (seen, wrote) = (self.visible(gfn), self.truth[gfn.get() as usize]);
            assert_eq!(seen, wrote, "the guest reads something else at {gfn}");
            assert!(!self.frozen.has(gfn.get()), "{gfn} was left frozen");
            match self.table.lookup(gfn).at(gfn) {
                Entry::Ram { mfn, .. } => {
                    assert!(
                        self.taken.has(mfn.get()),
                        "{mfn} is mapped and not the guest's"
                    );
                    let back = self.reverse[mfn.get() as usize];
                    assert_eq!(back, gfn.get(), "reverse map of {mfn}");
                    assert!(
                        self.log.has(gfn.get()),
                        "populated {gfn} is not marked dirty"
                    );
                }
                _ => assert!(
                    self.tlb.iter().all(|t| !t.contains_key(&gfn.get())),
                    "a stale translation of {gfn} outlived the operation"
                ),
            }
        }
        let mapped = self.reverse.iter().filter(|g| **g != UNMAPPED).count();
        assert_eq!(
            mapped as u64,
            self.mapped.count(),
            "stale reverse map entries"
        );
    }

    /// Checks that every frame of the guest that is in no table is zero.
    pub(super) fn check_cached(&self) {
        for mfn in self.taken.ones() {
            let waits = !self.mapped.has(mfn) && !self.retired.contains(&mfn);
            let zero = self.content[mfn as usize] == Content::ZERO;
            assert!(!waits || zero, "cached frame {mfn:#x} is not zero");
        }
    }

    /// A key that is equal for states in which the guest and the table look the same.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        use core::hash::{Hash, Hasher};
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        for gfn in (0..self.config.max.get()).map(Gfn::new) {
            self.table.lookup(gfn).hash(&mut hasher);
            self.visible(gfn).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl core::hash::Hash for Leaf {
    fn hash<S: core::hash::Hasher>(&self, state: &mut S) {
        (self.order, self.entry).hash(state);
    }
}

/// A small deterministic hash.
pub(crate) struct Fnv(pub(crate) u64);

impl core::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
