//! The buffer for a request of the host, under `CHUNK_TRANSFER`.

use super::Rings;
use super::layout::REQUEST_BYTES;
use crate::device::Device;
use crate::dma::Dma;
use crate::protocol::chunks::HostRequest;
use crate::protocol::numbering::QueueId;
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
