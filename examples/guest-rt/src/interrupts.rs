//! Interrupt lines and messages, and idling until one fires.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use thiserror::Error;

use crate::arch;
use crate::pci::{InterruptLine, Message};

/// Messages that can be told apart: a device with two vectors, and one more.
const MESSAGES: usize = 4;

static LINES: [Once<fn()>; arch::LINES] = [const { Once::new() }; arch::LINES];
static MESSAGE_HANDLERS: [Once<fn()>; MESSAGES] = [const { Once::new() }; MESSAGES];
static HALTS: AtomicU64 = AtomicU64::new(0);

/// How a line says that its device wants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By rising.
    Edge,
    /// By being up, until the handler has quieted the device.
    Level,
}

/// Why a line cannot be listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LineError {
    /// It has a handler already.
    #[error("interrupt line {} has a handler already", .0.get())]
    Taken(InterruptLine),
    /// The machine's controller has no such input.
    #[error("the interrupt controller has no line {}", .0.get())]
    Absent(InterruptLine),
}

/// Calls `handler`, with interrupts off, whenever `line` fires, from now on.
///
/// # Errors
/// When there is no such line, or it has a handler already.
pub fn on_line(line: InterruptLine, trigger: Trigger, handler: fn()) -> Result<(), LineError> {
    let slot = LINES.get(usize::from(line.get()));
    claim(slot.ok_or(LineError::Absent(line))?, handler).ok_or(LineError::Taken(line))?;
    arch::unmask(line, trigger);
    Ok(())
}

/// Calls `handler`, with interrupts off, whenever a device writes the message
/// that is returned, as with MSI-X.
///
/// `None` if the machine takes no messages, or as many as it can are in use.
#[must_use]
pub fn on_message(handler: fn()) -> Option<Message> {
    (0..).zip(&MESSAGE_HANDLERS).find_map(|(index, slot)| {
        if slot.is_completed() {
            return None;
        }
        let message = arch::message(index)?;
        claim(slot, handler).map(|()| message)
    })
}

/// Puts a handler into a slot that has none.
fn claim(slot: &Once<fn()>, handler: fn()) -> Option<()> {
    let mut ours = false;
    slot.call_once(|| {
        ours = true;
        handler
    });
    ours.then_some(())
}

/// Called by the controller's driver.
pub(crate) fn handle(line: InterruptLine) {
    if let Some(handler) = LINES.get(usize::from(line.get())).and_then(Once::get) {
        handler();
    }
}

/// Called for message `index` of [`arch::message`].
pub(crate) fn handle_message(index: u8) {
    if let Some(handler) = MESSAGE_HANDLERS.get(usize::from(index)).and_then(Once::get) {
        handler();
    }
}

#[cfg(target_arch = "x86_64")]
static EVENTS: Once<fn()> = Once::new();

/// Calls `handler`, with interrupts off, for each interrupt of
/// [`EVENT_VECTOR`](crate::EVENT_VECTOR), which a hypervisor raises by itself:
/// no controller is told that it was served. The first handler stays.
#[cfg(target_arch = "x86_64")]
pub fn on_event(handler: fn()) {
    EVENTS.call_once(|| handler);
}

/// Called by the dispatch of interrupts.
#[cfg(target_arch = "x86_64")]
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
