//! A domain and its hypervisor.

mod content;
mod domain;
mod p2m;

pub use content::FakeClear;
pub use p2m::FakeP2m;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;

use balloon_core::{FrameCount, FrameRange, Order, Pfn};

use crate::errno::Errno;
use crate::hypercall::calls::{Exchanged, MapEntry, Memory, Woken};
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};

use content::Content;

/// What kind of guest the domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PVH on x86.
    Pvh,
    /// PV.
    Pv,
    /// Arm: translated, but frames cannot be moved.
    Arm,
}

/// What happens to one of the next hypercalls about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Refused as a whole.
    Refuse(Errno),
    /// Only so many extents are served.
    Extents(usize),
    /// A decrease stops after so many frames, be it inside an extent.
    Frames(u64),
    /// Tables have no room for what this call maps.
    NoRoom,
    /// Before it, the toolstack charges the domain for so many frames more or fewer
    /// that the guest knows nothing of, and moves its limit by as many.
    Charge(i64),
}

/// The hypervisor's books about one domain.
///
/// A machine frame is never used twice, so content can be told by it. What the guest
/// wrote is a breach where it goes to the host, and so is a promise of
/// populate-on-demand that is cleared while more is promised than cached.
#[derive(Debug)]
pub struct FakeXen {
    kind: Kind,
    /// What is behind each frame.
    frames: BTreeMap<u64, u64>,
    /// The same the other way round.
    names: BTreeMap<u64, u64>,
    /// Superpage leaves, by first frame.
    leaves: BTreeSet<u64>,
    /// PV: machine frames that page tables name.
    mapped: Rc<RefCell<BTreeSet<u64>>>,
    next_machine: u64,
    owned: u64,
    /// The domain's limit.
    pub limit: FrameCount,
    /// The largest extent the host's heap can serve.
    pub largest: Order,
    /// Frames the host has free.
    pub heap: u64,
    /// Whether it shows what is behind a frame; a policy may forbid that.
    pub looks: bool,
    /// Whether it moves frames; a policy may forbid that, too.
    pub moves: bool,
    /// Extents and moved frames that its tables have room for.
    pub tables: u64,
    /// Whether an extent of order 9 takes room in them, too: not where the table
    /// that is to name it is there already.
    pub superpages_cost: bool,
    /// Whether an extent that they have no room for is mapped up to its middle, as by a
    /// host that maps it in pieces.
    pub maps_in_part: bool,
    /// Frames of extents that are nowhere, but for these.
    in_part: BTreeSet<u64>,
    /// The call under way finds none, whatever there is.
    no_room: bool,
    /// Frames charged to the domain that are nowhere.
    pub lost: u64,
    /// Frames charged to it that the guest knows nothing of.
    unknown: u64,
    /// What it calls the move of a hole: [`Errno::Access`] as of 4.19.5,
    /// [`Errno::Invalid`] before.
    pub hole: Errno,
    /// What happens to the next calls, in order.
    pub faults: VecDeque<Fault>,
    /// Populate-on-demand: promised frames beyond what is cached.
    pub promised: u64,
    /// What is in its memory.
    content: Rc<RefCell<Content>>,
    /// Frames after which the call under way stops.
    stops_after: Option<u64>,
    /// Calls so far.
    pub hypercalls: usize,
    /// What a guest must never do, and did.
    pub breaches: Vec<String>,
    /// How the next suspend ends.
    pub woken: Woken,
    /// What `Param`s read.
    pub params: BTreeMap<u8, u64>,
    /// Where shared info is mapped.
    pub shared_info: Option<Pfn>,
    /// The callback vector.
    pub callback: Option<Vector>,
    /// CPUs the domain has.
    pub vcpus: u32,
    /// Those but the boot CPU that run.
    pub running: BTreeSet<u32>,
    /// Vectors of CPUs that take events by themselves.
    pub upcalls: BTreeMap<u32, Vector>,
    /// Where CPUs' information was registered.
    pub infos: BTreeMap<u32, (Gmfn, InfoSlot)>,
    /// CPUs of ports that were bound to one.
    pub bound: BTreeMap<u32, Vcpu>,
    /// Ports notified.
    pub notified: Vec<Port>,
    /// What was written to the hypervisor's console.
    pub printed: Vec<u8>,
}

