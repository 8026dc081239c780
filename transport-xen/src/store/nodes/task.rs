//! What is asked of the store, and what the answers mean.

use balloon_core::Bytes;

use super::event::StoreEvent;
use crate::store::wire::{Operation, Refusal, decimal};
use crate::suspend::ShutdownRequest;

/// In the order in which they are begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Whether the store lets go of what an earlier kernel watched.
    ReadCanReset,
    Reset,
    ReadStaticMax,
    ReadHotplugMax,
    ReadVideoRam,
    WatchTarget,
    WatchShutdown,
    OfferSuspend,
    ReadTarget,
    ReadShutdown,
    PublishUnit,
    PublishDowngrades,
}

pub(super) const TASKS: [Task; 12] = [
    Task::ReadCanReset,
    Task::Reset,
    Task::ReadStaticMax,
    Task::ReadHotplugMax,
    Task::ReadVideoRam,
    Task::WatchTarget,
    Task::WatchShutdown,
    Task::OfferSuspend,
    Task::ReadTarget,
    Task::ReadShutdown,
    Task::PublishUnit,
    Task::PublishDowngrades,
];

/// What a target is seen against; read anew with each.
pub(super) const MAXIMA: [Task; 2] = [Task::ReadStaticMax, Task::ReadHotplugMax];

/// What is done for every connection anew; the nodes watched are read by and by.
pub(super) const OPENING: [Task; 4] = [
    Task::ReadVideoRam,
    Task::WatchTarget,
    Task::WatchShutdown,
    Task::OfferSuspend,
];

/// Digits of the largest count.
pub(super) const DIGITS: usize = 20;

const TARGET_TOKEN: &str = "target";
const SHUTDOWN_TOKEN: &str = "shutdown";
pub(super) const TARGET_TOKEN_BYTES: &[u8] = TARGET_TOKEN.as_bytes();
pub(super) const SHUTDOWN_TOKEN_BYTES: &[u8] = SHUTDOWN_TOKEN.as_bytes();
const TARGET: &str = "memory/target";
pub(super) const SHUTDOWN: &str = "control/shutdown";

pub(super) fn operation(task: Task, number: &[u8]) -> Operation<'_> {
    match task {
        Task::ReadCanReset => Operation::Read {
            path: "control/platform-feature-xs_reset_watches",
        },
        Task::Reset => Operation::ResetWatches,
        Task::ReadStaticMax => Operation::Read {
            path: "memory/static-max",
        },
        Task::ReadHotplugMax => Operation::Read {
            path: "memory/hotplug-max",
        },
        Task::ReadVideoRam => Operation::Read {
            path: "memory/videoram",
        },
        Task::WatchTarget => Operation::Watch {
            path: TARGET,
            token: TARGET_TOKEN,
        },
        Task::WatchShutdown => Operation::Watch {
            path: SHUTDOWN,
            token: SHUTDOWN_TOKEN,
        },
        Task::OfferSuspend => Operation::Write {
            path: "control/feature-suspend",
            value: b"1",
        },
        Task::ReadTarget => Operation::Read { path: TARGET },
        Task::ReadShutdown => Operation::Read { path: SHUTDOWN },
        Task::PublishUnit => Operation::Write {
            path: "data/balloon/unit",
            value: number,
        },
        Task::PublishDowngrades => Operation::Write {
            path: "data/balloon/downgrades",
            value: number,
        },
    }
}

/// Whether a refusal settles the task: the node is not there, it is watched
/// already, or this domain may not write it, or it can be done without. Any other
/// may be over soon.
pub(super) const fn is_final(task: Task, refusal: Refusal) -> bool {
    match task {
        Task::ReadCanReset | Task::Reset => true,
        Task::ReadStaticMax
        | Task::ReadHotplugMax
        | Task::ReadVideoRam
        | Task::ReadTarget
        | Task::ReadShutdown => matches!(refusal, Refusal::NoEntry),
        Task::WatchTarget | Task::WatchShutdown => matches!(refusal, Refusal::Exists),
        Task::OfferSuspend | Task::PublishUnit | Task::PublishDowngrades => {
            matches!(refusal, Refusal::Access)
        }
    }
}

/// What an answer leads to.
pub(super) enum Next {
    /// This task.
    Make(Task),
    /// All that is done for a connection.
    Open,
}

/// What is to be done after this answer.
pub(super) fn next(task: Task, result: Result<&[u8], Refusal>) -> Option<Next> {
    match (task, result) {
        (Task::ReadCanReset, Ok(value)) if decimal(value) == Some(1) => {
            Some(Next::Make(Task::Reset))
        }
        (Task::ReadCanReset | Task::Reset, _) => Some(Next::Open),
        // No watch, no event: it may stand already, or the domain may not have it.
        (Task::WatchTarget, Err(_)) => Some(Next::Make(Task::ReadTarget)),
        (Task::WatchShutdown, Err(_)) => Some(Next::Make(Task::ReadShutdown)),
        _ => None,
    }
}

/// What an answer means.
pub(super) fn understand(task: Task, result: Result<&[u8], Refusal>) -> Option<StoreEvent> {
    let kibibytes = |value| decimal(value)?.checked_mul(1024).map(Bytes::new);
    match (task, result) {
        (Task::ReadTarget, Ok(value)) => {
            Some(kibibytes(value).map_or(StoreEvent::BadTarget, StoreEvent::Target))
        }
        (Task::ReadStaticMax, Ok(value)) => kibibytes(value).map(StoreEvent::StaticMax),
        (Task::ReadHotplugMax, Ok(value)) => kibibytes(value).map(StoreEvent::HotplugMax),
        (Task::ReadVideoRam, Ok(value)) => kibibytes(value).map(StoreEvent::VideoRam),
        (Task::ReadShutdown, Ok(value)) => {
            ShutdownRequest::from_value(value).map(StoreEvent::Shutdown)
        }
        _ => None,
    }
}

pub(super) fn format_decimal(mut value: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let mut first = DIGITS;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        first = at;
        if value == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}
