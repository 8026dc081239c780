//! The hypervisor's calls that are about no frame: events, CPUs, parameters.

use super::FakeXen;
use crate::errno::Errno;
use crate::hypercall::calls::{Domain, Events, Param, ShutdownReason, Version, Virq, Woken};
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};

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
