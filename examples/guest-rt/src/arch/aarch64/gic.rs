//! The generic interrupt controller, version 2 or 3: shared interrupts as lines,
//! and with version 2 a frame that takes messages. Every interrupt is masked
//! until somebody listens.

use core::arch::asm;

use spin::Once;
use thiserror::Error;

use super::timer;
use super::tree::Controller;
use crate::interrupts::{self, Trigger};
use crate::memory::{PhysAddr, PhysRange};
use crate::mmio::{MapError, Mmio, OutOfRange};
use crate::pci::{InterruptLine, Message};

/// Interrupts whose handlers are kept: more than `virt` has devices.
pub(crate) const LINES: usize = 255;

/// Numbers from here on are no interrupts.
const SPECIAL: u32 = 1020;

// The distributor; its first banks are those of version 3's redistributor, too.
const CONTROL: usize = 0x000;
const GROUP: usize = 0x080;
const ENABLE: usize = 0x100;
const PRIORITY: usize = 0x400;
const TARGET: usize = 0x800;
const TRIGGER: usize = 0xc00;
const ROUTE: usize = 0x6000;
const DISTRIBUTOR_BYTES: u64 = 0x1_0000;

// The CPU interface of version 2.
const CPU_CONTROL: usize = 0x00;
const CPU_MASK: usize = 0x04;
const CPU_ACKNOWLEDGE: usize = 0x0c;
const CPU_END: usize = 0x10;
const CPU_BYTES: u64 = 0x2000;

// The redistributor of version 3: its second half has the private interrupts.
const WAKER: usize = 0x14;
const PRIVATE: u64 = 0x1_0000;
const ASLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

// The frame that turns writes into interrupts.
const FRAME_TYPE: usize = 0x008;
const FRAME_SET: u64 = 0x040;
const FRAME_BYTES: u64 = 0x1000;

/// Numbers below are a CPU's own.
const FIRST_SHARED: u8 = 32;

