//! Interrupt lines, and idling until one fires.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use crate::arch;
use crate::pci::InterruptLine;

static HANDLERS: [Once<fn()>; 16] = [const { Once::new() }; 16];
static HALTS: AtomicU64 = AtomicU64::new(0);

/// The line has a handler already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTaken;

impl fmt::Display for LineTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupt line has a handler already")
    }
}

impl core::error::Error for LineTaken {}

/// Calls `handler`, with interrupts off, whenever `line` fires, from now on.
///
/// The handler has to quiet its device: lines are level-triggered.
///
/// # Errors
/// When the line has a handler already.
pub fn on_line(line: InterruptLine, handler: fn()) -> Result<(), LineTaken> {
    let slot = HANDLERS.get(usize::from(line.get())).ok_or(LineTaken)?;
    let mut ours = false;
    slot.call_once(|| {
        ours = true;
        handler
    });
    if !ours {
        return Err(LineTaken);
    }
    arch::unmask(line);
    Ok(())
}

/// Called by the controller's driver.
pub(crate) fn handle(line: InterruptLine) {
    if let Some(handler) = HANDLERS.get(usize::from(line.get())).and_then(Once::get) {
        handler();
    }
}

static EVENTS: Once<fn()> = Once::new();

/// Calls `handler`, with interrupts off, for each interrupt of
/// [`EVENT_VECTOR`](crate::EVENT_VECTOR), which a hypervisor raises by itself:
/// no controller is told that it was served. The first handler stays.
pub fn on_event(handler: fn()) {
    EVENTS.call_once(|| handler);
}

/// Called by the dispatch of interrupts.
pub(crate) fn handle_event() {
    if let Some(handler) = EVENTS.get() {
        handler();
    }
}

/// Halts until the next interrupt unless `ready` says there is work.
///
/// An interrupt between the question and the halt is not missed: `ready` runs
/// with interrupts off. Returns whether the CPU halted.
pub fn idle_unless(ready: impl FnOnce() -> bool) -> bool {
    let halted = arch::halt_unless(ready);
    if halted {
        HALTS.fetch_add(1, Ordering::Relaxed);
    }
    halted
}

/// How often an interrupt ended a halt.
#[must_use]
pub fn wakeups() -> u64 {
    HALTS.load(Ordering::Relaxed)
}

/// Interrupts taken since boot, of all kinds.
#[must_use]
pub fn taken() -> u64 {
    arch::interrupts_taken()
}