impl FakeXen {
    /// A domain with memory behind `memory`, in superpages where they fit, and
    /// the slack of 256 frames above that real toolstacks leave.
    #[must_use]
    pub fn new(kind: Kind, memory: FrameRange) -> Self {
        let mut xen = Self {
            kind,
            frames: BTreeMap::new(),
            names: BTreeMap::new(),
            leaves: BTreeSet::new(),
            mapped: Rc::default(),
            next_machine: 1 << 20,
            owned: memory.count().get(),
            limit: FrameCount::new(memory.count().get() + 256),
            largest: Order::SUPERPAGE,
            heap: u64::MAX,
            looks: true,
            moves: true,
            tables: u64::MAX,
            superpages_cost: true,
            maps_in_part: false,
            in_part: BTreeSet::new(),
            no_room: false,
            lost: 0,
            unknown: 0,
            hole: Errno::Access,
            faults: VecDeque::new(),
            promised: 0,
            content: Rc::default(),
            stops_after: None,
            hypercalls: 0,
            breaches: Vec::new(),
            woken: Woken::Restored,
            params: BTreeMap::new(),
            shared_info: None,
            callback: None,
            vcpus: 1,
            running: BTreeSet::new(),
            upcalls: BTreeMap::new(),
            infos: BTreeMap::new(),
            bound: BTreeMap::new(),
            notified: Vec::new(),
            printed: Vec::new(),
        };
        for pfn in memory.frames() {
            xen.next_machine += 1;
            xen.insert(pfn.get(), xen.next_machine);
            if kind == Kind::Pv {
                xen.mapped.borrow_mut().insert(xen.next_machine);
            }
        }
        let (first, end) = (memory.start().get().div_ceil(512), memory.end().get() / 512);
        xen.leaves = (first..end).map(|n| n * 512).collect();
        xen
    }

    /// Frames the domain is charged for.
    #[must_use]
    pub const fn owned(&self) -> FrameCount {
        FrameCount::new(self.owned)
    }

    /// Whether there is memory behind a frame.
    #[must_use]
    pub fn is_populated(&self, pfn: Pfn) -> bool {
        self.frames.contains_key(&pfn.get())
    }

    /// All frames with memory behind them, in order.
    pub fn populated(&self) -> impl Iterator<Item = Pfn> {
        self.frames.keys().copied().map(Pfn::new)
    }

    /// Whether memory is promised for a frame.
    #[must_use]
    pub fn is_promised(&self, pfn: Pfn) -> bool {
        self.content.borrow().promises.contains(&pfn.get())
    }

    /// The machine frame behind a frame.
    #[must_use]
    pub fn machine(&self, pfn: Pfn) -> Option<Gmfn> {
        self.frames.get(&pfn.get()).copied().map(Gmfn::new)
    }

    /// Superpage leaves.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Makes a hole without the guest's doing.
    pub fn punch(&mut self, pfn: Pfn) {
        self.remove(pfn.get());
    }

