//! Our own virtqueues over a device's registers and memory shared with it.

mod host_request;
mod layout;

use core::fmt;
use core::mem::ManuallyDrop;

use crate::device::{Device, RingAddresses};
use crate::dma::{Dma, DmaRegion};
use crate::pci::MappedPci;
use crate::protocol::chunks::HostRequest;
use crate::protocol::config::{ConfigIo, POISON_VALUE, needed_config};
use crate::protocol::features::Features;
use crate::protocol::numbering::{Numbering, QueueId, QueueIndex, QueueMap, discover};
use crate::protocol::options::DriverOptions;
use crate::protocol::status::DeviceStatus;
use crate::protocol::wire::MAX_BYTES;
use crate::queues::{Body, Capacity, QueueCounters, QueueError, Queues, RequestId};
use crate::ring::{Access, DESCRIPTOR, Ring, Segment, store_bytes};
use layout::{Buffers, Layout, MAX_DESCRIPTORS, REQUEST_BYTES, TABLE, read_request};

/// Split virtqueues of at most `S` descriptors each, a power of two.
///
/// The shared memory holds the rings and a buffer of 1 KiB for each descriptor
/// of the inflate and the deflate queue: [`DMA_BYTES`](Self::DMA_BYTES), 170 KiB
/// for the default of 64, which lets 64 MiB be on their way at 4 KiB each.
///
/// Dropping them leaks that memory, since the device goes on using it: it comes back by
/// [`VirtioBalloon::reset`](crate::VirtioBalloon::reset), or
/// [`into_parts`](Self::into_parts) where the device is gone.
pub struct Rings<D = MappedPci, M = DmaRegion, const S: usize = 64> {
    device: D,
    /// Dropped by nobody: a device that runs goes on using it.
    memory: ManuallyDrop<M>,
    map: QueueMap,
    rings: [Ring<S>; QueueId::COUNT],
    buffers: [Buffers; QueueId::COUNT],
    indirect: bool,
    /// The buffer for a host request that the device has, and where it lies.
    offered: Option<(RequestId, usize)>,
    host_request: Option<[u8; HostRequest::SIZE]>,
    counters: QueueCounters,
}

/// A device could not be given its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AttachError {
    /// The configuration space cannot hold what the features promise.
    #[error("the configuration space of {0} bytes lacks fields that the features promise")]
    ConfigTooSmall(usize),
    /// The inflate or deflate queue does not exist.
    #[error("the device has no {0:?} queue")]
    MissingQueue(QueueId),
    /// The device did not take a queue.
    #[error("the device refused the {0:?} queue")]
    QueueRefused(QueueId),
    /// Less memory was provided than the queues need.
    #[error("{0} bytes of shared memory are not enough")]
    MemoryTooSmall(usize),
    /// The device cannot reach the shared memory this way.
    #[error("the shared memory is not aligned to 16 bytes for the device")]
    MemoryMisaligned,
}

/// An operation failed; whoever owned device and memory gets them back.
#[derive(Debug)]
pub struct Refused<E, D, M> {
    /// Why.
    pub error: E,
    /// The device.
    pub device: D,
    /// The shared memory.
    pub memory: M,
}

impl<E: fmt::Display, D, M> fmt::Display for Refused<E, D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<E: core::error::Error, D: fmt::Debug, M: fmt::Debug> core::error::Error for Refused<E, D, M> {}

/// What setting queues up yields.
type SetUp<const S: usize> = (QueueMap, [Ring<S>; QueueId::COUNT]);

impl<D: Device, M: Dma, const S: usize> Rings<D, M, S> {
    const LAYOUT: Layout = {
        assert!(
            S.is_power_of_two() && S <= 1 << 15,
            "a power of two up to 32768"
        );
        Layout::of(S)
    };

    /// Bytes of shared memory the queues need, physically contiguous.
    pub const DMA_BYTES: usize = Self::LAYOUT.len;

