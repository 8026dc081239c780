use super::*;
use alloc::vec::Vec;

const ALL_MASKED: u32 = 1 << 30;

/// One device in slot 3, function 0.
struct Fake {
    words: [u32; 64],
    masks: [u32; 6],
}

impl Fake {
    fn new() -> Self {
        let mut words = [0; 64];
        words[0] = 0x1045_1af4;
        words[1] = STATUS_CAPABILITIES;
        Self {
            words,
            masks: [0; 6],
        }
    }
}

impl ConfigSpace for Fake {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        if slot.device != 3 || slot.function != 0 {
            return u32::MAX;
        }
        self.words[usize::from(offset / 4)]
    }

    fn write(&mut self, _slot: Slot, offset: u8, value: u32) {
        let word = usize::from(offset / 4);
        if (4..10).contains(&word) {
            let mask = self.masks[word - 4];
            let fixed = self.words[word] & 0xf & !mask;
            self.words[word] = value & mask | fixed;
        } else if word == 1 {
            // Ones clear bits of the status half; nobody writes any.
            self.words[1] = self.words[1] & !0xffff | value;
        } else {
            self.words[word] = value;
        }
    }
}

fn slot(bus: &mut Bus<Fake>) -> Slot {
    bus.find(|id| {
        id == DeviceId {
            vendor: 0x1af4,
            device: 0x1045,
        }
    })
    .unwrap()
}

#[test]
fn finds_the_device_and_nothing_else() {
    let mut bus = Bus::new(Fake::new());
    assert_eq!(slot(&mut bus), Slot::new(3, 0).unwrap());
    assert_eq!(bus.find(|id| id.vendor == 0x8086), None);
}

#[test]
fn wide_bars_far_up_are_read_and_left_as_they_were() {
    let mut fake = Fake::new();
    fake.words[8] = 0x0000_400c;
    fake.words[9] = 0xc0;
    fake.masks[4] = 0xffff_c000;
    fake.masks[5] = 0xffff_ffff;
    let mut bus = Bus::new(fake);
    let slot = slot(&mut bus);
    let bar = bus.memory_bar(slot, BarIndex::new(4).unwrap()).unwrap();
    assert_eq!((bar.start().get(), bar.bytes()), (0xc0_0000_4000, 0x4000));
    assert_eq!(bus.read(slot, 0x20), 0x0000_400c);
    assert_eq!(bus.read(slot, 0x24), 0xc0);
}

#[test]
fn narrow_port_and_unused_bars() {
    let mut fake = Fake::new();
    fake.words[4] = 0xfebd_1000;
    fake.masks[0] = 0xffff_f000;
    fake.words[5] = 0xc001;
    let mut bus = Bus::new(fake);
    let slot = slot(&mut bus);
    let bar = bus.memory_bar(slot, BarIndex::new(0).unwrap()).unwrap();
    assert_eq!((bar.start().get(), bar.bytes()), (0xfebd_1000, 0x1000));
    assert_eq!(bus.memory_bar(slot, BarIndex::new(1).unwrap()), None);
    assert_eq!(bus.memory_bar(slot, BarIndex::new(2).unwrap()), None);
    // A wide BAR in the last place has no upper half.
    bus.config.words[9] = 0x4;
    assert_eq!(bus.memory_bar(slot, BarIndex::new(5).unwrap()), None);
}

#[test]
fn capability_lists_end_even_when_they_bite_their_tail() {
    let mut fake = Fake::new();
    fake.words[13] = 0x40;
    fake.words[16] = 0x0000_4809;
    fake.words[18] = 0x0000_0011;
    let mut bus = Bus::new(fake);
    let slot = slot(&mut bus);
    let found: Vec<_> = bus
        .capabilities(slot)
        .map(|cap| (cap.id, cap.offset))
        .collect();
    assert_eq!(found, [(9, 0x40), (0x11, 0x48)]);
    bus.config.words[18] = 0x0000_4011;
    assert_eq!(bus.capabilities(slot).count(), 48);
    bus.config.words[1] = 0;
    assert_eq!(bus.capabilities(slot).count(), 0);
}

