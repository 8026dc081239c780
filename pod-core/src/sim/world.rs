//! Engine, storage and host in one value that can be copied: for searches and fault injection.

use alloc::vec;
use alloc::vec::Vec;

use super::{Content, Fault, Sim};
use crate::{
    Block, Budget, Config, Demand, DemandError, Entry, FrameCount, Gfn, Lane, Order, Pattern, Pod,
    Region, Sizes, Stats, Storage, Suspended, Target, Toucher, Vcpu,
};

/// Storage of an engine on the heap.
#[derive(Clone, Debug)]
pub struct Memory {
    regions: Vec<Region>,
    blocks: Vec<Block>,
    gigas: Vec<Block>,
    loose: Vec<u32>,
    lanes: Vec<Lane>,
}

impl Memory {
    /// Storage of these sizes.
    #[must_use]
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            regions: vec![Region::EMPTY; sizes.regions],
            blocks: vec![Block::EMPTY; sizes.blocks],
            gigas: vec![Block::EMPTY; sizes.gigas],
            loose: vec![0; sizes.loose],
            lanes: vec![Lane::EMPTY; sizes.lanes],
        }
    }

    /// The storage as the engine takes it.
    pub fn storage(&mut self) -> Storage<'_> {
        Storage {
            regions: &mut self.regions,
            blocks: &mut self.blocks,
            gigas: &mut self.gigas,
            loose: &mut self.loose,
            lanes: &mut self.lanes,
        }
    }
}

/// One guest: engine, storage and simulated host.
#[derive(Clone, Debug)]
pub struct World {
    /// The host.
    pub sim: Sim,
    memory: Memory,
    suspended: Suspended,
    vcpus: usize,
}

impl World {
    /// A guest that is all holes, on a host with `machine` frames.
    #[must_use]
    pub fn new(config: &Config, machine: u64, vcpus: usize) -> Self {
        let sizes = Sizes::for_guest(config, config.limit, vcpus as u16);
        Self::with_sizes(config, machine, vcpus, &sizes)
    }

    /// The same with the caller's storage sizes.
    #[must_use]
    pub fn with_sizes(config: &Config, machine: u64, vcpus: usize, sizes: &Sizes) -> Self {
        let mut memory = Memory::new(sizes);
        let pod = Pod::new(*config, memory.storage());
        let suspended = match pod {
            Ok(pod) => pod.suspend().0,
            Err(e) => panic!("{e}"),
        };
        Self {
            sim: Sim::new(config, machine, vcpus),
            memory,
            suspended,
            vcpus,
        }
    }

    /// A guest with all memory promised and the target set, not started.
    #[must_use]
    pub fn built(config: &Config, target: u64, machine: u64, vcpus: usize) -> Self {
        let mut world = Self::new(config, machine, vcpus);
        world.set_target(target);
        world.mark_all(Pattern::ZERO);
        world
    }

    /// Runs an operation of the engine.
    pub fn with<R>(&mut self, run: impl FnOnce(&mut Pod<'_>, &mut Sim) -> R) -> R {
        let pod = Pod::assemble(self.suspended.clone(), self.memory.storage());
        let mut pod = pod.unwrap_or_else(|e| panic!("{e}"));
        let result = run(&mut pod, &mut self.sim);
        self.suspended = pod.suspend().0;
        result
    }

    /// Counters of the engine.
    pub fn stats(&mut self) -> Stats {
        self.with(|pod, _| pod.stats())
    }

    /// Virtual CPUs.
    #[must_use]
    pub const fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Sets a target and fills the cache for it.
    pub fn set_target(&mut self, frames: u64) {
        loop {
            let step = self.with(|pod, sim| {
                pod.set_target(sim, FrameCount::new(frames), &mut Budget::default())
            });
            match step {
                Ok(Target::More) => {}
                Ok(_) => break,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Promises the whole map.
    pub fn mark_all(&mut self, pattern: Pattern) {
        let mut at = 0;
        let max = self.with(|pod, _| pod.config().max.get());
        while at < max {
            let left = FrameCount::new(max - at);
            let step = self.with(|pod, sim| {
                pod.mark(sim, Gfn::new(at), left, pattern, &mut Budget::default())
            });
            match step {
                Ok(progress) => at += progress.done.get(),
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Demands a frame until there is an answer other than to retry.
    ///
    /// # Errors
    /// As [`Pod::demand`].
    pub fn demand(&mut self, vcpu: usize, gfn: Gfn) -> Result<Demand, DemandError> {
        loop {
            let by = Toucher::Vcpu(Vcpu::new(vcpu as u16));
            let answer =
                self.with(|pod, sim| pod.demand(sim, gfn, by, Order::MAX, &mut Budget::default()))?;
            match answer {
                Demand::Retry(crate::Wait::Sweeping) => {}
                other => return Ok(other),
            }
        }
    }

    /// A virtual CPU writes a page, with as many faults as that takes; `false` if the guest
    /// cannot go on.
    pub fn write(&mut self, vcpu: usize, gfn: Gfn, content: Content) -> bool {
        loop {
            match self.sim.guest_write(vcpu, gfn, content) {
                Ok(()) => return true,
                Err(Fault::Promise) => match self.demand(vcpu, gfn) {
                    Ok(Demand::Populated(_) | Demand::Present) => {}
                    _ => return false,
                },
                Err(_) => return false,
            }
        }
    }

    /// Checks the engine's records, the host's, and that every frame has one home.
    pub fn check(&mut self) {
        self.sim.check();
        self.sim.check_cached();
        let max = self.with(|pod, _| pod.config().max.get());
        let ram = (0..max).map(Gfn::new);
        let ram = ram
            .filter(|g| matches!(self.sim.leaf(*g).entry, Entry::Ram { .. }))
            .count();
        let (owned, retired) = (self.sim.owned(), self.sim.retired().len() as u64);
        self.with(|pod, sim| {
            let calls = sim.script.clone();
            if let Err(e) = pod.audit(sim) {
                panic!("{e}: {}", pod.stats());
            }
            sim.script = calls;
            let stats = pod.stats();
            assert_eq!(stats.populated.get(), ram as u64);
            assert_eq!(
                stats.owned().get() + retired,
                owned,
                "a frame was lost or invented"
            );
            if stats.started {
                assert_eq!(
                    stats.surplus().get(),
                    0,
                    "the cache is larger than the promises"
                );
            }
        });
    }
}