    /// The same by policy: more than [`DMA_BYTES`](Self::DMA_BYTES) with
    /// [`DriverOptions::with_chunk_transfer`].
    #[must_use]
    pub const fn dma_bytes(options: &DriverOptions) -> usize {
        if options.chunk_transfer() {
            Self::LAYOUT.responses(S).base + S * MAX_BYTES
        } else {
            Self::DMA_BYTES
        }
    }

    /// Gives a device with negotiated features its queues.
    ///
    /// Touches neither status nor feature registers: for kernels that drive
    /// those themselves, between `FEATURES_OK` and `DRIVER_OK`. The others call
    /// [`VirtioBalloon::bring_up`](crate::VirtioBalloon::bring_up).
    ///
    /// # Errors
    /// Hands device and memory back; the device must then be reset, since it
    /// may know some of the memory already.
    pub fn attach(
        mut device: D,
        memory: M,
        offered: Features,
        negotiated: Features,
        options: &DriverOptions,
    ) -> Result<Self, Refused<AttachError, D, M>> {
        match Self::set_up(&mut device, &memory, offered, negotiated, options) {
            Ok(queues) => Ok(Self::join(device, memory, queues, negotiated, options)),
            Err(error) => Err(Refused {
                error,
                device,
                memory,
            }),
        }
    }

    /// Queues that were set up, with what they were set up on.
    pub(crate) fn join(
        device: D,
        memory: M,
        (map, rings): SetUp<S>,
        negotiated: Features,
        options: &DriverOptions,
    ) -> Self {
        Self {
            device,
            memory: ManuallyDrop::new(memory),
            map,
            rings,
            buffers: Self::buffers(options),
            offered: None,
            host_request: None,
            indirect: negotiated.contains(Features::INDIRECT_DESC),
            counters: QueueCounters::default(),
        }
    }

    /// The same after a reset, in place of those the device had; what was counted stays.
    pub(crate) fn renew(&mut self, (map, rings): SetUp<S>, negotiated: Features) {
        (self.map, self.rings) = (map, rings);
        (self.offered, self.host_request) = (None, None);
        self.indirect = negotiated.contains(Features::INDIRECT_DESC);
    }

    /// Device and memory, for another start.
    pub(crate) fn parts(&mut self) -> (&mut D, &M) {
        (&mut self.device, &self.memory)
    }

    fn buffers(options: &DriverOptions) -> [Buffers; QueueId::COUNT] {
        let mut buffers = Self::LAYOUT.buffers;
        if options.chunk_transfer()
            && let Some(hint) = buffers.get_mut(QueueId::Hint.index())
        {
            *hint = Self::LAYOUT.responses(S);
        }
        buffers
    }

    pub(crate) fn set_up(
        device: &mut D,
        memory: &M,
        offered: Features,
        negotiated: Features,
        options: &DriverOptions,
    ) -> Result<SetUp<S>, AttachError> {
        let config = device.config_len();
        if config < needed_config(options.standard(negotiated)) {
            return Err(AttachError::ConfigTooSmall(config));
        }
        if memory.len() < Self::dma_bytes(options) {
            return Err(AttachError::MemoryTooSmall(memory.len()));
        }
        if !memory.address().is_multiple_of(16) {
            return Err(AttachError::MemoryMisaligned);
        }
        let (exist, wanted) = (options.queues(offered), options.queues(negotiated));
        // Read once: a device that says something else later changes nothing.
        let mut sizes = [0; 8];
        let size = |index: QueueIndex| {
            let size = device.max_queue_size(index);
            if let Some(place) = sizes.get_mut(usize::from(index.get())) {
                *place = size;
            }
            size
        };
        let map = discover(exist, wanted, size)
            .map_err(|missing| AttachError::MissingQueue(missing.0))?;
        // Buffers and tables are written before the device is shown them.
        for place in (0..Self::LAYOUT.rings).step_by(2) {
            memory.store16(place, 0);
        }
        let mut rings = [Ring::ABSENT; QueueId::COUNT];
        for ((queue, areas), ring) in QueueId::ALL
            .into_iter()
            .zip(Self::LAYOUT.areas)
            .zip(&mut rings)
        {
            let Some(index) = map.index(queue) else {
                continue;
            };
            let max = sizes.get(usize::from(index.get())).copied();
            let size = usable_size(max.unwrap_or(0), S);
            if size == 0 {
                return Err(AttachError::QueueRefused(queue));
            }
            let event_idx = negotiated.contains(Features::EVENT_IDX);
            // QEMU answers hints from a thread of its own, which cannot raise
            // interrupts in every configuration. Under the dialect the queue is
            // another, and a request of the host is to wake us.
            let hints = queue == QueueId::Hint && !options.chunk_transfer();
            let interrupts = options.interrupts() && !hints;
            *ring = Ring::new(memory, areas, size, event_idx, interrupts);
            let at = |offset: usize| memory.address().wrapping_add(offset as u64);
            let addresses = RingAddresses {
                descriptors: at(areas.descriptors),
                driver: at(areas.available),
                device: at(areas.used),
            };
            device
                .set_queue(index, size, addresses)
                .map_err(|_| AttachError::QueueRefused(queue))?;
        }
        if let Some(value) = options.poison()
            && options.standard(negotiated).contains(Features::PAGE_POISON)
        {
            device.write_config(POISON_VALUE, value);
        }
        Ok((map, rings))
    }

