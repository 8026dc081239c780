//! The queues with a witness beside them: which frames the device has.

use balloon_core::wire::chunks_v8;
use balloon_core::{FrameRange, Pfn};
use transport_virtio::protocol::CHUNK_TRANSFER;
use transport_virtio::testing::{FakeDevice, FakeMemory};
use transport_virtio::{
    Body, Capacity, ConfigIo, DeviceStatus, DriverOptions, Features, HostRequestQueue,
    QueueCounters, QueueError, QueueId, Queues, RequestId, Rings,
};

use super::N;
use super::frames::{FRAMES, Frames};

pub(super) type Inner = Rings<FakeDevice, FakeMemory, N>;

/// Notes what is submitted until it is popped, by what the device gets to see.
pub(super) struct Watched {
    pub(super) inner: Inner,
    frames: Frames,
    /// Frames are told in chunks.
    chunks: bool,
    must_tell_host: bool,
    /// Requests with the device, and the frames they name.
    requests: Vec<(RequestId, u64)>,
}

impl Watched {
    pub(super) fn new(
        inner: Inner,
        frames: Frames,
        negotiated: Features,
        policy: &DriverOptions,
    ) -> Self {
        Self {
            inner,
            frames,
            chunks: policy.chunk_transfer() && negotiated.contains(CHUNK_TRANSFER),
            must_tell_host: negotiated.contains(Features::MUST_TELL_HOST),
            requests: Vec::new(),
        }
    }

    /// Frames that the device has not answered for.
    pub(super) fn with_device(&self) -> u64 {
        let masks = self.requests.iter().map(|&(_, frames)| frames);
        masks.fold(0, |all, frames| all | frames)
    }

    fn named(&self, queue: QueueId, body: Body<'_>) -> u64 {
        let mask = |range: FrameRange| self.frames.mask(range);
        let union = |all: u64, frames: u64| {
            assert_eq!(all & frames, 0, "a frame twice in a request");
            all | frames
        };
        match (queue, body) {
            (_, Body::Ranges(runs)) => runs.iter().map(|run| mask(run.range())).fold(0, union),
            (QueueId::Statistics, _) => 0,
            // May be used while the device is being told.
            (QueueId::Deflate, _) if !self.must_tell_host => 0,
            (QueueId::Hint, Body::Bytes(command)) if command.len() == 4 => 0,
            (_, Body::Bytes(bytes)) if self.chunks || queue == QueueId::Hint => {
                let response = chunks_v8::decode_strict(bytes).expect("a response");
                response.chunks().map(mask).fold(0, union)
            }
            (_, Body::Bytes(bytes)) => {
                let (numbers, rest) = bytes.as_chunks::<4>();
                assert!(rest.is_empty() && numbers.len() as u64 <= FRAMES);
                let numbers = numbers.iter().map(|&number| u32::from_le_bytes(number));
                numbers
                    .filter_map(|number| FrameRange::single(Pfn::new(number.into())))
                    .map(mask)
                    .fold(0, union)
            }
        }
    }

    fn note(&mut self, request: RequestId, frames: u64) {
        let twice = self.requests.iter().any(|&(other, _)| other == request);
        assert!(!twice, "{request:?} twice with the device");
        assert_eq!(self.with_device() & frames, 0, "a frame in two requests");
        self.requests.push((request, frames));
    }
}

impl Queues for Watched {
    fn capacity(&self, queue: QueueId) -> Capacity {
        self.inner.capacity(queue)
    }

    fn bus_is_physical(&self) -> bool {
        self.inner.bus_is_physical()
    }

    fn submit(
        &mut self,
        queue: QueueId,
        request: RequestId,
        body: Body<'_>,
    ) -> Result<(), QueueError> {
        let frames = self.named(queue, body);
        self.inner.submit(queue, request, body)?;
        self.note(request, frames);
        Ok(())
    }

    fn kick(&mut self, queue: QueueId, wake_after: usize) -> bool {
        self.inner.kick(queue, wake_after)
    }

    fn notify(&mut self, queue: QueueId) {
        self.inner.notify(queue);
    }

    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError> {
        let Some(request) = self.inner.pop(queue)? else {
            return Ok(None);
        };
        let place = self
            .requests
            .iter()
            .position(|(other, _)| *other == request);
        self.requests
            .swap_remove(place.expect("an answer to a request of ours"));
        Ok(Some(request))
    }

    fn counters(&self) -> QueueCounters {
        self.inner.counters()
    }
}

impl HostRequestQueue for Watched {
    fn offer(&mut self, request: RequestId) -> Result<(), QueueError> {
        self.inner.offer(request)?;
        self.note(request, 0);
        Ok(())
    }

    fn take_host_request(&mut self) -> Option<[u8; 16]> {
        self.inner.take_host_request()
    }
}

impl ConfigIo for Watched {
    fn config_len(&self) -> usize {
        self.inner.config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.inner.read_config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.inner.write_config(offset, value);
    }

    fn generation(&mut self) -> u32 {
        self.inner.generation()
    }

    fn status(&mut self) -> DeviceStatus {
        self.inner.status()
    }
}
