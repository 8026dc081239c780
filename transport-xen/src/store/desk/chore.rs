//! What is asked of the store, and what the answers mean.

use balloon_core::Bytes;

use super::Notice;
use crate::store::wire::{Operation, Refusal, decimal};
use crate::suspend::ShutdownRequest;

/// In the order in which they are begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    ReadStaticMax,
    ReadVideoRam,
    WatchTarget,
    WatchShutdown,
    OfferSuspend,
    ReadTarget,
    ReadShutdown,
    PublishUnit,
    PublishDowngrades,
}

pub(super) const CHORES: [Chore; 9] = [
    Chore::ReadStaticMax,
    Chore::ReadVideoRam,
    Chore::WatchTarget,
    Chore::WatchShutdown,
    Chore::OfferSuspend,
    Chore::ReadTarget,
    Chore::ReadShutdown,
    Chore::PublishUnit,
    Chore::PublishDowngrades,
];

/// What is done for every connection anew.
pub(super) const OPENING: [Chore; 5] = [
    Chore::ReadStaticMax,
    Chore::ReadVideoRam,
    Chore::WatchTarget,
    Chore::WatchShutdown,
    Chore::OfferSuspend,
];

/// Digits of the largest count.
pub(super) const DIGITS: usize = 20;

const TARGET_TOKEN: &str = "target";
const SHUTDOWN_TOKEN: &str = "shutdown";
pub(super) const TARGET_TOKEN_BYTES: &[u8] = TARGET_TOKEN.as_bytes();
pub(super) const SHUTDOWN_TOKEN_BYTES: &[u8] = SHUTDOWN_TOKEN.as_bytes();
const TARGET: &str = "memory/target";
pub(super) const SHUTDOWN: &str = "control/shutdown";

pub(super) fn operation(chore: Chore, number: &[u8]) -> Operation<'_> {
    match chore {
        Chore::ReadStaticMax => Operation::Read {
            path: "memory/static-max",
        },
        Chore::ReadVideoRam => Operation::Read {
            path: "memory/videoram",
        },
        Chore::WatchTarget => Operation::Watch {
            path: TARGET,
            token: TARGET_TOKEN,
        },
        Chore::WatchShutdown => Operation::Watch {
            path: SHUTDOWN,
            token: SHUTDOWN_TOKEN,
        },
        Chore::OfferSuspend => Operation::Write {
            path: "control/feature-suspend",
            value: b"1",
        },
        Chore::ReadTarget => Operation::Read { path: TARGET },
        Chore::ReadShutdown => Operation::Read { path: SHUTDOWN },
        Chore::PublishUnit => Operation::Write {
            path: "data/balloon/unit",
            value: number,
        },
        Chore::PublishDowngrades => Operation::Write {
            path: "data/balloon/downgrades",
            value: number,
        },
    }
}

/// Whether a refusal settles the chore: the node is not there, it is watched
/// already, or this domain may not write it. Any other may be over soon.
pub(super) const fn is_final(chore: Chore, refusal: Refusal) -> bool {
    match chore {
        Chore::ReadStaticMax | Chore::ReadVideoRam | Chore::ReadTarget | Chore::ReadShutdown => {
            matches!(refusal, Refusal::NoEntry)
        }
        Chore::WatchTarget | Chore::WatchShutdown => matches!(refusal, Refusal::Exists),
        Chore::OfferSuspend | Chore::PublishUnit | Chore::PublishDowngrades => {
            matches!(refusal, Refusal::Access)
        }
    }
}

/// What an answer means.
pub(super) fn understand(chore: Chore, result: Result<&[u8], Refusal>) -> Option<Notice> {
    let kibibytes = |value| decimal(value)?.checked_mul(1024).map(Bytes::new);
    match (chore, result) {
        (Chore::ReadTarget, Ok(value)) => {
            Some(kibibytes(value).map_or(Notice::BadTarget, Notice::Target))
        }
        (Chore::ReadStaticMax, Ok(value)) => kibibytes(value).map(Notice::StaticMax),
        (Chore::ReadVideoRam, Ok(value)) => kibibytes(value).map(Notice::VideoRam),
        (Chore::ReadShutdown, Ok(value)) => {
            ShutdownRequest::from_value(value).map(Notice::Shutdown)
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