    /// Which index each queue got, and by which numbering.
    pub const fn map(&self) -> &QueueMap {
        &self.map
    }

    /// How the device numbers its queues.
    pub const fn numbering(&self) -> Numbering {
        self.map.numbering
    }

    /// The registers.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The registers, to change something.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Gives device and memory back: after a reset, or if the device is gone.
    ///
    /// A device that still runs keeps access to the memory.
    pub fn into_parts(self) -> (D, M) {
        (self.device, ManuallyDrop::into_inner(self.memory))
    }

    /// The most ranges a request of one descriptor may have.
    fn table(&self, queue: QueueId) -> usize {
        let ring = self.rings.get(queue.index());
        let size = ring.map_or(0, |ring| ring.size().into());
        if self.indirect && queue == QueueId::Reporting {
            TABLE.min(size)
        } else {
            0
        }
    }

    fn ring(&mut self, queue: QueueId) -> Option<(&mut Ring<S>, &M, &mut QueueCounters)> {
        let ring = self
            .rings
            .get_mut(queue.index())
            .filter(|ring| ring.size() != 0)?;
        Some((ring, &self.memory, &mut self.counters))
    }
}

/// The greatest power of two that both sides can do.
fn usable_size(max: u16, own: usize) -> u16 {
    let limit = u16::try_from(own).unwrap_or(1 << 15).min(max);
    limit.checked_ilog2().map_or(0, |log| 1 << log)
}

impl<D: Device, M: Dma, const S: usize> Queues for Rings<D, M, S> {
    fn capacity(&self, queue: QueueId) -> Capacity {
        let descriptors = self
            .rings
            .get(queue.index())
            .map_or(0, |ring| ring.size().into());
        let buffers = self.buffers.get(queue.index());
        let requests = buffers.map_or(0, |buffers| buffers.requests.min(descriptors));
        Capacity {
            descriptors,
            requests,
            ranges: self.table(queue),
        }
    }

    fn bus_is_physical(&self) -> bool {
        self.memory.bus_is_physical()
    }

