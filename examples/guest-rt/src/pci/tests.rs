use super::*;
use alloc::vec::Vec;

const ALL_MASKED: u32 = 1 << 30;

/// One device in slot 3, function 0, of bus 0.
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

    fn get(&self, offset: u8) -> u32 {
        self.words[usize::from(offset / 4)]
    }

    fn set(&mut self, offset: u8, value: u32) {
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

impl ConfigSpace for Fake {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        if slot != Slot::new(0, 3, 0).unwrap() {
            return u32::MAX;
        }
        self.get(offset)
    }

    fn write(&mut self, _slot: Slot, offset: u8, value: u32) {
        self.set(offset, value);
    }
}

fn slot(bus: &mut Hierarchy<Fake>) -> Slot {
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
    let mut bus = Hierarchy::new(Fake::new());
    assert_eq!(slot(&mut bus), Slot::new(0, 3, 0).unwrap());
    assert_eq!(bus.find(|id| id.vendor == 0x8086), None);
}

#[test]
fn wide_bars_far_up_are_read_and_left_as_they_were() {
    let mut fake = Fake::new();
    fake.words[8] = 0x0000_400c;
    fake.words[9] = 0xc0;
    fake.masks[4] = 0xffff_c000;
    fake.masks[5] = 0xffff_ffff;
    let mut bus = Hierarchy::new(fake);
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
    let mut bus = Hierarchy::new(fake);
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
    let mut bus = Hierarchy::new(fake);
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
    let mut bus = Hierarchy::new(Fake::new());
    let slot = slot(&mut bus);
    bus.config.words[1] |= COMMAND_NO_INTX;
    bus.enable(slot);
    let command = bus.read(slot, COMMAND) & 0xffff;
    assert_eq!(command, COMMAND_MEMORY | COMMAND_MASTER);
}

