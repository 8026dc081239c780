//! The `defmt` logger: frames on the second serial port.

use core::cell::UnsafeCell;

use critical_section::RestoreState;
use embedded_io::Write;

use crate::arch::{self, Serial};

struct State {
    serial: Option<Serial>,
    encoder: defmt::Encoder,
    restore: RestoreState,
    acquired: bool,
}

struct Shared(UnsafeCell<State>);

// SAFETY: the state is touched with interrupts off only, on the only CPU.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared(UnsafeCell::new(State {
    serial: None,
    encoder: defmt::Encoder::new(),
    restore: RestoreState::invalid(),
    acquired: false,
}));

/// # Safety
/// Interrupts are off and no other reference from here lives.
unsafe fn state() -> &'static mut State {
    // SAFETY: as the caller vouches.
    unsafe { &mut *SHARED.0.get() }
}

/// Takes the port, if the machine has one; frames are dropped otherwise.
pub(crate) fn start(serial: Option<Serial>) {
    critical_section::with(|_| {
        // SAFETY: interrupts are off, and the reference dies here.
        unsafe { state() }.serial = serial;
    });
}

fn send(serial: &mut Option<Serial>, bytes: &[u8]) {
    if let Some(serial) = serial {
        // A stalled reader loses frames; the decoder finds the next one.
        let _ = serial.write_all(bytes);
    }
}

#[defmt::global_logger]
struct SerialLogger;

// SAFETY: between `acquire` and `release` interrupts are off on the only CPU.
unsafe impl defmt::Logger for SerialLogger {
    fn acquire() {
        // SAFETY: `release` ends what begins here.
        let restore = unsafe { critical_section::acquire() };
        // SAFETY: interrupts are off; the reference dies with this function.
        let state = unsafe { state() };
        assert!(!state.acquired, "logger acquired twice");
        state.acquired = true;
        state.restore = restore;
        let State {
            serial, encoder, ..
        } = state;
        encoder.start_frame(|bytes| send(serial, bytes));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: acquired, so interrupts are off; the reference dies before
        // they come back.
        let state = unsafe { state() };
        let State {
            serial, encoder, ..
        } = &mut *state;
        encoder.end_frame(|bytes| send(serial, bytes));
        state.acquired = false;
        let restore = state.restore;
        // SAFETY: begun by `acquire`.
        unsafe { critical_section::release(restore) };
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: acquired, so interrupts are off; the reference dies here.
        let State {
            serial, encoder, ..
        } = unsafe { state() };
        encoder.write(bytes, |bytes| send(serial, bytes));
    }
}

defmt::timestamp!("{=u64:us}", arch::now().as_nanos() / 1000);
