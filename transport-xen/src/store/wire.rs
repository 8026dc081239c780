//! Messages: a 16-byte header, then at most 4096 bytes.

/// Bytes of a header.
pub(crate) const HEADER: usize = 16;
/// The longest payload; a longer one ends the connection.
pub(crate) const PAYLOAD: usize = 4096;
/// An event of a watch; it answers no request.
pub(crate) const WATCH_EVENT: u32 = 15;
/// A request was refused; the payload is the error's name.
pub(crate) const ERROR: u32 = 16;

/// The header of a message, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u32,
    pub(crate) request: u32,
    pub(crate) transaction: u32,
    pub(crate) length: u32,
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let words = [self.kind, self.request, self.transaction, self.length];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let mut words = bytes.chunks_exact(4).map(|word| match word {
            &[a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        });
        let mut next = || words.next().unwrap_or(0);
        Self {
            kind: next(),
            request: next(),
            transaction: next(),
            length: next(),
        }
    }
}

/// What can be asked of the store. Paths may be relative to the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// The value of a node.
    Read {
        /// The node.
        path: &'a str,
    },
    /// Sets the value of a node, which comes into being if need be.
    Write {
        /// The node.
        path: &'a str,
        /// Its new value.
        value: &'a [u8],
    },
    /// An event now, and one for each change at the node and below it.
    Watch {
        /// The node.
        path: &'a str,
        /// Comes back with each event.
        token: &'a str,
    },
    /// Drops every watch of the connection and every transaction. A store of old
    /// may end the connection instead: `control/platform-feature-xs_reset_watches`
    /// says 1 where it does not.
    #[doc(alias = "XS_RESET_WATCHES")]
    ResetWatches,
    /// Starts a transaction; the answer is its [`Transaction`].
    Begin,
    /// Ends the transaction the request belongs to.
    ///
    /// A commit answered by [`Refusal::Again`] did nothing and is to be redone
    /// from its beginning.
    End {
        /// Whether its changes are to count.
        commit: bool,
    },
}

impl<'a> Operation<'a> {
    pub(crate) const fn kind(self) -> u32 {
        match self {
            Self::Read { .. } => 2,
            Self::Watch { .. } => 4,
            Self::Begin => 6,
            Self::End { .. } => 7,
            Self::Write { .. } => 11,
            Self::ResetWatches => 21,
        }
    }

    /// The payload, to be sent part by part.
    pub(crate) const fn payload(self) -> [&'a [u8]; 4] {
        const END: &[u8] = b"\0";
        match self {
            Self::Read { path } => [path.as_bytes(), END, b"", b""],
            Self::Write { path, value } => [path.as_bytes(), END, value, b""],
            Self::Watch { path, token } => [path.as_bytes(), END, token.as_bytes(), END],
            Self::Begin | Self::ResetWatches => [END, b"", b"", b""],
            Self::End { commit: true } => [b"T", END, b"", b""],
            Self::End { commit: false } => [b"F", END, b"", b""],
        }
    }

    /// Whether a path or token would be cut short by a byte of its own.
    pub(crate) fn has_nul(self) -> bool {
        let (first, second) = match self {
            Self::Read { path } | Self::Write { path, .. } => (path, ""),
            Self::Watch { path, token } => (path, token),
            Self::ResetWatches | Self::Begin | Self::End { .. } => ("", ""),
        };
        first.contains('\0') || second.contains('\0')
    }
}

/// A transaction of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Transaction(u32);

impl Transaction {
    /// Outside of any transaction.
    pub const NONE: Self = Self(0);

    /// Reads the answer to [`Operation::Begin`].
    #[must_use]
    pub fn from_answer(answer: &[u8]) -> Option<Self> {
        let id = decimal(answer)?;
        u32::try_from(id).ok().filter(|&id| id != 0).map(Self)
    }

    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

/// Why the store refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such node.
    #[error("no such node")]
    NoEntry,
    /// This domain may not.
    #[error("access denied")]
    Access,
    /// There is one already.
    #[error("exists already")]
    Exists,
    /// The transaction met another one: redo it.
    #[error("transaction conflict, redo it")]
    Again,
    /// The request makes no sense to the store.
    #[error("invalid request")]
    Invalid,
    /// A quota of this domain is used up.
    #[error("quota used up")]
    NoSpace,
    /// The store does not know this request.
    #[error("unknown request")]
    NotImplemented,
    /// Any other name, or none.
    #[error("refused for another reason")]
    Other,
}

impl Refusal {
    pub(crate) fn from_name(name: &[u8]) -> Self {
        match name.strip_suffix(b"\0").unwrap_or(name) {
            b"ENOENT" => Self::NoEntry,
            b"EACCES" | b"EPERM" | b"EROFS" => Self::Access,
            b"EEXIST" => Self::Exists,
            b"EAGAIN" | b"EBUSY" => Self::Again,
            b"EINVAL" => Self::Invalid,
            b"ENOSPC" | b"E2BIG" | b"EQUOTA" => Self::NoSpace,
            b"ENOSYS" => Self::NotImplemented,
            _ => Self::Other,
        }
    }
}

/// Reads a decimal number, with the blanks and the end byte that tools leave.
///
/// `None` for anything else, a sign and a number too large among it.
pub(crate) fn decimal(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes).trim_ascii();
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_refused() {
        assert_eq!(decimal(b"1048576"), Some(1_048_576));
        assert_eq!(decimal(b" 12\n"), Some(12));
        assert_eq!(decimal(b"0\0"), Some(0));
        for bad in [
            &b""[..],
            b"-5",
            b"+5",
            b"0x10",
            b"12 13",
            b"99999999999999999999999",
            b"\0",
        ] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn headers_survive_the_round_trip() {
        let header = Header {
            kind: 2,
            request: 0x0102_0304,
            transaction: 5,
            length: 4096,
        };
        assert_eq!(Header::from_bytes(header.to_bytes()), header);
        assert_eq!(header.to_bytes()[4..8], [4, 3, 2, 1]);
    }

    #[test]
    fn a_transaction_is_never_zero() {
        assert_eq!(Transaction::from_answer(b"7\0"), Some(Transaction(7)));
        for bad in [&b"0"[..], b"", b"x", b"4294967296"] {
            assert_eq!(Transaction::from_answer(bad), None);
        }
    }
}
