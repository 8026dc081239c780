//! Where everything lies in the shared memory.

use crate::dma::Dma;
use crate::protocol::chunks::HostRequest;
use crate::protocol::numbering::QueueId;
use crate::protocol::wire::MAX_BYTES;
use crate::ring::{Areas, DESCRIPTOR};

/// Ranges that fit in a request of one descriptor.
pub(super) const TABLE: usize = 32;

/// Descriptors of a request of bytes.
pub(super) const MAX_DESCRIPTORS: usize = 2;

/// Bytes of a hinting command.
const COMMAND: usize = 4;

/// The buffers of one queue: descriptor `i` owns the one at `base + i * stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    pub(super) base: usize,
    pub(super) stride: usize,
    pub(super) len: usize,
    /// Requests that may use one at a time.
    pub(super) requests: usize,
    /// Buffers, and descriptors, of one request at most.
    pub(super) descriptors: usize,
}

/// Where everything lies in the shared memory.
pub(super) struct Layout {
    pub(super) areas: [Areas; QueueId::COUNT],
    /// Where the last of them ends.
    pub(super) rings: usize,
    pub(super) buffers: [Buffers; QueueId::COUNT],
    /// Descriptor tables of the reporting queue, one for each descriptor.
    pub(super) tables: usize,
    pub(super) len: usize,
}

impl Layout {
    pub(super) const fn of(size: usize) -> Self {
        let mut areas = [Areas {
            descriptors: 0,
            available: 0,
            used: 0,
        }; QueueId::COUNT];
        let mut end = 0;
        let mut rest: &mut [Areas] = &mut areas;
        while let Some((area, more)) = rest.split_first_mut() {
            (*area, end) = Areas::place(end, size);
            rest = more;
        }
        let inflate = end.next_multiple_of(16);
        let deflate = inflate + size * MAX_BYTES;
        let statistics = deflate + size * MAX_BYTES;
        let hint = statistics + MAX_BYTES;
        let own = Buffers {
            base: inflate,
            stride: MAX_BYTES,
            len: MAX_BYTES,
            requests: size,
            descriptors: MAX_DESCRIPTORS,
        };
        let buffers = [
            own,
            Buffers {
                base: deflate,
                ..own
            },
            // One for all descriptors, since only one may be in flight.
            Buffers {
                base: statistics,
                stride: 0,
                requests: 1,
                descriptors: 1,
                ..own
            },
            Buffers {
                base: hint,
                stride: COMMAND,
                len: COMMAND,
                requests: size,
                descriptors: 1,
            },
            Buffers {
                base: 0,
                stride: 0,
                len: 0,
                requests: 0,
                descriptors: 0,
            },
        ];
        let tables = (hint + size * COMMAND).next_multiple_of(16);
        Self {
            areas,
            rings: end,
            buffers,
            tables,
            len: tables + size * TABLE * DESCRIPTOR,
        }
    }

    /// Buffers of the hinting queue under `CHUNK_TRANSFER`, behind all else: a
    /// response each, or a request of the host.
    pub(super) const fn responses(&self, size: usize) -> Buffers {
        Buffers {
            base: self.len.next_multiple_of(16),
            stride: MAX_BYTES,
            len: MAX_BYTES,
            requests: size,
            descriptors: 1,
        }
    }
}

/// Bytes of a request, as descriptors have it.
pub(super) const REQUEST_BYTES: u32 = 16;

const _: () = assert!(
    HostRequest::SIZE == REQUEST_BYTES as usize,
    "a request of the host"
);

/// Copies a request of the host.
pub(super) fn read_request(memory: &impl Dma, place: usize) -> [u8; HostRequest::SIZE] {
    let mut bytes = [0; HostRequest::SIZE];
    let (halves, _) = bytes.as_chunks_mut::<2>();
    for (offset, half) in (place..).step_by(2).zip(halves) {
        *half = memory.load16(offset).to_le_bytes();
    }
    bytes
}
