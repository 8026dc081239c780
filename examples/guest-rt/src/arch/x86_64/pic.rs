//! The two 8259 interrupt controllers: 16 lines, routed by firmware on `pc` and
//! `q35`, by the board itself on `microvm`. Every line is masked until somebody
//! listens.

use super::idt::LINES as FIRST_VECTOR;
use super::port::Register;
use crate::interrupts::{self, Trigger};
use crate::pci::InterruptLine;

/// Inputs of the two.
pub(crate) const LINES: usize = 16;

// SAFETY: the controllers do not access memory; so for the three below.
const FIRST_COMMAND: Register<u8> = unsafe { Register::new(0x20) };
// SAFETY: as above.
const FIRST_DATA: Register<u8> = unsafe { Register::new(0x21) };
// SAFETY: as above.
const SECOND_COMMAND: Register<u8> = unsafe { Register::new(0xa0) };
// SAFETY: as above.
const SECOND_DATA: Register<u8> = unsafe { Register::new(0xa1) };
// SAFETY: selects how lines are sampled; so for the one below.
const FIRST_LEVEL: Register<u8> = unsafe { Register::new(0x4d0) };
// SAFETY: as above.
const SECOND_LEVEL: Register<u8> = unsafe { Register::new(0x4d1) };

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
    FIRST_DATA.write(FIRST_VECTOR);
    SECOND_DATA.write(FIRST_VECTOR + 8);
    FIRST_DATA.write(1 << CASCADE);
    SECOND_DATA.write(CASCADE);
    FIRST_DATA.write(MODE_8086);
    SECOND_DATA.write(MODE_8086);
    FIRST_DATA.write(!(1 << CASCADE));
    SECOND_DATA.write(0xff);
}

/// Lets interrupts of `line` through.
pub(crate) fn unmask(line: InterruptLine, trigger: Trigger) {
    let (data, level, bit) = match line.get() {
        line @ 0..8 => (FIRST_DATA, FIRST_LEVEL, 1 << line),
        line @ 8..16 => (SECOND_DATA, SECOND_LEVEL, 1 << (line - 8)),
        _ => return,
    };
    critical_section::with(|_| {
        match trigger {
            Trigger::Edge => level.write(level.read() & !bit),
            Trigger::Level => level.write(level.read() | bit),
        }
        data.write(data.read() & !bit);
    });
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
