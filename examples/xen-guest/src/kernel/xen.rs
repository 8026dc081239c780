//! This kernel on Xen: hypercalls, event interrupts, console, the way out.

use core::arch::global_asm;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use balloon_core::Pfn;
use critical_section::Mutex;
use guest_rt::platform::{self, Platform as RtPlatform};
use guest_rt::{
    BootInfo, CommandLine, EVENT_VECTOR, PhysAddr, PhysRange, console, interrupts, mmio, timer,
};
use spin::Once;
use thiserror::Error;
use transport_xen::events::EventPage;
use transport_xen::hypercall::gate::{Cpuid, Gate, HypercallPage, Instruction};
use transport_xen::hypercall::{Domain as _, Events as _, Guest, ShutdownReason, Virq};
use transport_xen::platform::{Channel, Platform, PlatformError};
use transport_xen::{Errno, MappedPage, Port, Vcpu, Vector};
use x86_64::instructions::port::PortWriteOnly;
use xen_guest::ConsoleRing;

use super::second::Rest;
use super::{pv, second, upcall};

/// This domain's hypercalls.
pub(super) type Xen = Guest<Way>;

/// How they are made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Instruction(Instruction),
    Page(HypercallPage),
}

// SAFETY: each of them is a gate.
unsafe impl Gate for Way {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        match self {
            // SAFETY: the caller vouches for the arguments.
            Self::Instruction(gate) => unsafe { gate.call(number, args) },
            // SAFETY: as above.
            Self::Page(gate) => unsafe { gate.call(number, args) },
        }
    }
}

/// Whether the command line wants the hypercall page.
pub(super) fn wants_page(line: &CommandLine) -> bool {
    line.get("gate") == Some("page")
}

// Filled by Xen, executed if that is asked for.
global_asm!(
    ".section .text.hypercall_page, \"ax\", @progbits",
    ".p2align 12",
    "xen_hypercall_page:",
    ".skip 4096, 0xcc",
    ".text",
    ".global xen_hypercall_page",
);

unsafe extern "C" {
    static xen_hypercall_page: u8;
}

/// Xen's port for a guest's first and last words.
const DEBUG_PORT: u16 = 0xe9;
const FRAME: u64 = 4096;

