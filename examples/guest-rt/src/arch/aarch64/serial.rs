//! The consoles: a PL011 for people, the emulator's own channel for the log.
//!
//! Nothing here waits without end: a port whose reader has stalled drops output
//! until it takes some again.

use core::sync::atomic::{AtomicU64, Ordering};

use embedded_io::{ErrorType, Read, Write};

use super::semihosting;
use super::tree::Uart;
use crate::console::Stalled;
use crate::interrupts::Trigger;
use crate::memory::{PhysAddr, PhysRange};
use crate::mmio::Mmio;
use crate::pci::InterruptLine;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;
const MASK: usize = 0x38;
const CLEAR: usize = 0x44;
const BYTES: u64 = 0x1000;

const RECEIVE_EMPTY: u32 = 1 << 4;
const TRANSMIT_FULL: u32 = 1 << 5;
/// Eight bits, no queues: each byte is to be seen at once.
const EIGHT_BITS: u32 = 3 << 5;
const ENABLE: u32 = 1 | 1 << 8 | 1 << 9;
const RECEIVED: u32 = 1 << 4;

/// Looks at a full transmitter before it counts as stalled.
const PATIENCE: u32 = 1 << 20;

static REGISTERS: AtomicU64 = AtomicU64::new(0);
static LINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// A way for text.
#[derive(Debug)]
pub(crate) enum Serial {
    /// The serial port.
    Pl011 {
        /// Its registers.
        registers: Mmio,
        /// It took nothing when it was last tried.
        stalled: bool,
    },
    /// The emulator's channel.
    Semihosting,
}

/// The machine's serial port, set up.
pub(super) fn console(uart: Uart) -> Option<Serial> {
    let registers = Mmio::map(PhysRange::sized(uart.registers, BYTES)).ok()?;
    for (register, value) in [
        (CONTROL, 0),
        (CLEAR, 0x7ff),
        (LINE_CONTROL, EIGHT_BITS),
        (MASK, RECEIVED),
        (CONTROL, ENABLE),
    ] {
        registers.write(register, value).ok()?;
    }
    REGISTERS.store(uart.registers.get(), Ordering::Relaxed);
    LINE.store(uart.line.get().into(), Ordering::Relaxed);
    Some(Serial::Pl011 {
        registers,
        stalled: false,
    })
}

/// The channel of the log, which every machine of ours has.
pub(super) const fn log() -> Option<Serial> {
    Some(Serial::Semihosting)
}

/// Where the console interrupts, and how.
pub(crate) fn console_line() -> Option<(InterruptLine, Trigger)> {
    let line = u8::try_from(LINE.load(Ordering::Relaxed)).ok()?;
    Some((InterruptLine::new(line)?, Trigger::Level))
}

/// The serial port past its owner, for last words.
pub(crate) fn emergency_serial() -> Option<Serial> {
    let registers = match REGISTERS.load(Ordering::Relaxed) {
        // Before the device tree was understood: the log takes them.
        0 => return log(),
        address => PhysRange::sized(PhysAddr::new(address), BYTES),
    };
    Some(Serial::Pl011 {
        registers: Mmio::map(registers).ok()?,
        stalled: false,
    })
}

impl ErrorType for Serial {
    type Error = Stalled;
}

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Stalled> {
        let Self::Pl011 { registers, stalled } = self else {
            bytes.iter().copied().for_each(semihosting::write_byte);
            return Ok(bytes.len());
        };
        let Some(&first) = bytes.first() else {
            return Ok(0);
        };
        let full = |registers: &Mmio| {
            let flags = registers.read::<u32>(FLAGS).unwrap_or(TRANSMIT_FULL);
            flags & TRANSMIT_FULL != 0
        };
        let looks = if *stalled { 1 } else { PATIENCE };
        *stalled = (0..looks).all(|_| full(registers));
        if *stalled || registers.write(DATA, u32::from(first)).is_err() {
            return Err(Stalled);
        }
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), Stalled> {
        // The port has taken every byte: what it does with them is its business.
        Ok(())
    }
}

impl Read for Serial {
    /// Takes what is there; unlike most ports this one does not wait.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stalled> {
        let Self::Pl011 { registers, .. } = self else {
            return Ok(0);
        };
        let mut taken = 0;
        for place in buffer {
            let flags = registers.read::<u32>(FLAGS).unwrap_or(RECEIVE_EMPTY);
            if flags & RECEIVE_EMPTY != 0 {
                break;
            }
            let word = registers.read::<u32>(DATA).map_err(|_| Stalled)?;
            [*place, ..] = word.to_le_bytes();
            taken += 1;
        }
        Ok(taken)
    }
}
