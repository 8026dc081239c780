//! In place of what a guest in ring 3 may not do itself: interrupts, waiting,
//! the clock, the timer, exceptions.
//!
//! All of it lies in the shared-info page or is a hypercall away. Layout: the
//! first `struct vcpu_info` of Xen's public header `xen.h`.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use balloon_core::{Nanos, Pfn};
use guest_rt::platform::{self, Cpu};
use guest_rt::{Instant, Steady};
use transport_xen::hypercall::{Domain as _, TrapGate};
use transport_xen::{MachineAddress, Vcpu};

use super::tables::{MEMORY, Tables, TablesError};
use crate::kernel::xen::{self, Xen};

/// An upcall is wanted.
const PENDING: usize = 0;
/// Upcalls wait.
const MASK: usize = 1;
/// The address of a page fault.
const CR2: usize = 16;
/// Odd while Xen writes what follows.
const VERSION: usize = 32;
const TICKS: usize = 40;
const SYSTEM_TIME: usize = 48;
const SCALE: usize = 56;
const SHIFT: usize = 60;

const PAGE_FAULT: u64 = 14;
const TRAPS: usize = 32;
const STUB_BYTES: usize = 16;

/// Gives its frame's address to the shared-info page.
#[repr(C, align(4096))]
struct Place(UnsafeCell<[u8; 4096]>);

// SAFETY: what is mapped here is accessed by atomics and volatile accesses.
unsafe impl Sync for Place {}

static SHARED_INFO: Place = Place(UnsafeCell::new([0; 4096]));
/// Xen's time, which counts from the start of the host.
static TIME: Steady = Steady::new();
static UPCALLS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static pv_upcall: u8;
    static pv_failsafe: u8;
    static pv_traps: u8;
}

/// Where shared info is mapped.
pub(super) fn shared_info() -> Pfn {
    Pfn::containing(SHARED_INFO.0.get().addr() as u64)
}

/// Events taken.
pub(crate) fn upcalls() -> u64 {
    UPCALLS.load(Ordering::Relaxed)
}

/// Maps the shared-info page, names the entry points, and stands in for the CPU.
pub(super) fn start(
    mut xen: Xen,
    tables: &mut Tables,
    shared: MachineAddress,
) -> Result<(), TablesError> {
    // SAFETY: nothing but this page's accesses use the place.
    unsafe { tables.set(shared_info().get(), shared.get() | MEMORY) }?;
    let (event, failsafe) = (
        (&raw const pv_upcall).addr(),
        (&raw const pv_failsafe).addr(),
    );
    // SAFETY: entries of Xen's frames, in the image.
    unsafe { xen.set_callbacks(event, failsafe) }?;
    let gates = core::array::from_fn::<_, TRAPS, _>(|vector| TrapGate {
        vector: u8::try_from(vector).unwrap_or(0),
        address: (&raw const pv_traps).addr() + vector * STUB_BYTES,
    });
    // SAFETY: as above, one stub for each exception.
    unsafe { xen.set_traps(&gates) }?;
    xen.stop_periodic_timer(Vcpu::BOOT)?;
    TIME.start(system_time());
    platform::install_cpu(Cpu {
        interrupts_on,
        set_interrupts,
        wait,
        now,
        set_timer,
    });
    Ok(())
}

fn byte(offset: usize) -> &'static AtomicU8 {
    let at = SHARED_INFO.0.get().cast::<u8>().wrapping_add(offset);
    // SAFETY: inside the page, which is mapped for good and shared with Xen.
    unsafe { AtomicU8::from_ptr(at) }
}

fn word(offset: usize) -> u32 {
    let at = SHARED_INFO.0.get().cast::<u8>().wrapping_add(offset);
    // SAFETY: as above; the offsets of this file are aligned.
    unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Acquire)
}

fn long(offset: usize) -> u64 {
    u64::from(word(offset)) | u64::from(word(offset + 4)) << 32
}

fn interrupts_on() -> bool {
    byte(MASK).load(Ordering::SeqCst) == 0
}

pub(super) fn set_interrupts(on: bool) {
    byte(MASK).store(u8::from(!on), Ordering::SeqCst);
    if on
        && byte(PENDING).load(Ordering::SeqCst) != 0
        && let Ok(mut xen) = xen::hypercalls()
    {
        // What came while they waited is delivered on the way out of any call.
        let _ = xen.version();
    }
}

fn wait() {
    if let Ok(mut xen) = xen::hypercalls() {
        // Lets them in and stops, in one step.
        xen.block();
    }
}

/// Xen's time in nanoseconds.
fn system_time() -> u64 {
    loop {
        let version = word(VERSION);
        let (ticks, time, scale) = (long(TICKS), long(SYSTEM_TIME), word(SCALE));
        let [shift, ..] = word(SHIFT).to_le_bytes();
        // SAFETY: every CPU with long mode has the counter; Xen lets us read it.
        let now = unsafe { _rdtsc() };
        fence(Ordering::Acquire);
        if version & 1 == 0 && version == word(VERSION) {
            let since = now.saturating_sub(ticks);
            let shift = shift.cast_signed();
            let since = if shift < 0 {
                since >> shift.unsigned_abs()
            } else {
                since << shift
            };
            let nanos = (u128::from(since) * u128::from(scale)) >> 32;
            return time.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
    }
}

fn now() -> Instant {
    Instant::from_nanos(critical_section::with(|_| TIME.count(system_time())))
}

fn set_timer(at: Option<Instant>) {
    let at = at.map(|at| {
        // As it stands on this host.
        now();
        Nanos::new(TIME.counter_at(at.as_nanos()))
    });
    if let Ok(mut xen) = xen::hypercalls() {
        // A timer that is refused is a timer that does not go off.
        let _ = xen.set_timer(at);
    }
}

/// Called by the entry for events, which wait meanwhile.
pub(super) extern "C" fn upcall() {
    UPCALLS.fetch_add(1, Ordering::Relaxed);
    // Before anything is looked at; nobody does before the rings are there.
    byte(PENDING).store(0, Ordering::SeqCst);
    xen::on_event();
}

/// Called by the entries for exceptions, none of which is expected.
pub(super) extern "C" fn trap(vector: u64, frame: *const u64) -> ! {
    let has_error = matches!(vector, 8 | 10..=14 | 17);
    let at = 2 + usize::from(has_error);
    // SAFETY: Xen's frame begins with two registers, and the error code if any.
    let rip = unsafe { frame.wrapping_add(at).read() };
    let address = if vector == PAGE_FAULT { long(CR2) } else { 0 };
    panic!("exception vector={vector} rip={rip:#x} address={address:#x}")
}
