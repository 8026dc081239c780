//! Negative returns of hypercalls.

use balloon_core::{TransportError, TransportErrorKind};

/// Why Xen refused a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Errno {
    /// Not allowed for this domain, or an order above its limit.
    #[error("operation not permitted")]
    NotPermitted,
    /// No such object, or a frame that is not mapped.
    #[error("no such entry")]
    NoEntry,
    /// No such domain.
    #[error("no such domain")]
    NoDomain,
    /// Input/output error.
    #[error("input/output error")]
    InputOutput,
    /// Try again.
    #[error("try again")]
    Again,
    /// No memory, in the host or in a pool of this domain.
    #[error("out of memory")]
    NoMemory,
    /// Access denied by the kind of guest.
    #[error("access denied")]
    Access,
    /// An address the hypervisor could not read or write.
    #[error("bad address")]
    Fault,
    /// Object in use.
    #[error("busy")]
    Busy,
    /// There is one already.
    #[error("exists already")]
    Exists,
    /// The frame is known under another number.
    #[error("cross-device link")]
    CrossDevice,
    /// No such device.
    #[error("no such device")]
    NoDevice,
    /// An argument makes no sense, or the frame is a hole.
    #[error("invalid argument")]
    Invalid,
    /// No space left.
    #[error("no space left")]
    NoSpace,
    /// This build of the hypervisor has no such call.
    #[error("no such hypercall")]
    NotImplemented,
    /// Not for this kind of guest.
    #[error("not supported")]
    NotSupported,
    /// Any other number.
    #[error("error number {0}")]
    Other(u16),
}

impl Errno {
    /// The error for a positive errno number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::NotPermitted,
            2 => Self::NoEntry,
            3 => Self::NoDomain,
            5 => Self::InputOutput,
            11 => Self::Again,
            12 => Self::NoMemory,
            13 => Self::Access,
            14 => Self::Fault,
            16 => Self::Busy,
            17 => Self::Exists,
            18 => Self::CrossDevice,
            19 => Self::NoDevice,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            38 => Self::NotImplemented,
            95 => Self::NotSupported,
            other => Self::Other(other),
        }
    }

    /// The errno number, positive.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::NotPermitted => 1,
            Self::NoEntry => 2,
            Self::NoDomain => 3,
            Self::InputOutput => 5,
            Self::Again => 11,
            Self::NoMemory => 12,
            Self::Access => 13,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Exists => 17,
            Self::CrossDevice => 18,
            Self::NoDevice => 19,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::NotImplemented => 38,
            Self::NotSupported => 95,
            Self::Other(number) => number,
        }
    }

    /// Splits a hypercall's return value.
    pub(crate) fn check(value: isize) -> Result<u64, Self> {
        u64::try_from(value).map_err(|_| {
            let number = u16::try_from(value.unsigned_abs()).unwrap_or(u16::MAX);
            Self::from_number(number)
        })
    }
}

impl TransportError for Errno {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::NotImplemented | Self::NotSupported => TransportErrorKind::Unsupported,
            _ => TransportErrorKind::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_round_trip() {
        for number in 0..200 {
            assert_eq!(Errno::from_number(number).number(), number);
        }
    }

    #[test]
    fn return_values_are_split() {
        assert_eq!(Errno::check(7), Ok(7));
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(-95), Err(Errno::NotSupported));
        assert_eq!(Errno::check(-4095), Err(Errno::Other(4095)));
        assert_eq!(Errno::check(isize::MIN), Err(Errno::Other(u16::MAX)));
    }
}