    fn fault(&mut self) -> Result<usize, Errno> {
        self.hypercalls += 1;
        (self.stops_after, self.no_room) = (None, false);
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => Ok(usize::MAX),
            Fault::Refuse(errno) => Err(errno),
            Fault::Extents(extents) => Ok(extents),
            Fault::Frames(frames) => {
                self.stops_after = Some(frames);
                Ok(usize::MAX)
            }
            Fault::NoRoom => {
                self.no_room = true;
                Ok(usize::MAX)
            }
            Fault::Charge(frames) => {
                self.charge(frames);
                Ok(usize::MAX)
            }
        }
    }

    /// The toolstack takes away no more than it brought.
    fn charge(&mut self, frames: i64) {
        if let Some(unknown) = self.unknown.checked_add_signed(frames) {
            self.unknown = unknown;
            self.owned = self.owned.saturating_add_signed(frames);
            let limit = self.limit.get().saturating_add_signed(frames);
            self.limit = FrameCount::new(limit);
        }
    }

    /// Takes the memory behind one frame; a leaf around it is split.
    fn remove(&mut self, pfn: u64) -> bool {
        let Some(machine) = self.frames.remove(&pfn) else {
            return false;
        };
        self.names.remove(&machine);
        self.leave(pfn);
        if self.mapped.borrow().contains(&machine) {
            self.breaches
                .push(format!("frame {pfn:#x} left while mapped"));
        }
        self.leaves.remove(&(pfn / 512 * 512));
        self.heap = self.heap.saturating_add(1);
        self.release();
        true
    }

    /// A frame is freed, or needed no more: it joins the cache that covers the
    /// promises, unless that covers them all.
    const fn release(&mut self) {
        if self.promised > 0 {
            self.promised -= 1;
        } else {
            self.owned -= 1;
        }
    }

    /// Populate-on-demand takes what it can use of an extent before the frames are
    /// removed one by one; returns how many it took.
    fn cache(&mut self, extent: Range<u64>) -> u64 {
        let promises = self.content.borrow().promises.range(extent.clone()).count();
        if self.kind != Kind::Pvh || (promises == 0 && self.promised == 0) {
            return 0;
        }
        let mut taken = 0;
        for pfn in extent {
            if self.unpromise(pfn) {
                self.release();
                taken += 1;
            } else if self.promised > 0 && self.remove(pfn) {
                taken += 1;
            }
        }
        taken
    }

    /// Makes promises of the memory behind a range, of which `cached` frames are
    /// kept ready.
    pub fn promise(&mut self, range: FrameRange, cached: FrameCount) {
        for pfn in range.frames().map(Pfn::get) {
            if let Some(machine) = self.frames.remove(&pfn) {
                self.names.remove(&machine);
                self.content.borrow_mut().promises.insert(pfn);
                self.owned -= 1;
                self.promised += 1;
            }
        }
        self.owned += cached.get();
        self.promised -= cached.get();
    }

    fn unpromise(&mut self, pfn: u64) -> bool {
        self.content.borrow_mut().promises.remove(&pfn)
    }

    /// Whoever clears a promise keeps it, which is for a domain whose cache covers
    /// all of them.
    fn clear_promises(&mut self) {
        let touched = core::mem::take(&mut self.content.borrow_mut().touched);
        for pfn in touched {
            if self.promised > 0 {
                self.breaches.push(format!("promise {pfn:#x} was cleared"));
            } else {
                self.touch(Pfn::new(pfn));
            }
        }
    }

    /// The guest writes what nobody else is to read.
    pub fn write(&mut self, pfn: Pfn) {
        self.touch(pfn);
        self.content.borrow_mut().written.insert(pfn.get());
    }

    /// The content of a frame goes to the host.
    fn leave(&mut self, pfn: u64) {
        if self.content.borrow_mut().written.remove(&pfn) {
            self.breaches
                .push(format!("frame {pfn:#x} left with its content"));
        }
    }

    /// The guest touches a frame: what was promised there is kept.
    pub fn touch(&mut self, pfn: Pfn) {
        let promises = self.content.borrow().promises.len() as u64;
        if self.unpromise(pfn.get()) {
            if promises == self.promised {
                self.breaches.push(format!("no memory behind {pfn:?}"));
            }
            self.next_machine += 1;
            self.insert(pfn.get(), self.next_machine);
        }
    }

    /// Whether the tables have room for one mapping more, of this order.
    const fn map_more(&mut self, order: Order) -> bool {
        if order.get() == Order::SUPERPAGE.get() && !self.superpages_cost {
            return true;
        }
        let room = self.tables > 0 && !self.no_room;
        self.tables = self.tables.saturating_sub(1);
        room
    }

    /// Puts memory behind a frame; whether there was some.
    fn insert(&mut self, pfn: u64, machine: u64) -> bool {
        self.names.insert(machine, pfn);
        self.frames.insert(pfn, machine).is_some()
    }

    fn known(&self, vcpu: Vcpu) -> Result<(), Errno> {
        if vcpu.get() < self.vcpus {
            Ok(())
        } else {
            Err(Errno::NoEntry)
        }
    }

    fn name(&self, gmfn: Gmfn) -> Option<u64> {
        match self.kind {
            Kind::Pv => self.names.get(&gmfn.get()).copied(),
            _ => Some(gmfn.get()),
        }
    }
}

