//! A second CPU: takes the store's events, and wakes the first one.
//!
//! The rest of this kernel knows one CPU. What this one runs is all here: it
//! enters no critical section, which keeps out interrupts of one CPU alone, and
//! shares with the first one atomics and one lock. It expects no exception: one
//! ends the domain.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use balloon_core::Pfn;
use guest_rt::page_tables;
use spin::{Mutex, MutexGuard, Once};
use transport_xen::events::EventPage;
use transport_xen::hypercall::{Domain as _, Events as _, VcpuStart};
use transport_xen::platform::{Platform, PlatformError};
use transport_xen::{Errno, Gmfn, InfoSlot, MappedPage, Port, Vcpu, Vector};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::structures::idt::InterruptDescriptorTable;

use super::upcall;
use super::xen::{self, Xen, XenError};

global_asm!(include_str!("second.s"), main = sym main, event = sym event);

unsafe extern "C" {
    static second_entry: u8;
    static second_event: u8;
}

const VCPU: Vcpu = Vcpu::new(1);
const SLOT: Option<InfoSlot> = InfoSlot::new(0);
/// Every vector of this CPU means events.
const VECTOR: Option<Vector> = Vector::new(0x31);
const FIRST_VECTOR: u8 = 32;

/// Memory that Xen or the CPU uses by itself.
#[repr(C, align(4096))]
struct Place<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: nobody forms a reference to what is in it.
unsafe impl<const N: usize> Sync for Place<N> {}

impl<const N: usize> Place<N> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }
}

static INFO: Place<4096> = Place::new();
static STACK: Place<{ 4 * 4096 }> = Place::new();
static IDT: Once<InterruptDescriptorTable> = Once::new();
static RUNS: AtomicBool = AtomicBool::new(false);
/// Events of the store that this CPU took.
static STORE_EVENTS: AtomicU64 = AtomicU64::new(0);

/// What its interrupts touch.
pub(super) struct State {
    events: EventPage<MappedPage>,
    store: Port,
    /// Wakes the first CPU.
    wake: Port,
    xen: Xen,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The CPU at rest: it touches nothing that is shared until this is dropped.
pub(super) type Rest = MutexGuard<'static, Option<State>>;

/// Brings it to rest.
pub(super) fn rest() -> Rest {
    STATE.lock()
}

/// Events of the store that it took.
pub(super) fn store_events() -> u64 {
    STORE_EVENTS.load(Ordering::Relaxed)
}

/// Makes the store's events those of the second CPU, and starts it if it does
/// not run yet; `None` if there is none. Returns the port it wakes this CPU by.
///
/// At boot, and again after a restore; no port is unmasked.
pub(super) fn take_store(
    rest: &mut Rest,
    shared_info: Pfn,
    store: Port,
) -> Result<Option<Port>, XenError> {
    let (Some(slot), Some(vector), true) = (SLOT, VECTOR, upcall::is_chosen()) else {
        return Ok(None);
    };
    let mut xen = xen::hypercalls()?;
    let info = INFO.0.get().cast::<u8>();
    let frame = Pfn::containing(info.addr() as u64);
    match Platform::connect_vcpu(&mut xen, VCPU, (Gmfn::of_guest(frame), slot), vector) {
        Err(PlatformError::VcpuInfo(Errno::NoEntry)) => return Ok(None),
        connected => connected?,
    }
    xen.bind_vcpu(store, VCPU)?;
    let wake = xen.bind_ipi(Vcpu::BOOT)?;
    // SAFETY: a page of this module alone, mapped for good.
    let info = unsafe { MappedPage::new(info) };
    let mut events = EventPage::of_vcpu(xen::page(shared_info)?, info, slot);
    events.claim(store);
    rest.replace(State {
        events,
        store,
        wake,
        xen,
    });
    if RUNS.swap(true, Ordering::Relaxed) {
        xen.vcpu_up(VCPU)?;
    } else {
        start(&mut xen)?;
    }
    Ok(Some(wake))
}

fn start(xen: &mut Xen) -> Result<(), XenError> {
    let stack = STACK.0.get();
    let start = VcpuStart {
        entry: (&raw const second_entry).addr(),
        stack: stack.addr() + size_of_val(&STACK),
        argument: 0,
        page_tables: page_tables().ok_or(XenError::NoFrame)?.get(),
    };
    // SAFETY: the entry expects just that, and nothing else has this stack.
    Ok(unsafe { xen.start_vcpu(VCPU, &start) }?)
}

/// First Rust code on this CPU, with interrupts off, and all there is beside
/// [`event`].
extern "C" fn main() -> ! {
    let table = IDT.call_once(|| {
        let mut table = InterruptDescriptorTable::new();
        for vector in FIRST_VECTOR..=u8::MAX {
            let stub = VirtAddr::from_ptr(&raw const second_event);
            // SAFETY: takes an interrupt without error code, and returns.
            unsafe { table[vector].set_handler_addr(stub) };
        }
        table
    });
    table.load();
    upcall::enable();
    loop {
        interrupts::enable_and_hlt();
    }
}

/// Called by each interrupt of this CPU.
extern "C" fn event() {
    let mut state = STATE.lock();
    upcall::end();
    let Some(State {
        events,
        store,
        wake,
        xen,
    }) = state.as_mut()
    else {
        return;
    };
    events.take_pending(|port| {
        if port == *store {
            STORE_EVENTS.fetch_add(1, Ordering::Relaxed);
            xen::call_store();
            // A port that is gone: the client's clock finds out.
            let _ = xen.notify(*wake);
        }
    });
}
