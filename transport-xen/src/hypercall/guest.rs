//! The typed calls over a gate: arguments into Xen's layouts, returns out.

pub(crate) mod paravirtual;
pub(crate) mod vcpu;

use core::ptr::{from_mut, null_mut, without_provenance_mut};

use balloon_core::{FrameCount, FrameRange, Order, Pfn};

use super::abi;
use super::calls::{
    Domain, Events, Exchanged, MapEntry, Memory, Param, ShutdownReason, Version, Virq, Woken,
};
use super::gate::Gate;
use crate::errno::Errno;
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};

/// This domain, seen from inside.
#[derive(Clone, Copy, Debug)]
pub struct Guest<G> {
    gate: G,
}

/// Entries of the memory map that are looked at; Xen's domains have fewer.
const MAP_ENTRIES: usize = 32;

impl<G: Gate> Guest<G> {
    /// A guest that enters Xen through `gate`.
    ///
    /// # Safety
    /// The guest runs on Xen, and the address of an object is what Xen takes
    /// for it: a linear address it can translate (PV and x86), or memory mapped
    /// as Xen's ABI asks (Arm: normal, inner write-back). Frames passed to
    /// [`Memory`]'s calls are not in use by anybody: they lose their content.
    /// A page in which a CPU's information is registered is used for that alone.
    #[must_use]
    pub const unsafe fn new(gate: G) -> Self {
        Self { gate }
    }

    fn call<T>(&mut self, number: u32, operation: usize, argument: &mut T) -> Result<u64, Errno> {
        let args = [
            without_provenance_mut(operation),
            from_mut(argument).cast(),
            null_mut(),
            null_mut(),
        ];
        // SAFETY: `argument` is the structure of this operation and outlives
        // the call; so do the arrays it names, whose lengths it states.
        Errno::check(unsafe { self.gate.call(number, args) })
    }

    fn reservation(&mut self, operation: usize) -> Result<FrameCount, Errno> {
        let mut domain = abi::DOMID_SELF;
        self.call(abi::MEMORY_OP, operation, &mut domain)
            .map(FrameCount::new)
    }

    fn add_to_physmap(
        &mut self,
        (space, count): (u16, u16),
        index: u64,
        at: Pfn,
    ) -> Result<(), Errno> {
        let mut argument = abi::AddToPhysmap {
            domain: abi::DOMID_SELF,
            count,
            space: space.into(),
            index,
            gpfn: at.get(),
        };
        self.call(abi::MEMORY_OP, abi::ADD_TO_PHYSMAP, &mut argument)
            .map(drop)
    }
}

const fn extents(list: *mut Gmfn, count: usize, order: Order) -> abi::Reservation {
    abi::Reservation {
        // `Gmfn` is a transparent `u64`.
        extents: list.cast(),
        count: count as u64,
        order: order.get() as u32,
        flags: 0,
        domain: abi::DOMID_SELF,
    }
}

impl<G: Gate> Memory for Guest<G> {
    fn decrease_reservation(&mut self, list: &[Gmfn], order: Order) -> Result<usize, Errno> {
        // Xen only reads the list of a decrease.
        let mut argument = extents(list.as_ptr().cast_mut(), list.len(), order);
        let done = self.call(abi::MEMORY_OP, abi::DECREASE_RESERVATION, &mut argument)?;
        Ok(count(done, list.len()))
    }

    fn populate_physmap(&mut self, list: &mut [Gmfn], order: Order) -> Result<usize, Errno> {
        let mut argument = extents(list.as_mut_ptr(), list.len(), order);
        let done = self.call(abi::MEMORY_OP, abi::POPULATE_PHYSMAP, &mut argument)?;
        Ok(count(done, list.len()))
    }

    fn exchange(&mut self, given: (&[Gmfn], Order), wanted: (&mut [Gmfn], Order)) -> Exchanged {
        let ((inputs, in_order), (outputs, out_order)) = (given, wanted);
        let mut argument = abi::Exchange {
            given: extents(inputs.as_ptr().cast_mut(), inputs.len(), in_order),
            wanted: extents(outputs.as_mut_ptr(), outputs.len(), out_order),
            done: 0,
        };
        let result = self.call(abi::MEMORY_OP, abi::EXCHANGE, &mut argument);
        Exchanged {
            done: count(argument.done, inputs.len()),
            error: result.err(),
        }
    }