impl Memory for FakeXen {
    fn decrease_reservation(&mut self, extents: &[Gmfn], order: Order) -> Result<usize, Errno> {
        let most = self.fault()?;
        if order > Order::SUPERPAGE {
            return Ok(0);
        }
        self.clear_promises();
        for (index, &extent) in extents.iter().enumerate() {
            if index >= most {
                return Ok(index);
            }
            let size = order.frames().get();
            let mut cached = self.cache(extent.get()..extent.get() + size);
            let mut frame = 0;
            while frame + cached < size {
                if self.stops_after == Some(0) {
                    return Ok(index);
                }
                self.stops_after = self.stops_after.map(|frames| frames - 1);
                let named = self.name(Gmfn::new(extent.get() + frame));
                // Half an extent may be gone by now, and nobody says so.
                if !named.is_some_and(|pfn| self.remove(pfn)) {
                    // What went to the cache is met as a hole here.
                    let Some(rest) = cached.checked_sub(1) else {
                        return Ok(index);
                    };
                    cached = rest;
                }
                frame += 1;
            }
        }
        Ok(extents.len())
    }

    fn populate_physmap(&mut self, extents: &mut [Gmfn], order: Order) -> Result<usize, Errno> {
        let most = self.fault()?;
        let size = order.frames().get();
        for (index, extent) in extents.iter_mut().enumerate() {
            let room = self.limit.get().saturating_sub(self.owned).min(self.heap);
            if index >= most || order > self.largest || room < size {
                return Ok(index);
            }
            if !self.map_more(order) {
                self.owned += size;
                self.lost += size;
                self.heap -= size;
                if self.maps_in_part {
                    for pfn in extent.get()..extent.get() + size / 2 {
                        self.next_machine += 1;
                        self.insert(pfn, self.next_machine);
                        self.in_part.insert(pfn);
                    }
                }
                return Ok(index);
            }
            let start = extent.get();
            for pfn in start..start + size {
                self.next_machine += 1;
                // What was lost with its extent is found by nobody any more.
                if self.insert(pfn, self.next_machine) && !self.in_part.remove(&pfn) {
                    self.breaches.push(format!("populate over frame {pfn:#x}"));
                }
            }
            self.owned += size;
            self.heap -= size;
            if order == Order::SUPERPAGE && start % 512 == 0 {
                self.leaves.insert(start);
            } else {
                self.leaves.remove(&(start / 512 * 512));
            }
            if self.kind == Kind::Pv {
                *extent = Gmfn::new(self.next_machine + 1 - size);
            }
        }
        Ok(extents.len())
    }