/// Why there are no interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum GicError {
    #[error("{0}")]
    Map(#[from] MapError),
    #[error("{0}")]
    Registers(#[from] OutOfRange),
    #[error("the redistributor does not wake up")]
    Asleep,
}

#[derive(Debug)]
enum Gic {
    V2 {
        distributor: Mmio,
        cpu: Mmio,
        messages: Option<Frame>,
    },
    V3 {
        distributor: Mmio,
        private: Mmio,
    },
}

/// Where messages go.
#[derive(Clone, Copy, Debug)]
struct Frame {
    address: PhysAddr,
    first: u8,
    count: u8,
}

static GIC: Once<Gic> = Once::new();

/// Turns the controller on, with everything masked.
pub(super) fn start(controller: Controller) -> Result<(), GicError> {
    const TAKE_ALL: u32 = 0xff;
    let map = |at, bytes| Mmio::map(PhysRange::sized(at, bytes));
    let gic = match controller {
        Controller::V2 {
            distributor,
            cpu,
            messages,
        } => {
            let (distributor, cpu) = (map(distributor, DISTRIBUTOR_BYTES)?, map(cpu, CPU_BYTES)?);
            distributor.write(CONTROL, 1_u32)?;
            cpu.write(CPU_MASK, TAKE_ALL)?;
            cpu.write(CPU_CONTROL, 1_u32)?;
            Gic::V2 {
                distributor,
                cpu,
                messages: messages.and_then(frame),
            }
        }
        Controller::V3 {
            distributor,
            redistributor,
        } => {
            const AFFINITY_AND_GROUP1: u32 = 1 << 4 | 1 << 1;
            let distributor = map(distributor, DISTRIBUTOR_BYTES)?;
            let (waking, private) = (
                map(redistributor, PRIVATE)?,
                map(PhysAddr::new(redistributor.get() + PRIVATE), PRIVATE)?,
            );
            distributor.write(CONTROL, AFFINITY_AND_GROUP1)?;
            wake(&waking)?;
            private.write(GROUP, u32::MAX)?;
            start_cpu_interface();
            Gic::V3 {
                distributor,
                private,
            }
        }
    };
    GIC.call_once(|| gic);
    Ok(())
}

fn wake(redistributor: &Mmio) -> Result<(), GicError> {
    /// Far more looks than it takes.
    const PATIENCE: u32 = 1 << 20;
    let waker = redistributor.read::<u32>(WAKER)?;
    redistributor.write(WAKER, waker & !ASLEEP)?;
    for _ in 0..PATIENCE {
        if redistributor.read::<u32>(WAKER)? & CHILDREN_ASLEEP == 0 {
            return Ok(());
        }
    }
    Err(GicError::Asleep)
}

/// Of version 3: by system registers, everything let through.
fn start_cpu_interface() {
    // SAFETY: turns on the interface; interrupts are off, and all are masked.
    unsafe {
        asm!(
            "mrs {tmp}, S3_0_C12_C12_5", // ICC_SRE_EL1
            "orr {tmp}, {tmp}, #1",
            "msr S3_0_C12_C12_5, {tmp}",
            "isb",
            "mov {tmp}, #0xff",
            "msr S3_0_C4_C6_0, {tmp}", // ICC_PMR_EL1
            "mov {tmp}, #1",
            "msr S3_0_C12_C12_7, {tmp}", // ICC_IGRPEN1_EL1
            "isb",
            tmp = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// What a frame for messages says of itself.
fn frame(address: PhysAddr) -> Option<Frame> {
    let registers = Mmio::map(PhysRange::sized(address, FRAME_BYTES)).ok()?;
    let kind = registers.read::<u32>(FRAME_TYPE).ok()?;
    Some(Frame {
        address,
        first: u8::try_from(kind >> 16 & 0x3ff).ok()?,
        count: u8::try_from(kind & 0x3ff).unwrap_or(u8::MAX),
    })
}

/// Lets interrupts of `line` through.
pub(crate) fn unmask(line: InterruptLine, trigger: Trigger) {
    unmask_number(line.get(), trigger);
}

pub(super) fn unmask_number(number: u8, trigger: Trigger) {
    if let Some(gic) = GIC.get() {
        // All numbers below 256 have registers.
        let _ = critical_section::with(|_| gic.unmask(number, trigger));
    }
}

impl Gic {
    fn unmask(&self, number: u8, trigger: Trigger) -> Result<(), OutOfRange> {
        let shared = number >= FIRST_SHARED;
        let bank = match self {
            Self::V2 { distributor, .. } => distributor,
            Self::V3 { distributor, .. } if shared => distributor,
            Self::V3 { private, .. } => private,
        };
        let at = usize::from(number);
        let (word, bit) = (at / 32 * 4, 1_u32 << (number % 32));
        bank.write::<u8>(PRIORITY + at, 0)?;
        if shared {
            let (place, edge) = (TRIGGER + at / 16 * 4, 2_u32 << (number % 16 * 2));
            let triggers = bank.read::<u32>(place)?;
            let triggers = match trigger {
                Trigger::Edge => triggers | edge,
                Trigger::Level => triggers & !edge,
            };
            bank.write(place, triggers)?;
            match self {
                Self::V2 { .. } => bank.write::<u8>(TARGET + at, 1)?,
                Self::V3 { .. } => {
                    let groups = bank.read::<u32>(GROUP + word)?;
                    bank.write(GROUP + word, groups | bit)?;
                    // To the CPU of affinity zero: ours.
                    bank.write::<u64>(ROUTE + at * 8, 0)?;
                }
            }
        }
        bank.write(ENABLE + word, bit)
    }

    /// Takes the next interrupt that waits.
    fn acknowledge(&self) -> u32 {
        match self {
            // A register that is always there; a number that is no interrupt.
            Self::V2 { cpu, .. } => cpu.read(CPU_ACKNOWLEDGE).unwrap_or(SPECIAL),
            Self::V3 { .. } => {
                let number: u64;
                // SAFETY: ICC_IAR1_EL1: takes an interrupt.
                unsafe {
                    asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) number,
                         options(nostack, preserves_flags));
                }
                u32::try_from(number & 0xff_ffff).unwrap_or(SPECIAL)
            }
        }
    }

    fn end(&self, number: u32) {
        match self {
            Self::V2 { cpu, .. } => {
                let _ = cpu.write(CPU_END, number);
            }
            // SAFETY: ICC_EOIR1_EL1: ends the interrupt that was taken.
            Self::V3 { .. } => unsafe {
                asm!("msr S3_0_C12_C12_1, {}", "isb", in(reg) u64::from(number),
                     options(nostack, preserves_flags));
            },
        }
    }

    const fn messages(&self) -> Option<Frame> {
        match self {
            Self::V2 { messages, .. } => *messages,
            Self::V3 { .. } => None,
        }
    }
}

/// What a device writes to raise message `index`.
pub(crate) fn message(index: u8) -> Option<Message> {
    let frame = GIC.get()?.messages().filter(|frame| index < frame.count)?;
    let number = frame.first.checked_add(index)?;
    unmask_number(number, Trigger::Edge);
    Some(Message {
        address: PhysAddr::new(frame.address.get() + FRAME_SET),
        data: number.into(),
    })
}

/// Serves what waits.
pub(super) fn handle() {
    let Some(gic) = GIC.get() else { return };
    let taken = gic.acknowledge();
    if taken >= SPECIAL {
        return;
    }
    // Only what has a handler was let through.
    if let Ok(number) = u8::try_from(taken) {
        let message = gic
            .messages()
            .and_then(|frame| number.checked_sub(frame.first).filter(|n| *n < frame.count));
        match (message, InterruptLine::new(number)) {
            (Some(index), _) => interrupts::handle_message(index),
            _ if number == timer::INTERRUPT => timer::handle(),
            (None, Some(line)) => interrupts::handle(line),
            (None, None) => {}
        }
    }
    gic.end(taken);
}