    fn move_frame(&mut self, from: Pfn, to: Pfn) -> Result<(), Errno> {
        self.add_to_physmap((abi::SPACE_GMFN, 0), from.get(), to)
    }

    fn move_range(&mut self, from: FrameRange, to: Pfn) -> Result<(), Errno> {
        let mut rest = Some(from);
        while let Some(range) = rest {
            let (head, tail) = range.split_at(FrameCount::new(u16::MAX.into()));
            let head = head.unwrap_or(range);
            let moved = head.start().get() - from.start().get();
            self.add_to_physmap(
                (
                    abi::SPACE_GMFN_RANGE,
                    u16::try_from(head.count().get()).unwrap_or(u16::MAX),
                ),
                head.start().get(),
                Pfn::new(to.get() + moved),
            )?;
            rest = tail;
        }
        Ok(())
    }

    fn is_hole(&mut self, pfn: Pfn) -> Result<bool, Errno> {
        let mut argument = abi::MemType {
            domain: abi::DOMID_SELF,
            kind: 0,
            padding: [0; 2],
            pfn: pfn.get(),
        };
        self.call(abi::HVM_OP, abi::GET_MEM_TYPE, &mut argument)?;
        Ok(argument.kind == abi::MEM_TYPE_HOLE)
    }

    fn map_shared_info(&mut self, at: Pfn) -> Result<(), Errno> {
        self.add_to_physmap((abi::SPACE_SHARED_INFO, 0), 0, at)
    }

    fn current_reservation(&mut self) -> Result<FrameCount, Errno> {
        self.reservation(abi::CURRENT_RESERVATION)
    }

    fn maximum_reservation(&mut self) -> Result<FrameCount, Errno> {
        self.reservation(abi::MAXIMUM_RESERVATION)
    }

    fn memory_map(&mut self, out: &mut [MapEntry]) -> Result<usize, Errno> {
        let mut entries = [abi::E820 {
            address: 0,
            bytes: 0,
            kind: 0,
        }; MAP_ENTRIES];
        let mut argument = abi::MemoryMap {
            count: u32::try_from(out.len().min(MAP_ENTRIES)).unwrap_or(0),
            buffer: entries.as_mut_ptr(),
        };
        self.call(abi::MEMORY_OP, abi::MEMORY_MAP, &mut argument)?;
        let found = count(argument.count.into(), out.len());
        for (place, entry) in out.iter_mut().zip(entries.iter().take(found)) {
            *place = MapEntry {
                address: entry.address,
                bytes: entry.bytes,
                ram: entry.kind == abi::E820_RAM,
            };
        }
        Ok(found)
    }
}

impl<G: Gate> Events for Guest<G> {
    fn notify(&mut self, port: Port) -> Result<(), Errno> {
        let mut argument = port.get();
        self.call(abi::EVENT_CHANNEL_OP, abi::SEND, &mut argument)
            .map(drop)
    }

    fn unmask(&mut self, port: Port) -> Result<(), Errno> {
        let mut argument = port.get();
        self.call(abi::EVENT_CHANNEL_OP, abi::UNMASK, &mut argument)
            .map(drop)
    }

    fn bind_virq(&mut self, virq: Virq, vcpu: Vcpu) -> Result<Port, Errno> {
        let mut argument = abi::BindVirq {
            virq: match virq {
                Virq::Timer => 0,
            },
            vcpu: vcpu.get(),
            port: 0,
        };
        self.call(abi::EVENT_CHANNEL_OP, abi::BIND_VIRQ, &mut argument)?;
        Port::new(argument.port).ok_or(Errno::NoSpace)
    }

    fn bind_ipi(&mut self, vcpu: Vcpu) -> Result<Port, Errno> {
        let mut argument = abi::BindIpi {
            vcpu: vcpu.get(),
            port: 0,
        };
        self.call(abi::EVENT_CHANNEL_OP, abi::BIND_IPI, &mut argument)?;
        Port::new(argument.port).ok_or(Errno::NoSpace)
    }

    fn bind_vcpu(&mut self, port: Port, vcpu: Vcpu) -> Result<(), Errno> {
        let mut argument = abi::BindVcpu {
            port: port.get(),
            vcpu: vcpu.get(),
        };
        self.call(abi::EVENT_CHANNEL_OP, abi::BIND_VCPU, &mut argument)
            .map(drop)
    }
}