    fn submit(
        &mut self,
        queue: QueueId,
        request: RequestId,
        body: Body<'_>,
    ) -> Result<(), QueueError> {
        let table = self.table(queue);
        let buffers = self.buffers.get(queue.index()).copied();
        let buffers = buffers.ok_or(QueueError::TooLong)?;
        let (ring, memory, _) = self.ring(queue).ok_or(QueueError::TooLong)?;
        match body {
            Body::Bytes(bytes) => {
                let count = bytes.len().div_ceil(MAX_BYTES);
                if count > buffers.descriptors {
                    return Err(QueueError::TooLong);
                }
                if ring.in_flight() >= buffers.requests {
                    return Err(QueueError::Full);
                }
                let mut segments = [Segment::EMPTY; MAX_DESCRIPTORS];
                let mut spare = ring.spare();
                for (segment, piece) in segments.iter_mut().zip(bytes.chunks(MAX_BYTES)) {
                    let descriptor = spare.next().ok_or(QueueError::Full)?;
                    let len = u32::try_from(piece.len()).map_err(|_| QueueError::TooLong)?;
                    if piece.len() > buffers.len {
                        return Err(QueueError::TooLong);
                    }
                    // Free descriptor, free buffer.
                    let offset = buffers.base + usize::from(descriptor) * buffers.stride;
                    store_bytes(memory, offset, piece);
                    *segment = Segment {
                        address: memory.address().wrapping_add(offset as u64),
                        len,
                        access: Access::Read,
                    };
                }
                drop(spare);
                ring.submit(memory, request, segments.into_iter().take(count))
            }
            Body::Ranges(runs) => {
                let len = |run: &balloon_core::Run| u32::try_from(run.count().bytes().get());
                if runs.iter().any(|run| len(run).is_err()) {
                    return Err(QueueError::TooLong);
                }
                let segments = runs.iter().map(|run| Segment {
                    address: run.range().start().address(),
                    len: len(run).unwrap_or(0),
                    access: Access::Write,
                });
                if (2..=table).contains(&runs.len()) {
                    let head = ring.spare().next().ok_or(QueueError::Full)?;
                    let place = Self::LAYOUT.tables + usize::from(head) * TABLE * DESCRIPTOR;
                    return ring.submit_indirect(memory, request, place, segments);
                }
                ring.submit(memory, request, segments)
            }
        }
    }

    fn kick(&mut self, queue: QueueId, wake_after: usize) -> bool {
        let Some((ring, memory, counters)) = self.ring(queue) else {
            return false;
        };
        let kick = ring.kick(memory, wake_after);
        if kick.notify {
            counters.kicks = counters.kicks.wrapping_add(1);
            if let Some(index) = self.map.index(queue) {
                self.device.notify(index);
            }
        } else if kick.fresh {
            counters.kicks_saved = counters.kicks_saved.wrapping_add(1);
        }
        kick.answered
    }

    fn notify(&mut self, queue: QueueId) {
        let in_flight = |ring: &Ring<S>| ring.in_flight() > 0;
        if self.rings.get(queue.index()).is_some_and(in_flight)
            && let Some(index) = self.map.index(queue)
        {
            let counters = &mut self.counters;
            counters.kicks = counters.kicks.wrapping_add(1);
            self.device.notify(index);
        }
    }

    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError> {
        let Some((ring, memory, counters)) = self.ring(queue) else {
            return Ok(None);
        };
        let Some(answer) = ring.pop(memory, counters)? else {
            return Ok(None);
        };
        let offered = self.offered.filter(|_| queue == QueueId::Hint);
        let offered = offered.filter(|&(request, _)| request == answer.request);
        let expected = if let Some((_, place)) = offered {
            self.offered = None;
            let whole = answer.written == REQUEST_BYTES;
            self.host_request = whole.then(|| read_request(&*self.memory, place));
            REQUEST_BYTES
        } else {
            0
        };
        if answer.written != expected {
            let count = &mut self.counters.odd_lengths;
            *count = count.wrapping_add(1);
        }
        Ok(Some(answer.request))
    }

    fn counters(&self) -> QueueCounters {
        self.counters
    }
}

impl<D: Device, M, const S: usize> ConfigIo for Rings<D, M, S> {
    fn config_len(&self) -> usize {
        self.device.config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.device.read_config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.device.write_config(offset, value);
    }

    fn generation(&mut self) -> u32 {
        self.device.generation()
    }

    fn status(&mut self) -> DeviceStatus {
        self.device.status()
    }
}

impl<D, M, const S: usize> fmt::Debug for Rings<D, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings")
            .field("map", &self.map)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
