//! The text console for people and the host's commands.
//!
//! Output goes out at once; input arrives by interrupt and waits in a small
//! buffer until somebody [reads](read_byte) it.

use core::cell::RefCell;
use core::fmt;

use critical_section::Mutex;
use embedded_io::{ErrorKind, Read, Write};
use heapless::Deque;

use crate::arch::{Serial, console_line};
use crate::{interrupts, platform};

/// The other side does not take what we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled;

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("serial port takes no output")
    }
}

impl core::error::Error for Stalled {}

impl embedded_io::Error for Stalled {
    fn kind(&self) -> ErrorKind {
        ErrorKind::TimedOut
    }
}

/// Bytes of input that may wait; further ones are lost.
const INPUT_BYTES: usize = 256;

struct Console {
    serial: Option<Serial>,
    input: Deque<u8, INPUT_BYTES>,
}

static CONSOLE: Mutex<RefCell<Console>> = Mutex::new(RefCell::new(Console {
    serial: None,
    input: Deque::new(),
}));

/// Takes the port, if the machine has one.
pub(crate) fn start(serial: Option<Serial>) {
    critical_section::with(|cs| CONSOLE.borrow_ref_mut(cs).serial = serial);
}

/// Turns on input.
pub(crate) fn listen() {
    if let Some((line, trigger)) = console_line()
        && interrupts::on_line(line, trigger, receive).is_ok()
    {
        // What came before anybody listened raised no interrupt.
        receive();
    }
}

fn receive() {
    critical_section::with(|cs| {
        let console = &mut *CONSOLE.borrow_ref_mut(cs);
        let Some(serial) = &mut console.serial else {
            return;
        };
        let mut bytes = [0; 16];
        while let Ok(count @ 1..) = serial.read(&mut bytes) {
            for byte in bytes.iter().take(count) {
                // Full: the host outruns a guest that is busy; it lost a command.
                let _ = console.input.push_back(*byte);
            }
        }
    });
}

/// Adds input that came another way than by COM1.
pub fn feed(bytes: &[u8]) {
    critical_section::with(|cs| {
        let input = &mut CONSOLE.borrow_ref_mut(cs).input;
        for byte in bytes {
            // Full: as above.
            let _ = input.push_back(*byte);
        }
    });
}

/// The next byte of input, if any.
#[must_use]
pub fn read_byte() -> Option<u8> {
    critical_section::with(|cs| CONSOLE.borrow_ref_mut(cs).input.pop_front())
}

/// Whether input waits.
#[must_use]
pub fn has_input() -> bool {
    critical_section::with(|cs| !CONSOLE.borrow_ref(cs).input.is_empty())
}

/// Writes text; what a stalled port does not take is lost.
pub fn write(text: fmt::Arguments<'_>) {
    critical_section::with(|cs| {
        if let Some(platform) = platform::get() {
            let _ = platform::Output(platform).write_fmt(text);
        } else if let Some(serial) = &mut CONSOLE.borrow_ref_mut(cs).serial {
            let _ = serial.write_fmt(text);
        }
    });
}

/// Writes a line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::console::write(::core::format_args!(
            "{}\n",
            ::core::format_args!($($arg)*)
        ))
    };
}
