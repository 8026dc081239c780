//! The two 8259 interrupt controllers: 16 lines, routed by firmware on `pc` and
//! `q35` alike. Every line is masked until somebody listens.

use super::idt::LINES;
use super::port::Register;
use crate::interrupts;
use crate::pci::InterruptLine;

// SAFETY: the controllers do not access memory; so for the three below.
const FIRST_COMMAND: Register<u8> = unsafe { Register::new(0x20) };
// SAFETY: as above.
const FIRST_DATA: Register<u8> = unsafe { Register::new(0x21) };
// SAFETY: as above.
const SECOND_COMMAND: Register<u8> = unsafe { Register::new(0xa0) };
// SAFETY: as above.
const SECOND_DATA: Register<u8> = unsafe { Register::new(0xa1) };

/// Line of the first controller at which the second one hangs.
const CASCADE: u8 = 2;
const END_OF_INTERRUPT: u8 = 0x20;
const READ_IN_SERVICE: u8 = 0x0b;

/// Moves the lines to their vectors and masks all but the cascade.
pub(super) fn start() {
    const INIT_WITH_ICW4: u8 = 0x11;
    const MODE_8086: u8 = 0x01;
    FIRST_COMMAND.write(INIT_WITH_ICW4);
    SECOND_COMMAND.write(INIT_WITH_ICW4);
    FIRST_DATA.write(LINES);
    SECOND_DATA.write(LINES + 8);
    FIRST_DATA.write(1 << CASCADE);
    SECOND_DATA.write(CASCADE);
    FIRST_DATA.write(MODE_8086);
    SECOND_DATA.write(MODE_8086);
    FIRST_DATA.write(!(1 << CASCADE));
    SECOND_DATA.write(0xff);
}

/// Lets interrupts of `line` through.
pub(crate) fn unmask(line: InterruptLine) {
    let (data, bit) = match line.get() {
        line @ 0..8 => (FIRST_DATA, line),
        line => (SECOND_DATA, line - 8),
    };
    critical_section::with(|_| data.write(data.read() & !(1 << bit)));
}

/// An interrupt of `line`, 0 to 15.
pub(super) fn handle(line: u8) {
    if is_spurious(line) {
        // The first controller did see a request of the second.
        if line >= 8 {
            FIRST_COMMAND.write(END_OF_INTERRUPT);
        }
        return;
    }
    if let Some(line) = InterruptLine::new(line) {
        interrupts::handle(line);
    }
    if line >= 8 {
        SECOND_COMMAND.write(END_OF_INTERRUPT);
    }
    FIRST_COMMAND.write(END_OF_INTERRUPT);
}

/// A request that vanished before it was taken shows as the last line of its
/// controller, not in service.
fn is_spurious(line: u8) -> bool {
    let command = match line {
        7 => FIRST_COMMAND,
        15 => SECOND_COMMAND,
        _ => return false,
    };
    command.write(READ_IN_SERVICE);
    command.read() & 1 << 7 == 0
}
