//! The buffer for a request of the host, under `CHUNK_TRANSFER`.

use super::Rings;
use crate::device::Device;
use crate::dma::Dma;
use crate::protocol::{HostRequest, QueueId};
use crate::queues::{HostRequestQueue, QueueError, RequestId};
use crate::ring::{Access, Segment};

impl<D: Device, M: Dma, const S: usize> HostRequestQueue for Rings<D, M, S> {
    fn offer(&mut self, request: RequestId) -> Result<(), QueueError> {
        let queue = QueueId::Hint;
        let buffers = self.buffers.get(queue.index()).copied();
        let room = buffers.filter(|buffers| buffers.len >= HostRequest::SIZE);
        let buffers = room.ok_or(QueueError::TooLong)?;
        if self.offered.is_some() {
            return Err(QueueError::Full);
        }
        let (ring, memory, _) = self.ring(queue).ok_or(QueueError::TooLong)?;
        let head = ring.spare().next().ok_or(QueueError::Full)?;
        let place = buffers.base + usize::from(head) * buffers.stride;
        let segment = Segment {
            address: memory.address().wrapping_add(place as u64),
            len: REQUEST_BYTES,
            access: Access::Write,
        };
        ring.submit(memory, request, core::iter::once(segment))?;
        self.offered = Some((request, place));
        Ok(())
    }

    fn take_host_request(&mut self) -> Option<[u8; HostRequest::SIZE]> {
        self.host_request.take()
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
