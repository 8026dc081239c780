//! What the device tree says of the machine. Everything is copied: the tree lies
//! in memory the guest may use for something else later.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node as _, Property, ToCellInt as _};
use thiserror::Error;

use crate::command_line::CommandLine;
use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};
use crate::pci::{InterruptLine, Pin, Slot};
use crate::virtio_mmio::{Places, VirtioMmio};

/// Interrupts that devices share begin here in the controller's numbering.
const FIRST_SHARED: u32 = 32;

/// A serial port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uart {
    pub(super) registers: PhysAddr,
    pub(super) line: InterruptLine,
}

/// The interrupt controller.
#[derive(Clone, Copy, Debug)]
pub(super) enum Controller {
    /// Version 2: distributor, CPU interface, and the frame messages go to.
    V2 {
        distributor: PhysAddr,
        cpu: PhysAddr,
        messages: Option<PhysAddr>,
    },
    /// Version 3: distributor, redistributors.
    V3 {
        distributor: PhysAddr,
        redistributor: PhysAddr,
    },
}

/// The host bridge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pcie {
    /// A MiB for each bus.
    pub(super) configuration: PhysRange,
    /// Where BARs of 32 bits can lie.
    pub(super) window: PhysRange,
    /// By device number modulo 4 and pin.
    lines: [[Option<InterruptLine>; 4]; 4],
}

impl Pcie {
    /// Where a pin of a function of bus 0 leads to.
    pub(super) fn line(&self, slot: Slot, pin: Pin) -> Option<InterruptLine> {
        let of_device = self.lines.get(usize::from(slot.device() % 4))?;
        *of_device.get(usize::from(pin.get() - 1))?
    }
}

/// The machine.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) ram: MemoryMap,
    pub(super) command_line: CommandLine,
    pub(super) uart: Option<Uart>,
    pub(super) controller: Controller,
    pub(super) pcie: Option<Pcie>,
    pub(super) virtio_mmio: Places,
}

/// Why that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum TreeError {
    #[error("no device tree at the start of RAM")]
    Missing,
    #[error("no interrupt controller of version 2 or 3")]
    Controller,
    #[error("{0}")]
    Map(#[from] MapFull),
}

/// Reads the tree at `place`.
///
/// # Safety
/// `place` is mapped, and if a tree begins there all of it is, and nobody has
/// written to it.
pub(super) unsafe fn read(place: PhysAddr) -> Result<Tree, TreeError> {
    // SAFETY: as the caller vouches; the magic is looked at first.
    let tree = unsafe { Fdt::from_raw(place.as_ptr()) };
    let tree = tree.map_err(|_| TreeError::Missing)?;
    let root = tree.root();
    let mut ram = MemoryMap::new();
    for node in root.children() {
        if node.name_without_address() == "memory" {
            for range in ranges(&node) {
                ram.add(range)?;
            }
        }
    }
    let arguments = tree.find_node("/chosen").and_then(|chosen| {
        let arguments = chosen.property("bootargs")?.value_as::<&str>().ok()?;
        Some(CommandLine::from_bytes(arguments.bytes()))
    });
    Ok(Tree {
        ram,
        command_line: arguments.unwrap_or_default(),
        uart: root.children().find_map(|node| uart(&node)),
        controller: root
            .children()
            .find_map(|node| controller(&node))
            .ok_or(TreeError::Controller)?,
        pcie: root.children().find_map(|node| pcie(&node)),
        virtio_mmio: root
            .children()
            .filter_map(|node| virtio_mmio(&node))
            .take(Places::new().capacity())
            .collect(),
    })
}

fn uart(node: &FdtNode<'_>) -> Option<Uart> {
    if !node.is_compatible("arm,pl011") {
        return None;
    }
    Some(Uart {
        registers: ranges(node).next()?.start(),
        line: line(node)?,
    })
}

fn virtio_mmio(node: &FdtNode<'_>) -> Option<VirtioMmio> {
    if !node.is_compatible("virtio,mmio") {
        return None;
    }
    Some(VirtioMmio {
        registers: ranges(node).next()?,
        line: line(node)?,
    })
}

fn controller(node: &FdtNode<'_>) -> Option<Controller> {
    let mut parts = ranges(node).map(PhysRange::start);
    if node.is_compatible("arm,gic-v3") {
        return Some(Controller::V3 {
            distributor: parts.next()?,
            redistributor: parts.next()?,
        });
    }
    if !node.is_compatible("arm,cortex-a15-gic") {
        return None;
    }
    let frame = node
        .children()
        .find(|child| child.is_compatible("arm,gic-v2m-frame"));
    Some(Controller::V2 {
        distributor: parts.next()?,
        cpu: parts.next()?,
        messages: frame.and_then(|frame| Some(ranges(&frame).next()?.start())),
    })
}

/// A bridge whose `ranges` and `interrupt-map` have the cells QEMU gives them.
fn pcie(node: &FdtNode<'_>) -> Option<Pcie> {
    /// Of the first cell of a range: memory of 32 bits.
    const SPACE: u32 = 3 << 24;
    const MEMORY: u32 = 2 << 24;
    if !node.is_compatible("pci-host-ecam-generic") {
        return None;
    }
    let windows = node.property("ranges")?;
    // Kind and bus address, address for us, size.
    let mut windows = windows.as_prop_encoded_array([1, 2, 2, 2]).ok()?;
    let window = windows.find_map(|[kind, _, start, bytes]| {
        (kind.to_int::<u32>().ok()? & SPACE == MEMORY).then_some(())?;
        let start = PhysAddr::new(start.to_int().ok()?);
        Some(PhysRange::sized(start, bytes.to_int().ok()?))
    })?;
    let routes = node.property("interrupt-map")?;
    // Device, its address, pin; controller, its address; kind, number, flags.
    let routes = routes
        .as_prop_encoded_array([1, 2, 1, 1, 2, 1, 1, 1])
        .ok()?;
    let mut lines = [[None; 4]; 4];
    for [device, _, pin, _, _, _, number, _] in routes {
        let device = device.to_int::<u32>().ok()? >> 11 & 3;
        let pin = pin.to_int::<u32>().ok()?.checked_sub(1)?;
        let (device, pin) = (usize::try_from(device).ok()?, usize::try_from(pin).ok()?);
        if let Some(place) = lines.get_mut(device).and_then(|pins| pins.get_mut(pin)) {
            *place = shared(number.to_int().ok()?);
        }
    }
    Some(Pcie {
        configuration: ranges(node).next()?,
        window,
        lines,
    })
}

/// The interrupt of a device: kind, number, flags.
fn line(node: &FdtNode<'_>) -> Option<InterruptLine> {
    let interrupts = node.property("interrupts")?;
    let [kind, number, _] = interrupts.as_prop_encoded_array([1, 1, 1]).ok()?.next()?;
    (kind.to_int::<u32>().ok()? == 0).then_some(())?;
    shared(number.to_int().ok()?)
}

fn shared(number: u32) -> Option<InterruptLine> {
    let number = u8::try_from(number.checked_add(FIRST_SHARED)?).ok()?;
    InterruptLine::new(number)
}

/// What `reg` says, two cells for each of address and size.
fn ranges<'a>(node: &FdtNode<'a>) -> impl Iterator<Item = PhysRange> + use<'a> {
    let entries = node.reg().ok().flatten();
    entries.into_iter().flatten().filter_map(|entry| {
        let start = entry.address().ok()?;
        Some(PhysRange::sized(PhysAddr::new(start), entry.size().ok()?))
    })
}
