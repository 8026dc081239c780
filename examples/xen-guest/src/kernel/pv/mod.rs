//! This kernel as a PV guest: no page tables, interrupts or timer of the CPU's
//! own, but Xen's.
//!
//! The builder maps the image and what it tells at their frames' addresses;
//! [`tables`] goes on that way, so that memory is one to one here, too. [`cpu`]
//! stands in for the instructions that a guest in ring 3 may not execute, and
//! [`p2m`] keeps the list of machine frames for the balloon.

mod cpu;
mod p2m;
mod tables;

use core::arch::global_asm;
use core::cell::RefCell;
use core::ptr::with_exposed_provenance_mut;

use balloon_core::Pfn;
use critical_section::Mutex;
use guest_rt::{CommandLine, MemoryMap, PhysAddr, PhysRange, boot};
use spin::Once;
use transport_xen::events::EventPage;
use transport_xen::hypercall::gate::Instruction;
use transport_xen::platform::{Channel, Platform};
use transport_xen::{Gmfn, MappedPage};
use xen_guest::{Ring, StartInfo};

use super::xen;
pub(super) use cpu::upcalls;
pub(super) use p2m::P2m;
use tables::Tables;

unsafe extern "C" {
    static __image_end: u8;
}

global_asm!(
    include_str!("entry.s"),
    start = sym start,
    upcall = sym cpu::upcall,
    trap = sym cpu::trap,
);

const FRAME: u64 = 4096;
/// As little is used of memory as of a PC's, which has its firmware there.
const LOW_MEMORY: u64 = 1 << 20;

/// What the builder told, for the rest of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Domain {
    /// The rings.
    pub(super) platform: Platform,
    /// Where shared info is mapped.
    pub(super) shared_info: Pfn,
}

static DOMAIN: Once<Domain> = Once::new();
static P2M: Mutex<RefCell<Option<P2m>>> = Mutex::new(RefCell::new(None));

/// The domain, if it is of this kind.
pub(super) fn domain() -> Option<Domain> {
    DOMAIN.get().copied()
}

/// The list of machine frames, once.
pub(super) fn take_p2m() -> Option<P2m> {
    critical_section::with(|cs| P2M.borrow_ref_mut(cs).take())
}

/// First Rust code, on the boot stack, with the builder's page tables.
extern "C" fn start(info: *mut u8) -> ! {
    // SAFETY: the builder maps the page it passes, and nobody else knows it.
    let page = unsafe { MappedPage::new(info) };
    let command_line = CommandLine::from_bytes(StartInfo::command_line(&page));
    let xen = xen::begin(if xen::wants_page(&command_line) {
        // SAFETY: the builder has filled the page that the ELF note names.
        unsafe { xen::page_gate() }
    } else {
        xen::Way::Instruction(Instruction::Syscall)
    });
    let Some(told) = StartInfo::read(&page) else {
        panic!("no start information")
    };
    // SAFETY: the builder's list, as long as the domain has frames, and handed
    // to nobody else.
    let list = unsafe { p2m::list(&told) };
    // SAFETY: the builder's tables.
    let mut tables = unsafe { Tables::new(&told, xen) };
    if let Err(error) = cpu::start(xen, &mut tables, told.shared_info) {
        panic!("shared info: {error}");
    }
    let used = [
        told.p2m + told.frames * 8,
        info.addr() as u64 + FRAME,
        // Behind the tables lies the builder's stack.
        told.root + (told.tables + 1) * FRAME,
        PhysAddr::of(&raw const __image_end).get(),
    ];
    let used = used.into_iter().max().unwrap_or(0).div_ceil(FRAME);
    let rings = [told.store, told.console].into_iter().flatten();
    let used = rings
        .map(|ring| pfn(ring.frame).get() + 1)
        .fold(used, u64::max);
    let used = match tables.map_all(list, used) {
        Ok(used) => used,
        Err(error) => panic!("page tables: {error}"),
    };
    let domain = DOMAIN.call_once(|| Domain {
        platform: Platform {
            store: told.store.map(channel),
            awaited: None,
            console: told.console.map(channel),
        },
        shared_info: cpu::shared_info(),
    });
    // SAFETY: mapped above; interrupts are off, so nobody else looks.
    let events = unsafe { MappedPage::new(pointer(domain.shared_info.address())) };
    EventPage::new(events).mask_all();
    critical_section::with(|cs| P2M.replace(cs, Some(P2m::new(list, tables, xen))));

    let mut ram = MemoryMap::new();
    let mut free = MemoryMap::new();
    let end = PhysAddr::new(told.frames * FRAME);
    let mapped = ram
        .add(PhysRange::new(PhysAddr::new(0), end))
        .and_then(|()| {
            free.add(PhysRange::new(
                PhysAddr::new(used.max(LOW_MEMORY / FRAME) * FRAME),
                end,
            ))
        });
    if let Err(error) = mapped {
        panic!("memory map: {error}");
    }
    cpu::set_interrupts(true);
    boot::enter(ram, free, command_line)
}

/// Where an address of memory is mapped: there.
pub(super) fn pointer<T>(address: u64) -> *mut T {
    with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn channel(ring: Ring) -> Channel {
    Channel {
        frame: pfn(ring.frame),
        port: ring.port,
    }
}

/// The frame of ours that a machine frame is behind.
fn pfn(gmfn: Gmfn) -> Pfn {
    Pfn::new(tables::frame_of_machine(gmfn.get()))
}
