//! The local APIC: passes on the 8259's interrupts, takes messages, and is the
//! one-shot timer.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use thiserror::Error;
use x86_64::registers::model_specific::Msr;

use super::clock::now;
use super::idt::{FIRST_MESSAGE, SPURIOUS, TIMER};
use crate::interrupts;
use crate::memory::{PhysAddr, PhysRange};
use crate::mmio::{MapError, Mmio, OutOfRange};
use crate::pci::Message;
use crate::time::{Instant, Span};
use crate::{platform, timer};

const ID: usize = 0x20;
const SPURIOUS_VECTOR: usize = 0xf0;
const END_OF_INTERRUPT: usize = 0xb0;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
const BYTES: u64 = 0x1000;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const DELIVER_EXTINT: u32 = 0b111 << 8;

/// Register values that divide the timer's clock by 1, 2, 4 ... 128.
const DIVIDERS: [u32; 8] = [
    0b1011, 0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010,
];

/// Why there is no timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum ApicError {
    #[error("it is in x2APIC mode")]
    X2Apic,
    #[error("{0}")]
    Map(#[from] MapError),
    #[error("{0}")]
    Registers(#[from] OutOfRange),
    #[error("its timer stands still")]
    Stopped,
}

#[derive(Debug)]
struct Apic {
    registers: Mmio,
    /// Timer ticks per nanosecond before division, in units of 2^-32.
    scale: u64,
}

static APIC: Once<Apic> = Once::new();
/// When the timer is to go off, for those that lie further than it can count.
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Turns the local APIC on and measures its timer by the clock.
pub(super) fn start() -> Result<(), ApicError> {
    const BASE_MSR: u32 = 0x1b;
    const X2APIC: u64 = 1 << 10;
    // SAFETY: every CPU with long mode has this register.
    let base = unsafe { Msr::new(BASE_MSR).read() };
    if base & X2APIC != 0 {
        return Err(ApicError::X2Apic);
    }
    let base = PhysAddr::new(base & 0x000f_ffff_ffff_f000);
    let registers = Mmio::map(PhysRange::sized(base, BYTES))?;
    registers.write(SPURIOUS_VECTOR, SOFTWARE_ENABLE | u32::from(SPURIOUS))?;
    registers.write(LVT_LINT0, DELIVER_EXTINT)?;
    registers.write(LVT_TIMER, u32::from(TIMER))?;
    let scale = measure(&registers)?;
    APIC.call_once(|| Apic { registers, scale });
    Ok(())
}

fn measure(registers: &Mmio) -> Result<u64, ApicError> {
    const SPAN: Span = Span::from_millis(2);
    let [undivided, ..] = DIVIDERS;
    registers.write(DIVIDE, undivided)?;
    registers.write(INITIAL_COUNT, u32::MAX)?;
    let first = registers.read::<u32>(CURRENT_COUNT)?;
    let from = now();
    while (now() - from).as_nanos() < SPAN.as_nanos() {}
    let last = registers.read::<u32>(CURRENT_COUNT)?;
    let nanos = (now() - from).as_nanos();
    registers.write(INITIAL_COUNT, 0_u32)?;
    let counted = u64::from(first.wrapping_sub(last));
    if counted == 0 {
        Err(ApicError::Stopped)
    } else {
        Ok((counted << 32) / nanos)
    }
}

/// Sets the one timer there is; an earlier setting is void.
pub(crate) fn arm_timer(at: Instant) {
    if let Some(cpu) = platform::cpu() {
        return (cpu.set_timer)(Some(at));
    }
    critical_section::with(|_| {
        DEADLINE.store(at.as_nanos(), Ordering::Relaxed);
        count_towards(at);
    });
}

/// Stops the timer.
pub(crate) fn disarm_timer() {
    if let Some(cpu) = platform::cpu() {
        return (cpu.set_timer)(None);
    }
    critical_section::with(|_| {
        DEADLINE.store(u64::MAX, Ordering::Relaxed);
        write(INITIAL_COUNT, 0);
    });
}

/// Starts the countdown to `at`, or as far as the counter reaches.
fn count_towards(at: Instant) {
    let Some(apic) = APIC.get() else { return };
    let nanos = (at - now()).as_nanos();
    let ticks = (u128::from(nanos) * u128::from(apic.scale)) >> 32;
    let shift = (0..7)
        .find(|shift| ticks >> shift <= u128::from(u32::MAX))
        .unwrap_or(7);
    let count = u32::try_from(ticks >> shift).unwrap_or(u32::MAX);
    let divider = DIVIDERS.get(shift).copied().unwrap_or_default();
    write(DIVIDE, divider);
    // Zero would stop it: what is due goes off at once.
    write(INITIAL_COUNT, count.max(1));
}

fn write(register: usize, value: u32) {
    if let Some(apic) = APIC.get() {
        // All offsets of this file lie within the page.
        let _ = apic.registers.write(register, value);
    }
}

/// The timer's interrupt.
pub(super) fn handle_timer() {
    let deadline = Instant::from_nanos(DEADLINE.load(Ordering::Relaxed));
    if deadline <= now() {
        DEADLINE.store(u64::MAX, Ordering::Relaxed);
        timer::go_off();
    } else if deadline.as_nanos() != u64::MAX {
        count_towards(deadline);
    }
    write(END_OF_INTERRUPT, 0);
}

/// What a device writes to raise the vector of message `index`.
pub(crate) fn message(index: u8) -> Option<Message> {
    const MESSAGE_AREA: u64 = 0xfee0_0000;
    let id = APIC.get()?.registers.read::<u32>(ID).ok()? >> 24;
    let vector = FIRST_MESSAGE.checked_add(index)?;
    Some(Message {
        address: PhysAddr::new(MESSAGE_AREA | u64::from(id) << 12),
        data: vector.into(),
    })
}

/// The interrupt of message `index`.
pub(super) fn handle_message(index: u8) {
    interrupts::handle_message(index);
    write(END_OF_INTERRUPT, 0);
}
