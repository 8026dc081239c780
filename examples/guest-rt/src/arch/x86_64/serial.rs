//! The 16550 consoles: COM1 for people, COM2 for the log.
//!
//! Nothing here waits without end: a port whose reader has stalled drops output
//! until it takes some again.

use embedded_io::{ErrorType, Read, Write};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::console::Stalled;
use crate::interrupts::Trigger;
use crate::pci::InterruptLine;

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

/// Where COM1 interrupts, and how.
pub(crate) const fn console_line() -> Option<(InterruptLine, Trigger)> {
    match InterruptLine::new(4) {
        Some(line) => Some((line, Trigger::Edge)),
        None => None,
    }
}

/// Looks at a full transmitter before it counts as stalled: about a second on
/// an emulated port, where each look leaves the guest.
const PATIENCE: u32 = 1 << 20;

/// One serial port.
#[derive(Debug)]
pub(crate) struct Serial {
    uart: Uart16550<PioBackend>,
    stalled: bool,
}

impl Serial {
    fn open(port: u16, interrupts: IER) -> Option<Self> {
        let config = Config {
            interrupts,
            baud_rate: BaudRate::Baud115200,
            // Each byte of a command is to be seen at once.
            fifo_trigger_level: Some(uart_16550::spec::registers::FifoTriggerLevel::One),
            ..Config::DEFAULT
        };
        let mut serial = Self::at(port)?;
        serial.uart.init(config).ok()?;
        Some(serial)
    }

    fn at(port: u16) -> Option<Self> {
        // SAFETY: a serial port or nobody is there; neither touches memory.
        let uart = unsafe { Uart16550::new_port(port) }.ok()?;
        Some(Self {
            uart,
            stalled: false,
        })
    }
}

/// COM1; `None` if the machine has none.
pub(super) fn console() -> Option<Serial> {
    Serial::open(COM1, IER::DATA_READY)
}

/// COM2; `None` if the machine has none.
pub(super) fn log() -> Option<Serial> {
    Serial::open(COM2, IER::empty())
}

/// COM1 past its owner, for last words.
pub(crate) fn emergency_serial() -> Option<Serial> {
    Serial::at(COM1)
}

impl ErrorType for Serial {
    type Error = Stalled;
}

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Stalled> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let looks = if self.stalled { 1 } else { PATIENCE };
        for _ in 0..looks {
            let sent = self.uart.send_bytes(bytes);
            if sent > 0 {
                self.stalled = false;
                return Ok(sent);
            }
        }
        self.stalled = true;
        Err(Stalled)
    }

    fn flush(&mut self) -> Result<(), Stalled> {
        // The port has taken every byte: what it does with them is its business.
        Ok(())
    }
}

impl Read for Serial {
    /// Takes what is there; unlike most ports this one does not wait.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stalled> {
        Ok(self.uart.receive_bytes(buffer))
    }
}