#[test]
fn interrupt_lines_out_of_range_are_refused() {
    let mut bus = Hierarchy::new(Fake::new());
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
    let mut bus = Hierarchy::new(fake);
    let window = PhysRange::sized(PhysAddr::new(0x1000_1000), 0x10_0000);
    let route = |slot: Slot, pin: Pin| {
        assert_eq!((slot.device(), pin.get()), (3, 2));
        InterruptLine::new(36)
    };
    bus.place(window, route);
    let slot = slot(&mut bus);
    let bar = |bus: &mut Hierarchy<Fake>, index| {
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
    let mut bus = Hierarchy::new(fake);
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

/// Functions and bridges: configuration cycles reach what bridges let them.
#[derive(Default)]
struct Board(Vec<Node>);

struct Node {
    /// The bridge in front of it.
    behind: Option<usize>,
    device: u8,
    config: Fake,
}

impl Board {
    fn device(&mut self, behind: Option<usize>, device: u8) -> usize {
        let mut config = Fake::new();
        // A wide BAR of 16 KiB, and INTA.
        config.words[4] = 0xc;
        (config.masks[0], config.masks[1]) = (0xffff_c000, 0xffff_ffff);
        config.words[15] = 0x0000_0100;
        self.add(behind, device, config)
    }

    fn bridge(&mut self, behind: Option<usize>, device: u8) -> usize {
        let mut config = Fake::new();
        config.words[0] = 0x000c_1b36;
        config.words[3] = 0x0001_0000;
        config.words[15] = 0x0000_0100;
        // A narrow BAR of a page; behind its place begin numbers and windows.
        config.masks = [0xffff_f000, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX];
        // A slot, switched on.
        config.words[13] = 0x40;
        config.words[16] = 0x0000_0010;
        config.words[22] = 0x0000_0103;
        self.add(behind, device, config)
    }

    fn add(&mut self, behind: Option<usize>, device: u8, config: Fake) -> usize {
        self.0.push(Node {
            behind,
            device,
            config,
        });
        self.0.len() - 1
    }

    fn numbers(&self, bridge: usize) -> [u8; 4] {
        self.0[bridge].config.words[6].to_le_bytes()
    }

    fn window(&self, bridge: usize) -> (u64, u64) {
        let word = u64::from(self.0[bridge].config.words[8]);
        ((word & 0xfff0) << 16, (word & 0xfff0_0000) + 0x10_0000)
    }

    fn bar(&self, node: usize) -> u64 {
        let words = &self.0[node].config.words;
        u64::from(words[4] & !0xf) | u64::from(words[5]) << 32
    }

    fn line(&self, node: usize) -> u8 {
        self.0[node].config.words[15].to_le_bytes()[0]
    }

    fn reach(&mut self, slot: Slot) -> Option<&mut Fake> {
        let at = (0..self.0.len()).find(|&at| {
            let node = &self.0[at];
            let bus = node.behind.map_or(0, |bridge| self.numbers(bridge)[1]);
            let mut above = node.behind;
            let mut open = node.device == slot.device && slot.function == 0 && bus == slot.bus;
            while let Some(bridge) = above {
                let [_, secondary, last, _] = self.numbers(bridge);
                open &= secondary > 0 && (secondary..=last).contains(&slot.bus);
                above = self.0[bridge].behind;
            }
            open
        })?;
        Some(&mut self.0[at].config)
    }
}

impl ConfigSpace for Board {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        self.reach(slot)
            .map_or(u32::MAX, |config| config.get(offset))
    }

    fn write(&mut self, slot: Slot, offset: u8, value: u32) {
        if let Some(config) = self.reach(slot) {
            config.set(offset, value);
        }
    }
}

fn window() -> PhysRange {
    PhysRange::sized(PhysAddr::new(0x1000_0000), 0x1000_0000)
}

fn balloons(pci: &mut Hierarchy<Board>) -> Option<Slot> {
    pci.find(|id| id.vendor == 0x1af4)
}

#[test]
fn devices_are_found_behind_bridges_once_buses_have_numbers() {
    let mut board = Board::default();
    let port = board.bridge(None, 1);
    let other = board.bridge(None, 2);
    let old = board.bridge(Some(other), 0);
    let deep = board.device(Some(old), 5);
    let beside = board.device(None, 3);
    board.0[beside].config.words[0] = 0x100e_8086;
    let mut pci = Hierarchy::new(board);
    assert_eq!(balloons(&mut pci), None, "nobody has numbered the buses");
    let asked = core::cell::RefCell::new(Vec::new());
    pci.place(window(), |slot, pin| {
        asked.borrow_mut().push((slot.device(), pin.get()));
        InterruptLine::new(32 + slot.device() * 4 + pin.get())
    });
    assert_eq!(balloons(&mut pci), Slot::new(3, 5, 0));
    let board = &pci.config;
    assert_eq!(board.numbers(port)[..3], [0, 1, 1]);
    assert_eq!(board.numbers(other)[..3], [0, 2, 3]);
    assert_eq!(board.numbers(old)[..3], [2, 3, 3]);
    // INTA of device 5 is INTB of the bridge in front of it, and that of the port.
    assert_eq!(board.line(deep), 32 + 2 * 4 + 2);
    assert!(asked.borrow().contains(&(2, 2)));
    // Windows hold what is behind them, and do not overlap.
    let (first, outer, inner) = (board.window(port), board.window(other), board.window(old));
    assert!(
        first.0 < first.1 && first.1 <= outer.0,
        "{first:x?} {outer:x?}"
    );
    assert!(outer.0 <= inner.0 && inner.1 <= outer.1, "{inner:x?}");
    let bar = board.bar(deep);
    assert!(inner.0 <= bar && bar + 0x4000 <= inner.1, "{bar:#x}");
    // Of bus 0, beside all windows.
    let bar = board.bar(beside);
    assert!(bar >= outer.1, "{bar:#x}");
    // They pass on memory and what devices write, and no ports.
    for bridge in [port, other, old] {
        let words = &board.0[bridge].config.words;
        let enabled = COMMAND_MEMORY | COMMAND_MASTER;
        assert_eq!(words[1] & enabled, enabled);
        assert_eq!((words[7] & 0xffff, words[9]), (0xf0, 0xfff0));
    }
}

#[test]
fn what_is_plugged_in_gets_room_in_the_window_of_its_port() {
    let mut board = Board::default();
    let port = board.bridge(None, 4);
    let mut pci = Hierarchy::new(board);
    pci.place(window(), |_, pin| InterruptLine::new(40 + pin.get()));
    assert_eq!(balloons(&mut pci), None);
    let plugged = pci.config.device(Some(port), 0);
    let slot = balloons(&mut pci).unwrap();
    assert_eq!(slot.bus(), 1);
    let bridge = pci.bridge_to(slot).unwrap();
    assert_eq!(bridge, Slot::new(0, 4, 0).unwrap());
    for _ in 0..2 {
        pci.place_plugged(bridge);
        let (start, end) = pci.config.window(port);
        let bar = pci.config.bar(plugged);
        assert!(start <= bar && bar + 0x4000 <= end, "{bar:#x}");
        assert_eq!(pci.config.line(plugged), 41);
    }
    // A second one lies beside it.
    let second = pci.config.device(Some(port), 7);
    pci.place_plugged(bridge);
    assert!(pci.config.bar(second) >= pci.config.bar(plugged) + 0x4000);
    // Its INTA would be another pin of the port, of which nobody knows the line.
    assert_eq!(pci.config.line(second), u8::MAX);
}

#[test]
fn slots_have_a_switch() {
    let mut board = Board::default();
    let port = board.bridge(None, 4);
    let mut pci = Hierarchy::new(board);
    let slot = Slot::new(0, 4, 0).unwrap();
    let mut control = |on| {
        pci.set_slot_power(slot, on);
        pci.config.0[port].config.words[22]
    };
    assert_eq!(control(false), 0x0703);
    assert_eq!(control(true), 0x0103);
}

#[test]
fn bridges_in_a_circle_or_without_end_are_left() {
    // Bus 0 behind bus 0, and a bridge before itself.
    let mut board = Board::default();
    let one = board.bridge(None, 1);
    let two = board.bridge(Some(one), 0);
    let mut pci = Hierarchy::new(board);
    pci.config.0[one].config.words[6] = 0x00ff_0100;
    pci.config.0[two].config.words[6] = 0x00ff_0101;
    assert_eq!(balloons(&mut pci), None);
    // More in a row than are followed.
    let mut board = Board::default();
    let mut last = board.bridge(None, 1);
    for _ in 0..12 {
        last = board.bridge(Some(last), 0);
    }
    board.device(Some(last), 0);
    let mut pci = Hierarchy::new(board);
    pci.place(window(), |_, _| None);
    assert_eq!(balloons(&mut pci), None);
}
