//! Last words. A panic ends the machine with a failure code, whatever state it
//! is in; there is no way from here to the success code.

use core::fmt::{self, Write as _};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use embedded_io::Write;

use crate::{arch, platform};

static PANICKING: AtomicBool = AtomicBool::new(false);

/// Text on one line: the host reads the console by lines.
struct OneLine<W>(W);

impl<W: Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            let (text, broken) = part
                .strip_suffix('\n')
                .map_or((part, false), |text| (text, true));
            self.0.write_all(text.as_bytes()).map_err(|_| fmt::Error)?;
            if broken {
                self.0.write_all(b" ").map_err(|_| fmt::Error)?;
            }
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    critical_section::with(|_| {
        // A panic over a panic leaves without another word.
        if !PANICKING.swap(true, Ordering::Relaxed) {
            if let Some(platform) = platform::get() {
                last_words(platform::Output(platform), info);
            } else if let Some(serial) = arch::emergency_serial() {
                last_words(serial, info);
            }
        }
        arch::exit_failure()
    })
}

fn last_words(mut output: impl Write, info: &PanicInfo<'_>) {
    // The console may be in the middle of a line.
    let _ = output.write_all(b"\n");
    let mut line = OneLine(&mut output);
    let _ = write!(line, "@panic {}", info.message());
    if let Some(place) = info.location() {
        let _ = write!(line, " at {place}");
    }
    let _ = output.write_all(b"\n");
}
