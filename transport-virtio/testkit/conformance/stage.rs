//! A driver, the programs beside it, and chance.

use alloc::vec::Vec;

use balloon_core::Pfn;

use super::{Driver, Kernel};
use crate::protocol::numbering::QueueId;
use crate::testing::{FakeDevice, FakeMemory};

/// Steps in which a driver is to get anywhere.
pub(super) const PATIENCE: usize = 2000;

pub(super) struct Stage<D> {
    pub(super) driver: D,
    pub(super) kernel: Kernel,
    pub(super) used: Vec<Pfn>,
    /// Requests that the device has taken and not answered.
    taken: Vec<(QueueId, u32)>,
    random: u64,
}

impl<D: Driver> Stage<D> {
    pub(super) fn start(kernel: &Kernel) -> Option<Self> {
        let mut memory = FakeMemory::new(D::DMA_BYTES);
        if kernel.translated {
            memory = memory.behind_iommu();
        }
        let mut device = FakeDevice::new(kernel.profile, memory.clone());
        let checker = device.checker_mut();
        checker.set_memory(kernel.frames.start()..kernel.frames.end());
        if kernel.poison.is_some() {
            checker.set_poison();
        }
        if kernel.superpages {
            checker.set_superpages();
        }
        if kernel.translated {
            checker.set_translated();
        }
        Some(Self {
            driver: D::bring_up(device, memory, kernel)?,
            kernel: kernel.clone(),
            used: Vec::new(),
            taken: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    pub(super) fn device(&mut self) -> &mut FakeDevice {
        self.driver.device()
    }

    pub(super) fn note(&mut self, rule: &'static str, what: &'static str) {
        self.device().checker_mut().note(rule, what);
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    pub(super) fn step(&mut self) {
        self.driver.step();
        self.note_filled();
        self.device().checker_mut().steps();
    }

    pub(super) fn note_filled(&mut self) {
        for pfn in self.driver.take_filled() {
            self.device().checker_mut().fills(pfn);
        }
    }

    pub(super) fn allocate(&mut self) -> bool {
        let Some(pfn) = self.driver.allocate() else {
            return false;
        };
        self.device().checker_mut().uses(pfn);
        self.used.push(pfn);
        true
    }

    /// Programs take all there is.
    pub(super) fn allocate_all(&mut self) {
        while self.allocate() {}
    }

    /// Memory is short, and the kernel says so.
    pub(super) fn relieve(&mut self) {
        self.driver.relieve();
        self.note_filled();
        // What is on the queue is told, answered or not.
        self.take(QueueId::Deflate, usize::MAX);
    }

    /// The first programs end, until so many frames are left in use.
    pub(super) fn free_down_to(&mut self, keep: usize) {
        while self.used.len() > keep {
            let pfn = self.used.swap_remove(0);
            self.driver.free(pfn);
        }
    }

    /// Programs come and go.
    pub(super) fn churn(&mut self) {
        for _ in 0..self.below(8) {
            self.allocate();
        }
        let keep = 32 + self.below(32);
        self.free_down_to(usize::try_from(keep).unwrap_or(0));
    }

    /// The device takes up to so many requests.
    pub(super) fn take(&mut self, queue: QueueId, most: usize) {
        for _ in 0..most {
            let Some(chain) = self.device().take(queue) else {
                break;
            };
            self.taken.push((queue, chain.head.into()));
        }
    }

    /// The device takes some of what there is, and answers some of what it has.
    pub(super) fn serve(&mut self) {
        for queue in QueueId::ALL {
            let most = self.below(4);
            self.take(queue, usize::try_from(most).unwrap_or(0));
        }
        let answers = self.below(8).min(self.taken.len() as u64);
        let answers = usize::try_from(answers).unwrap_or(0);
        for (queue, head) in self.taken.drain(..answers).collect::<Vec<_>>() {
            self.device().answer(queue, head, 0);
        }
    }

    /// The device was reset: it has none of the requests it had taken.
    pub(super) fn forget_taken(&mut self) {
        self.taken.clear();
    }

    /// All that is on its way arrives.
    pub(super) fn settle(&mut self) {
        for _ in 0..50 {
            self.step();
            self.serve();
        }
    }

    /// Whether the driver publishes this size within its time.
    pub(super) fn reaches(&mut self, target: u32) -> bool {
        self.device().set_target(target);
        (0..PATIENCE).any(|_| {
            self.step();
            self.serve();
            self.device().actual() == target
        })
    }

    /// Whether the size is what the host was given by either path, and what the
    /// kernel cannot get though it takes all it can.
    pub(super) fn size_is_true(&mut self) -> bool {
        self.settle();
        loop {
            let before = self.used.len();
            self.allocate_all();
            if self.used.len() == before {
                break;
            }
            // Services have frames in hand for a while.
            self.settle();
        }
        let size = u64::from(self.device().actual());
        let given = self.device().checker().given();
        let usable = self.used.len() as u64;
        size == given.get() && size + usable == self.kernel.frames.count().get()
    }
}