#[test]
fn enabling_turns_on_memory_and_dma() {
    let mut bus = Bus::new(Fake::new());
    let slot = slot(&mut bus);
    bus.config.words[1] |= COMMAND_NO_INTX;
    bus.enable(slot);
    let command = bus.read(slot, COMMAND) & 0xffff;
    assert_eq!(command, COMMAND_MEMORY | COMMAND_MASTER);
}

#[test]
fn interrupt_lines_out_of_range_are_refused() {
    let mut bus = Bus::new(Fake::new());
    let slot = slot(&mut bus);
    bus.config.words[15] = 0x0000_010b;
    assert_eq!(bus.interrupt_line(slot).map(InterruptLine::get), Some(11));
    bus.config.words[15] = 0x0000_000b;
    assert_eq!(bus.interrupt_line(slot), None);
    bus.config.words[15] = 0x0000_01ff;
    assert_eq!(bus.interrupt_line(slot), None);
}

#[test]
fn bars_are_placed_where_there_was_no_firmware() {
    let mut fake = Fake::new();
    // A wide BAR, and after it a narrow one of a page, and one for ports.
    fake.words[4] = 0xc;
    (fake.masks[0], fake.masks[1]) = (0xffff_c000, 0xffff_ffff);
    fake.masks[2] = 0xffff_ff00;
    fake.words[7] = 1;
    fake.words[15] = 0x0000_0200;
    let mut bus = Bus::new(fake);
    let window = PhysRange::sized(PhysAddr::new(0x1000_1000), 0x10_0000);
    let route = |slot: Slot, pin: Pin| {
        assert_eq!((slot.device(), pin.get()), (3, 2));
        InterruptLine::new(36)
    };
    bus.place(window, route);
    let slot = slot(&mut bus);
    let bar = |bus: &mut Bus<Fake>, index| {
        let bar = bus.memory_bar(slot, BarIndex::new(index).unwrap())?;
        Some((bar.start().get(), bar.bytes()))
    };
    assert_eq!(bar(&mut bus, 0), Some((0x1000_4000, 0x4000)));
    assert_eq!(bar(&mut bus, 2), Some((0x1000_8000, 0x100)));
    assert_eq!(bar(&mut bus, 3), None);
    assert_eq!(bus.interrupt_line(slot).map(InterruptLine::get), Some(36));
    // What has a place keeps it, and what does not fit gets none.
    bus.config.words[6] = 0;
    bus.place(
        PhysRange::sized(PhysAddr::new(0x2000_0000), 0x800),
        |_, _| None,
    );
    assert_eq!(bar(&mut bus, 0), Some((0x1000_4000, 0x4000)));
    assert_eq!(bar(&mut bus, 2), None);
    assert_eq!(bus.interrupt_line(slot), None);
}

#[test]
fn messages_have_a_table_within_a_bar() {
    let mut fake = Fake::new();
    fake.words[13] = 0x40;
    fake.words[16] = 0x0001_0011 | ALL_MASKED;
    fake.words[17] = 0x0000_0801;
    fake.words[5] = 0xfebd_1000;
    fake.masks[1] = 0xffff_f000;
    let mut bus = Bus::new(fake);
    let slot = slot(&mut bus);
    assert_eq!(bus.msix(slot, 3), Err(MsixError::TooFew(3)));
    let msix = bus.msix(slot, 2).unwrap();
    assert_eq!(
        (msix.table.start().get(), msix.table.bytes()),
        (0xfebd_1800, 32)
    );
    bus.enable_msix(slot, msix);
    assert_eq!(bus.read(slot, 0x40), 0x8001_0011);
    // A table that leaves its BAR.
    bus.config.words[17] = 0x0000_0ff9;
    assert_eq!(bus.msix(slot, 2), Err(MsixError::Nowhere));
    bus.config.words[17] = 0x0000_0803;
    assert_eq!(bus.msix(slot, 2), Err(MsixError::Nowhere));
}

#[test]
fn entries_are_whole_messages() {
    let message = Message {
        address: PhysAddr::new(0x1_fee0_1000),
        data: 0x41,
    };
    assert_eq!(message.entry(), [0xfee0_1000, 1, 0x41, 0]);
}
