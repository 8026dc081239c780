//! The exception vectors and the dispatch of exceptions.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use super::gic;

global_asm!(include_str!("exceptions.s"), dispatch = sym dispatch);

/// An interrupt of code that runs on the ordinary stack: all of ours.
const INTERRUPT: u64 = 1;

static TAKEN: AtomicU64 = AtomicU64::new(0);

/// What a vector saved.
#[repr(C)]
struct Frame {
    scratch: [u64; 20],
    return_to: u64,
    state: u64,
}

/// Interrupts taken since boot, of all kinds.
pub(crate) fn interrupts_taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Called by every vector, with interrupts off.
extern "C" fn dispatch(vector: u64, frame: &Frame) {
    if vector == INTERRUPT {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        gic::handle();
    } else {
        fault(vector, frame);
    }
}

/// No exception is expected: this image neither faults pages in nor traps.
fn fault(vector: u64, frame: &Frame) -> ! {
    let (syndrome, address): (u64, u64);
    // SAFETY: reads two registers that say what happened.
    unsafe {
        asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) syndrome, out(reg) address,
             options(nomem, nostack, preserves_flags));
    }
    let [first, .., last] = frame.scratch;
    panic!(
        "exception vector={vector} syndrome={syndrome:#x} pc={:#x} address={address:#x} \
         state={:#x} x0={first:#x} x30={last:#x}",
        frame.return_to, frame.state
    )
}