/// Why this is no Xen domain this kernel can run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum XenError {
    /// No hypervisor, or another one.
    #[error("this machine is no Xen domain")]
    Absent,
    /// The memory map leaves no frame number for shared pages.
    #[error("no frame for shared info")]
    NoFrame,
    /// A shared page cannot be mapped.
    #[error("mapping a shared page: {0}")]
    Map(#[from] mmio::MapError),
    /// Xen refused something.
    #[error("{0}")]
    Platform(#[from] PlatformError),
    /// Xen refuses a timer or an interrupt.
    #[error("interrupts: {0}")]
    Interrupts(#[from] Errno),
}

/// What interrupts and the console touch.
struct State {
    events: EventPage<MappedPage>,
    console: Option<(ConsoleRing<MappedPage>, Port)>,
    store: Option<Port>,
    timer: Option<Port>,
}

static XEN: Once<Xen> = Once::new();
static STATE: Mutex<RefCell<Option<State>>> = Mutex::new(RefCell::new(None));
static STORE_CALLED: AtomicBool = AtomicBool::new(false);
/// Events of the store that the first CPU took.
static STORE_EVENTS: AtomicU64 = AtomicU64::new(0);

/// The ties to the domain, and where they are kept.
#[derive(Debug)]
pub(super) struct Ties {
    shared_info: Pfn,
    platform: Platform,
}

/// Makes the hypercalls of a translated guest known, before anything else; those of
/// a PV guest are.
pub(super) fn find(line: &CommandLine) -> Result<Xen, XenError> {
    if let Some(xen) = XEN.get() {
        return Ok(*xen);
    }
    let cpuid = Cpuid::find().ok_or(XenError::Absent)?;
    if !wants_page(line) {
        return Ok(begin(Way::Instruction(cpuid.instruction())));
    }
    let page = &raw const xen_hypercall_page;
    // SAFETY: ring 0, and the page is set aside for this.
    unsafe { cpuid.install(PhysAddr::of(page).get()) };
    // SAFETY: just installed.
    Ok(begin(unsafe { page_gate() }))
}

/// The hypercalls, by whoever needs them.
pub(super) fn hypercalls() -> Result<Xen, XenError> {
    XEN.get().copied().ok_or(XenError::Absent)
}

/// The way through the page.
///
/// # Safety
/// The hypercall page is filled.
pub(super) unsafe fn page_gate() -> Way {
    // SAFETY: filled, as the caller vouches, and mapped executable for good.
    Way::Page(unsafe { HypercallPage::new(&raw const xen_hypercall_page) })
}

/// Makes hypercalls and the console known.
pub(super) fn begin(way: Way) -> Xen {
    // SAFETY: on Xen, with memory mapped one to one; frames passed on come from
    // the allocator.
    let xen = unsafe { Guest::new(way) };
    platform::install(RtPlatform { write, exit });
    *XEN.call_once(|| xen)
}

/// Connects to the domain's rings and interrupts. Nothing interrupts before that
/// is done: an event that came earlier would be raised again and again, as nobody
/// could take it.
pub(super) fn connect(boot: &BootInfo) -> Result<Ties, XenError> {
    interrupts::on_event(on_event);
    critical_section::with(|_| tie(boot))
}

fn tie(boot: &BootInfo) -> Result<Ties, XenError> {
    if let Some(pv::Domain {
        platform,
        shared_info,
    }) = pv::domain()
    {
        let ties = Ties {
            shared_info,
            platform,
        };
        ties.listen(EventPage::new(page(shared_info)?), &mut second::rest())?;
        return Ok(ties);
    }
    let mut xen = hypercalls()?;
    // A frame that never was RAM: mapping over it costs none.
    let end = boot.ram().iter().last().ok_or(XenError::NoFrame)?.end();
    let shared_info = Pfn::containing(end.get() + FRAME);
    let mut events = EventPage::new(page(shared_info)?);
    let vector = Vector::new(EVENT_VECTOR).ok_or(XenError::NoFrame)?;
    let platform = Platform::connect(&mut xen, shared_info, &mut events, vector)?;
    upcall::choose(boot)?;
    upcall::direct(&mut xen, vector)?;
    let ties = Ties {
        shared_info,
        platform,
    };
    ties.listen(events, &mut second::rest())?;
    Ok(ties)
}

impl Ties {
    /// The store's ring, if this domain has a store.
    pub(super) const fn store(&self) -> Option<Channel> {
        self.platform.store
    }

    /// After a restore: everything but memory is new.
    pub(super) fn rebuild(&mut self, rest: &mut Rest) -> Result<(), XenError> {
        let mut xen = hypercalls()?;
        let mut events = EventPage::new(page(self.shared_info)?);
        let vector = Vector::new(EVENT_VECTOR).ok_or(XenError::NoFrame)?;
        self.platform
            .rebuild(&mut xen, self.shared_info, &mut events, vector)?;
        upcall::direct(&mut xen, vector)?;
        self.listen(events, rest)
    }

    fn listen(&self, mut events: EventPage<MappedPage>, rest: &mut Rest) -> Result<(), XenError> {
        let console = match self.platform.console {
            Some(channel) => Some((ConsoleRing::new(page(channel.frame)?), channel.port)),
            None => None,
        };
        let store = self.platform.store.map(|store| store.port);
        let console_port = console.as_ref().map(|(_, port)| *port);
        let mut xen = hypercalls()?;
        // Others have a local APIC.
        let timer = match pv::domain() {
            Some(_) => Some(xen.bind_virq(Virq::Timer, Vcpu::BOOT)?),
            None => None,
        };
        let wake = match store {
            Some(store) => second::take_store(rest, self.shared_info, store)?,
            None => None,
        };
        if let (Some(_), Some(store)) = (wake, store) {
            events.release(store);
        }
        critical_section::with(|cs| {
            STATE.borrow_ref_mut(cs).replace(State {
                events,
                console,
                store,
                timer,
            });
        });
        for port in [store, console_port, timer, wake].into_iter().flatten() {
            // A port that is gone will be silent; the client asks by the clock.
            let _ = xen.unmask(port);
        }
        // What came before there was a state: Xen raises no more until it is taken.
        take_events();
        call_store();
        Ok(())
    }
}

/// A page shared with the domain or the hypervisor.
pub(super) fn page(pfn: Pfn) -> Result<MappedPage, XenError> {
    let range = PhysRange::sized(PhysAddr::new(pfn.address()), FRAME);
    let address = match pv::domain() {
        // The builder puts them among the domain's memory.
        Some(_) => pv::pointer(pfn.address()),
        None => mmio::map_shared(range)?,
    };
    // SAFETY: mapped for good; each caller takes a page of its own.
    Ok(unsafe { MappedPage::new(address) })
}

/// The store has called: from any CPU.
pub(super) fn call_store() {
    STORE_CALLED.store(true, Ordering::Release);
}

/// Events of the store that the first CPU took.
pub(super) fn store_events() -> u64 {
    STORE_EVENTS.load(Ordering::Relaxed)
}

/// Whether the store has called since the last time.
pub(super) fn take_store_called() -> bool {
    STORE_CALLED.swap(false, Ordering::Acquire)
}

/// Whether the store has called.
pub(super) fn store_called() -> bool {
    STORE_CALLED.load(Ordering::Relaxed)
}

/// Events are pending: called with interrupts off.
pub(super) fn on_event() {
    // In any case: the local APIC holds back the next one until then.
    upcall::end();
    take_events();
}

fn take_events() {
    critical_section::with(|cs| {
        let mut state = STATE.borrow_ref_mut(cs);
        let Some(State {
            events,
            console,
            store,
            timer,
        }) = state.as_mut()
        else {
            return;
        };
        events.take_pending(|port| {
            if Some(port) == *store {
                STORE_EVENTS.fetch_add(1, Ordering::Relaxed);
                call_store();
            }
            if Some(port) == *timer {
                timer::go_off();
            }
            if let Some((ring, ours)) = console
                && port == *ours
            {
                for byte in ring.input() {
                    console::feed(&[byte]);
                }
            }
        });
    });
}

/// Looks at a full ring before the rest is dropped: xenconsoled is woken by
/// each, and needs its share of the CPU.
const PATIENCE: u32 = 1 << 12;

fn write(bytes: &[u8]) {
    critical_section::with(|cs| {
        let mut state = STATE.borrow_ref_mut(cs);
        let console = state.as_mut().and_then(|state| state.console.as_mut());
        let (Some((ring, port)), Some(&(mut xen))) = (console, XEN.get()) else {
            early(bytes);
            return;
        };
        let mut left = bytes;
        for _ in 0..PATIENCE {
            left = ring.write(left);
            let _ = xen.notify(*port);
            if left.is_empty() {
                return;
            }
            xen.yield_cpu();
        }
    });
}

/// Words that Xen itself prints, where there is no console yet, or none at all.
fn early(bytes: &[u8]) {
    if let Some(&(mut xen)) = XEN.get()
        && xen.print(bytes).is_ok()
    {
        return;
    }
    if pv::domain().is_some() {
        // Ports are not a PV guest's.
        return;
    }
    let mut port = PortWriteOnly::<u8>::new(DEBUG_PORT);
    for &byte in bytes {
        // SAFETY: Xen's, or nobody's.
        unsafe { port.write(byte) };
    }
}

fn exit(success: bool) -> ! {
    let Some(&(mut xen)) = XEN.get() else {
        loop {
            x86_64::instructions::hlt();
        }
    };
    for _ in 0..PATIENCE {
        let drained = critical_section::with(|cs| {
            let state = STATE.borrow_ref(cs);
            let console = state.as_ref().and_then(|state| state.console.as_ref());
            console.is_none_or(|(ring, _)| ring.is_drained())
        });
        if drained {
            break;
        }
        xen.yield_cpu();
    }
    let reason = if success {
        ShutdownReason::PowerOff
    } else {
        ShutdownReason::Crash
    };
    loop {
        // Neither returns.
        let _ = xen.shutdown(reason);
    }
}
