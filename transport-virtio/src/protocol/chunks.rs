//! The `CHUNK_TRANSFER` dialect, version 8 (March 2017, never merged).
//!
//! Chunks of frames instead of page numbers, and a queue on which the host asks
//! for unused pages. Its feature bits have been given to others since, so it is
//! spoken only if the embedder says that the device does
//! ([`DriverOptions::with_chunk_transfer`](super::DriverOptions::with_chunk_transfer)). Then
//! bits 3 and 4 mean what is written here, and hints and poison do not exist.
//!
//! | queue | index | driver to device | device to driver |
//! |---|---|---|---|
//! | inflate, deflate | 0, 1 | a response: header and chunks ([`chunks_v8`]) | |
//! | statistics | 2 | as ever | |
//! | host requests | 3 | responses with unused pages | a request of [`HostRequest::SIZE`] bytes |
//!
//! A response is one buffer. Of each kind there may be several on their way, in
//! buffers of their own: none waits for another.

use balloon_core::wire::chunks_v8::{self, CHUNK_SIZE, HEADER_SIZE};

use crate::protocol::wire::MAX_BYTES;

/// Chunks of one response.
pub const CHUNKS_PER_RESPONSE: usize = (MAX_BYTES - HEADER_SIZE) / CHUNK_SIZE;

/// What a response is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Frames given to the host.
    Inflate = 0,
    /// Frames taken back.
    Deflate = 1,
    /// Frames free at the moment, which a migration need not copy.
    Unused = 2,
}

impl Command {
    /// The label of a response.
    #[must_use]
    pub const fn label(self, id: u16) -> chunks_v8::Label {
        chunks_v8::Label {
            command: self as u8,
            id,
        }
    }
}

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostRequest {
    /// The frames that are free; responses carry the number.
    UnusedPages(u16),
}

impl HostRequest {
    /// Bytes of a request: a 16-bit command, 48 reserved bits, a 64-bit
    /// parameter, all little endian.
    pub const SIZE: usize = 16;

    /// Reads a request; `None` if it is none that is known.
    #[must_use]
    pub const fn decode(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [c0, c1, .., p0, p1, _, _, _, _, _, _] = bytes;
        match u16::from_le_bytes([c0, c1]) {
            0 => Some(Self::UnusedPages(u16::from_le_bytes([p0, p1]))),
            _ => None,
        }
    }

    /// Writes a request, as the host does.
    #[must_use]
    pub const fn encode(self) -> [u8; Self::SIZE] {
        let Self::UnusedPages(id) = self;
        let [p0, p1] = id.to_le_bytes();
        [0, 0, 0, 0, 0, 0, 0, 0, p0, p1, 0, 0, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_written() {
        let request = HostRequest::UnusedPages(0x1234);
        assert_eq!(HostRequest::decode(request.encode()), Some(request));
        let mut unknown = request.encode();
        unknown[1] = 1;
        assert_eq!(HostRequest::decode(unknown), None);
    }

    #[test]
    fn a_response_fits_a_buffer() {
        assert_eq!(CHUNKS_PER_RESPONSE, 63);
    }
}