impl<G: Gate> Domain for Guest<G> {
    fn version(&mut self) -> Result<Version, Errno> {
        let mut unused = 0u64;
        let version = self.call(abi::XEN_VERSION, 0, &mut unused)?;
        let half = |value: u64| u16::try_from(value & 0xffff).unwrap_or(0);
        Ok(Version {
            major: half(version >> 16),
            minor: half(version),
        })
    }

    fn param(&mut self, param: Param) -> Result<u64, Errno> {
        let mut argument = abi::HvmParam {
            domain: abi::DOMID_SELF,
            index: match param {
                Param::StoreFrame => abi::PARAM_STORE_PFN,
                Param::StorePort => abi::PARAM_STORE_EVTCHN,
                Param::ConsoleFrame => abi::PARAM_CONSOLE_PFN,
                Param::ConsolePort => abi::PARAM_CONSOLE_EVTCHN,
            },
            value: 0,
        };
        self.call(abi::HVM_OP, abi::GET_PARAM, &mut argument)?;
        Ok(argument.value)
    }

    fn set_callback(&mut self, vector: Vector) -> Result<(), Errno> {
        let mut argument = abi::HvmParam {
            domain: abi::DOMID_SELF,
            index: abi::PARAM_CALLBACK_IRQ,
            value: abi::CALLBACK_VECTOR | u64::from(vector.get()),
        };
        self.call(abi::HVM_OP, abi::SET_PARAM, &mut argument)
            .map(drop)
    }

    fn set_upcall(&mut self, vcpu: Vcpu, vector: Vector) -> Result<(), Errno> {
        let mut argument = abi::UpcallVector {
            vcpu: vcpu.get(),
            vector: vector.get(),
        };
        self.call(abi::HVM_OP, abi::SET_UPCALL_VECTOR, &mut argument)
            .map(drop)
    }

    fn register_vcpu_info(&mut self, vcpu: Vcpu, page: Gmfn, slot: InfoSlot) -> Result<(), Errno> {
        let mut argument = abi::RegisterVcpuInfo {
            frame: page.get(),
            offset: u32::try_from(slot.offset()).unwrap_or(0),
            reserved: 0,
        };
        self.vcpu_call(abi::REGISTER_VCPU_INFO, vcpu, &mut argument)
    }

    fn vcpu_down(&mut self, vcpu: Vcpu) -> Result<(), Errno> {
        self.vcpu_call(abi::DOWN, vcpu, &mut ())
    }

    fn vcpu_up(&mut self, vcpu: Vcpu) -> Result<(), Errno> {
        self.vcpu_call(abi::UP, vcpu, &mut ())
    }

    fn print(&mut self, text: &[u8]) -> Result<(), Errno> {
        let args = [
            without_provenance_mut(abi::CONSOLE_WRITE),
            without_provenance_mut(text.len()),
            text.as_ptr().cast_mut().cast(),
            null_mut(),
        ];
        // SAFETY: Xen only reads the text, which is as long as is said.
        Errno::check(unsafe { self.gate.call(abi::CONSOLE_IO, args) }).map(drop)
    }

    fn shutdown(&mut self, reason: ShutdownReason) -> Result<Woken, Errno> {
        let mut argument: u32 = match reason {
            ShutdownReason::PowerOff => 0,
            ShutdownReason::Reboot => 1,
            ShutdownReason::Suspend => 2,
            ShutdownReason::Crash => 3,
        };
        let woken = self.call(abi::SCHED_OP, abi::SHUTDOWN, &mut argument)?;
        Ok(if woken == 0 {
            Woken::Restored
        } else {
            Woken::Cancelled
        })
    }

    fn yield_cpu(&mut self) {
        let mut unused = 0u64;
        // It has no way to fail.
        let _ = self.call(abi::SCHED_OP, abi::YIELD, &mut unused);
    }

    fn block(&mut self) {
        let mut unused = 0u64;
        // It has no way to fail.
        let _ = self.call(abi::SCHED_OP, abi::BLOCK, &mut unused);
    }
}

/// A count of Xen's, never above what was asked for.
fn count(done: u64, asked: usize) -> usize {
    usize::try_from(done).unwrap_or(asked).min(asked)
}

#[cfg(test)]
mod tests;