    fn exchange(&mut self, given: (&[Gmfn], Order), wanted: (&mut [Gmfn], Order)) -> Exchanged {
        let refused = |done, errno| Exchanged {
            done,
            error: Some(errno),
        };
        let most = match self.fault() {
            Ok(most) => most,
            Err(errno) => return refused(0, errno),
        };
        if self.kind != Kind::Pv {
            return refused(0, Errno::NotSupported);
        }
        let ((inputs, _), (outputs, _)) = (given, wanted);
        for (index, (&input, output)) in inputs.iter().zip(outputs).enumerate() {
            if index >= most {
                return refused(index, Errno::NoMemory);
            }
            let mapped = self.mapped.borrow().contains(&input.get());
            let Some(pfn) = self.name(input).filter(|_| !mapped) else {
                return refused(index, Errno::Invalid);
            };
            self.frames.remove(&pfn);
            self.leave(pfn);
            self.next_machine += 1;
            self.insert(output.get(), self.next_machine);
            *output = Gmfn::new(self.next_machine);
        }
        Exchanged {
            done: inputs.len(),
            error: None,
        }
    }

    fn move_frame(&mut self, from: Pfn, to: Pfn) -> Result<(), Errno> {
        self.fault()?;
        match self.kind {
            Kind::Pvh if !self.moves => return Err(Errno::NotPermitted),
            Kind::Pvh => {}
            Kind::Pv => return Err(Errno::Access),
            Kind::Arm => return Err(Errno::NotImplemented),
        }
        self.touch(from);
        let &machine = self.frames.get(&from.get()).ok_or(self.hole)?;
        if from == to {
            return Ok(());
        }
        if self.frames.contains_key(&to.get()) {
            self.breaches.push(format!("move over frame {to:?}"));
            self.remove(to.get());
        }
        self.frames.remove(&from.get());
        let written = self.content.borrow_mut().written.remove(&from.get());
        if !self.map_more(Order::FRAME) {
            self.names.remove(&machine);
            self.leaves.remove(&(from.get() / 512 * 512));
            self.lost += 1;
            return Err(Errno::NoMemory);
        }
        self.insert(to.get(), machine);
        if written {
            self.content.borrow_mut().written.insert(to.get());
        }
        for pfn in [from, to] {
            self.leaves.remove(&(pfn.get() / 512 * 512));
        }
        Ok(())
    }

    fn move_range(&mut self, from: FrameRange, to: Pfn) -> Result<(), Errno> {
        let hypercalls = self.hypercalls;
        let mut pairs = from.frames().zip(to.get()..);
        let moved = pairs.try_for_each(|(from, to)| self.move_frame(from, Pfn::new(to)));
        self.hypercalls = hypercalls + 1;
        moved
    }

    fn is_hole(&mut self, pfn: Pfn) -> Result<bool, Errno> {
        self.fault()?;
        match self.kind {
            Kind::Pvh if !self.looks => Err(Errno::NotPermitted),
            Kind::Pvh => {
                Ok(!self.is_populated(pfn) && !self.content.borrow().promises.contains(&pfn.get()))
            }
            Kind::Pv => Err(Errno::Invalid),
            Kind::Arm => Err(Errno::NotImplemented),
        }
    }

    fn map_shared_info(&mut self, at: Pfn) -> Result<(), Errno> {
        self.fault()?;
        self.remove(at.get());
        self.shared_info = Some(at);
        Ok(())
    }

    fn current_reservation(&mut self) -> Result<FrameCount, Errno> {
        self.fault()?;
        Ok(FrameCount::new(self.owned))
    }

    fn maximum_reservation(&mut self) -> Result<FrameCount, Errno> {
        self.fault()?;
        Ok(self.limit)
    }

    fn memory_map(&mut self, out: &mut [MapEntry]) -> Result<usize, Errno> {
        self.fault()?;
        let (first, last) = (self.frames.first_key_value(), self.frames.last_key_value());
        let (Some((&first, _)), Some((&last, _)), [entry, ..]) = (first, last, out) else {
            return Ok(0);
        };
        *entry = MapEntry {
            address: first << 12,
            bytes: (last + 1 - first) << 12,
            ram: true,
        };
        Ok(1)
    }
}
