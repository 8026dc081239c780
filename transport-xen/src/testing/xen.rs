//! A domain and its hypervisor.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn};

use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::{
    Domain, Events, Exchanged, MapEntry, Memory, Param, ShutdownReason, Version, Virq, Woken,
};
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};

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
}

/// The hypervisor's books about one domain.
///
/// A machine frame is never used twice, so content can be told by it.
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
    /// What happens to the next calls, in order.
    pub faults: VecDeque<Fault>,
    /// Populate-on-demand: promised frames beyond what is cached.
    pub promised: u64,
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
            faults: VecDeque::new(),
            promised: 0,
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
        self.stops_after = None;
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => Ok(usize::MAX),
            Fault::Refuse(errno) => Err(errno),
            Fault::Extents(extents) => Ok(extents),
            Fault::Frames(frames) => {
                self.stops_after = Some(frames);
                Ok(usize::MAX)
            }
        }
    }

    /// Takes the memory behind one frame; a leaf around it is split.
    fn remove(&mut self, pfn: u64) -> bool {
        let Some(machine) = self.frames.remove(&pfn) else {
            return false;
        };
        self.names.remove(&machine);
        if self.mapped.borrow().contains(&machine) {
            self.breaches
                .push(format!("frame {pfn:#x} left while mapped"));
        }
        self.leaves.remove(&(pfn / 512 * 512));
        self.heap = self.heap.saturating_add(1);
        if self.promised > 0 {
            // The freed frame joins the cache that covers the promises.
            self.promised -= 1;
        } else {
            self.owned -= 1;
        }
        true
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
        for (index, &extent) in extents.iter().enumerate() {
            if index >= most {
                return Ok(index);
            }
            for frame in 0..order.frames().get() {
                if self.stops_after == Some(0) {
                    return Ok(index);
                }
                self.stops_after = self.stops_after.map(|frames| frames - 1);
                let named = self.name(Gmfn::new(extent.get() + frame));
                // Half an extent may be gone by now, and nobody says so.
                if !named.is_some_and(|pfn| self.remove(pfn)) {
                    return Ok(index);
                }
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
            let start = extent.get();
            for pfn in start..start + size {
                self.next_machine += 1;
                if self.insert(pfn, self.next_machine) {
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
        // Looking at a frame is answered "invalid" for a hole alone.
        match self.fault() {
            Err(Errno::Invalid) if from == to => {}
            other => drop(other?),
        }
        match self.kind {
            Kind::Pvh => {}
            Kind::Pv => return Err(Errno::Access),
            Kind::Arm => return Err(Errno::NotImplemented),
        }
        let &machine = self.frames.get(&from.get()).ok_or(Errno::Invalid)?;
        if from == to {
            return Ok(());
        }
        if self.frames.contains_key(&to.get()) {
            self.breaches.push(format!("move over frame {to:?}"));
            self.remove(to.get());
        }
        self.frames.remove(&from.get());
        self.insert(to.get(), machine);
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

impl Events for FakeXen {
    fn notify(&mut self, port: Port) -> Result<(), Errno> {
        self.notified.push(port);
        Ok(())
    }

    fn unmask(&mut self, _: Port) -> Result<(), Errno> {
        Ok(())
    }

    fn bind_virq(&mut self, _: Virq, _: Vcpu) -> Result<Port, Errno> {
        Port::new(3).ok_or(Errno::NoSpace)
    }

    fn bind_ipi(&mut self, vcpu: Vcpu) -> Result<Port, Errno> {
        let port = Port::new(16 + vcpu.get()).ok_or(Errno::NoSpace)?;
        self.bind_vcpu(port, vcpu)?;
        Ok(port)
    }

    fn bind_vcpu(&mut self, port: Port, vcpu: Vcpu) -> Result<(), Errno> {
        self.known(vcpu)?;
        self.bound.insert(port.get(), vcpu);
        Ok(())
    }
}

impl Domain for FakeXen {
    fn version(&mut self) -> Result<Version, Errno> {
        Ok(Version {
            major: 4,
            minor: 17,
        })
    }

    fn param(&mut self, param: Param) -> Result<u64, Errno> {
        let index = match param {
            Param::StoreFrame => 1,
            Param::StorePort => 2,
            Param::ConsoleFrame => 17,
            Param::ConsolePort => 18,
        };
        Ok(self.params.get(&index).copied().unwrap_or(0))
    }

    fn set_callback(&mut self, vector: Vector) -> Result<(), Errno> {
        self.callback = Some(vector);
        Ok(())
    }

    fn set_upcall(&mut self, vcpu: Vcpu, vector: Vector) -> Result<(), Errno> {
        self.known(vcpu)?;
        self.upcalls.insert(vcpu.get(), vector);
        Ok(())
    }

    fn register_vcpu_info(&mut self, vcpu: Vcpu, page: Gmfn, slot: InfoSlot) -> Result<(), Errno> {
        self.known(vcpu)?;
        // Real Xen tells these apart no better.
        let runs = self.running.contains(&vcpu.get());
        if runs || self.infos.contains_key(&vcpu.get()) {
            return Err(Errno::Invalid);
        }
        self.infos.insert(vcpu.get(), (page, slot));
        Ok(())
    }

    fn vcpu_down(&mut self, vcpu: Vcpu) -> Result<(), Errno> {
        self.known(vcpu)?;
        self.running.remove(&vcpu.get());
        Ok(())
    }

    fn vcpu_up(&mut self, vcpu: Vcpu) -> Result<(), Errno> {
        self.known(vcpu)?;
        self.running.insert(vcpu.get());
        Ok(())
    }

    fn print(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.printed.extend_from_slice(text);
        Ok(())
    }

    fn shutdown(&mut self, _: ShutdownReason) -> Result<Woken, Errno> {
        self.fault()?;
        if self.woken == Woken::Restored {
            self.callback = None;
            self.shared_info = None;
            self.upcalls.clear();
            self.infos.clear();
            self.bound.clear();
        }
        Ok(self.woken)
    }

    fn yield_cpu(&mut self) {}

    fn block(&mut self) {}
}

/// A PV guest's table and mappings: what a kernel keeps for itself.
#[derive(Debug)]
pub struct FakeP2m {
    table: BTreeMap<u64, u64>,
    mapped: Rc<RefCell<BTreeSet<u64>>>,
    /// Machine frames whose mappings are to come or go.
    queue: Vec<(u64, bool)>,
}

impl FakeP2m {
    /// The table a PV guest finds at boot.
    #[must_use]
    pub fn of(xen: &FakeXen) -> Self {
        Self {
            table: xen.frames.clone(),
            mapped: xen.mapped.clone(),
            queue: Vec::new(),
        }
    }

    /// Whether it agrees with the hypervisor's, and maps just that.
    #[must_use]
    pub fn agrees_with(&self, xen: &FakeXen) -> bool {
        let mapped = self.mapped.borrow();
        self.table == xen.frames && self.table.values().all(|machine| mapped.contains(machine))
    }
}

impl FrameMap for FakeP2m {
    const TRANSLATED: bool = false;
    const MIGRATION: Migration = Migration::Exchange;

    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn> {
        let machine = self.table.remove(&pfn.get())?;
        self.queue.push((machine, false));
        Some(Gmfn::new(machine))
    }

    fn map(&mut self, pfn: Pfn, gmfn: Gmfn) {
        self.table.insert(pfn.get(), gmfn.get());
        self.queue.push((gmfn.get(), true));
    }

    fn commit(&mut self) {
        let mut mapped = self.mapped.borrow_mut();
        for (machine, maps) in self.queue.drain(..) {
            if maps {
                mapped.insert(machine);
            } else {
                mapped.remove(&machine);
            }
        }
    }
}
