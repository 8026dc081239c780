use super::*;
use crate::interrupt::InterruptStatus;
use alloc::vec::Vec;
use core::ptr::NonNull;

/// Registers that remember: memory without a device behind it.
struct Registers(Vec<u32>);

impl Registers {
    fn new(bytes: usize) -> Self {
        Self(std::vec![0; bytes / 4])
    }

    fn window(&mut self) -> MmioWindow {
        let base = NonNull::new(self.0.as_mut_ptr()).unwrap().cast();
        // SAFETY: the vector outlives the window in every test and is read only
        // between the driver's accesses.
        unsafe { MmioWindow::new(base, self.0.len() * 4) }
    }

    fn at(&self, offset: usize) -> u32 {
        let word: *const u32 = &raw const self.0[offset / 4];
        // SAFETY: a live element; volatile since a window writes it too.
        unsafe { word.read_volatile() }
    }
}

struct Machine {
    common: Registers,
    notify: Registers,
    device: Registers,
}

impl Machine {
    fn new() -> Self {
        let mut common = Registers::new(56);
        // Five queues; the selected one has 128 entries, notified at 3.
        common.0[NUM_QUEUES / 4] = 5 << 16;
        common.0[QUEUE_SIZE / 4] = 128;
        common.0[QUEUE_ENABLE / 4] = 3 << 16;
        Self {
            common,
            notify: Registers::new(0x20),
            device: Registers::new(8),
        }
    }

    fn pci(&mut self, multiplier: u32) -> MappedPci {
        let (common, notify) = (self.common.window(), self.notify.window());
        MappedPci::new(common, notify, multiplier, self.device.window())
    }
}

const AT: RingAddresses = RingAddresses {
    descriptors: 0x1_0000_1000,
    driver: 0x2_0000_2000,
    device: 0x3_0000_3000,
};

#[test]
fn queues_are_enabled_and_notified_where_the_device_says() {
    let mut machine = Machine::new();
    let mut pci = machine.pci(4);
    assert_eq!(pci.max_queue_size(QueueIndex::new(4)), 128);
    assert_eq!(pci.max_queue_size(QueueIndex::new(5)), 0);
    pci.set_queue(QueueIndex::new(2), 64, AT).unwrap();
    pci.notify(QueueIndex::new(2));
    pci.notify(QueueIndex::new(1));
    let common = &machine.common;
    assert_eq!((common.at(32), common.at(36)), (0x1000, 1));
    assert_eq!((common.at(40), common.at(44)), (0x2000, 2));
    assert_eq!((common.at(48), common.at(52)), (0x3000, 3));
    assert_eq!(common.at(24) & 0xffff, 64);
    assert_eq!(common.at(28) & 0xffff, 1);
    assert_eq!(machine.notify.at(12), 2);
}

#[test]
fn a_notification_register_outside_the_window_is_refused() {
    let mut machine = Machine::new();
    assert_eq!(
        machine.pci(16).set_queue(QueueIndex::new(0), 64, AT),
        Err(QueueRefused)
    );
    assert_eq!(
        machine.pci(u32::MAX).set_queue(QueueIndex::new(0), 64, AT),
        Err(QueueRefused)
    );
    assert_eq!(machine.common.at(28) & 0xffff, 0, "not enabled");
}

#[test]
fn a_notification_register_that_cannot_be_written_is_refused() {
    // Half-words lie at even places; an odd multiplier leads to others.
    let mut machine = Machine::new();
    assert_eq!(
        machine.pci(3).set_queue(QueueIndex::new(0), 64, AT),
        Err(QueueRefused)
    );
}

#[test]
fn vectors_are_written_and_checked() {
    let mut machine = Machine::new();
    let vectors = Vectors {
        config: 0,
        queues: 1,
    };
    let mut pci = machine.pci(4).with_vectors(vectors);
    pci.set_queue(QueueIndex::new(0), 64, AT).unwrap();
    assert_eq!(machine.common.at(16) & 0xffff, 0);
    assert_eq!(machine.common.at(24) >> 16, 1);
    // A device without a place for the vector reads back none.
    let none = Vectors {
        config: 0,
        queues: NO_VECTOR,
    };
    let mut pci = machine.pci(4).with_vectors(none);
    assert_eq!(pci.set_queue(QueueIndex::new(0), 64, AT), Err(QueueRefused));
}

#[test]
fn configuration_ends_where_the_window_ends() {
    let mut machine = Machine::new();
    machine.device.0[0] = 77;
    let mut pci = machine.pci(4);
    pci.write_config(4, 5);
    pci.write_config(8, 6);
    assert_eq!(
        (pci.config_len(), pci.read_config(0), pci.read_config(8)),
        (8, 77, u32::MAX)
    );
    assert_eq!(machine.device.at(4), 5);
}

#[test]
fn features_go_in_two_halves_and_status_in_one_byte() {
    let mut machine = Machine::new();
    let mut pci = machine.pci(4);
    pci.accept_features(Features::VERSION_1);
    assert_eq!((machine.common.at(8), machine.common.at(12)), (1, 1));
    machine.common.0[1] = 0x21;
    let mut pci = machine.pci(4);
    assert_eq!(pci.offered_features().bits(), 0x21_0000_0021);
    pci.set_status(DeviceStatus::FAILED);
    assert_eq!(pci.status(), DeviceStatus::FAILED);
    assert_eq!(machine.common.at(20) & 0xff, 128);
}

#[test]
fn the_interrupt_status_tells_which() {
    for (raised, pending) in [(0, false), (1, true), (2, true), (3, true)] {
        let shared = balloon_core::Shared::<1>::new();
        let mut registers = Registers::new(4);
        registers.0[0] = raised;
        let status = InterruptStatus::new(registers.window());
        assert_eq!(status.handle(shared.signal()), pending);
        assert_eq!(shared.signal().is_set(), pending);
        assert_eq!(
            status.read_acknowledge().bits(),
            u8::try_from(raised).unwrap()
        );
    }
}

#[test]
fn the_line_is_not_that_of_a_device_that_was_pulled_out() {
    for raised in [0xff, 0x83] {
        let shared = balloon_core::Shared::<1>::new();
        let mut registers = Registers(std::vec![raised]);
        let status = InterruptStatus::new(registers.window());
        assert!(!status.handle(shared.signal()) && !shared.signal().is_set());
    }
}
