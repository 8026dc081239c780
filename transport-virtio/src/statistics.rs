//! Memory statistics for the host.
//!
//! The device keeps one filled buffer and hands it back when it wants newer
//! values; the kernel then fills it again. Called whenever the engine is, by the
//! same thread.

use balloon_core::{InFlight, Kind, Nanos, Shared, is_to_come};

use crate::balloon::{VirtioBalloon, VirtioError};
use crate::protocol::config::ConfigIo;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::protocol::wire::{StatisticsBuffer, Tag};
use crate::queues::{QueueError, Queues};

/// From one buffer to the next at least: a device that hands each one straight back
/// gets no more of the CPU.
const PAUSE: Nanos = Nanos::from_millis(1);

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatisticsStep {
    /// The device was given a buffer with new values.
    pub offered: bool,
    /// When to step again even if nothing happens: the device had asked for the next
    /// buffer before it could be told to interrupt, or has kept one so long that it may have
    /// missed it.
    pub wake_at: Option<Nanos>,
}

/// Offers statistics to the host, each time it asks.
///
/// ```
/// use balloon_core::{Nanos, Shared};
/// use transport_virtio::testing::{self, Profile};
/// use transport_virtio::{DriverOptions, Features, QueueId, Statistics, Tag};
///
/// static SHARED: Shared<16> = Shared::new();
///
/// let options = DriverOptions::new().with_statistics();
/// let mut balloon = testing::bring_up::<16>(Profile::qemu(Features::empty()), &options)?;
/// let mut statistics = Statistics::new(&[Tag::FREE, Tag::TOTAL]);
/// let mut read = |tag| if tag == Tag::FREE { 4 << 20 } else { 1 << 30 };
///
/// // The first buffer goes out by itself, the next only when asked for.
/// let now = Nanos::ZERO;
/// assert!(statistics.step(&mut balloon, &SHARED, now, &mut read)?.offered);
/// assert!(!statistics.step(&mut balloon, &SHARED, now, &mut read)?.offered);
/// balloon.queues_mut().device_mut().serve(QueueId::Statistics);
/// let now = Nanos::from_secs(1);
/// assert!(statistics.step(&mut balloon, &SHARED, now, &mut read)?.offered);
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Statistics {
    tags: &'static [Tag],
    with_device: Option<InFlight<'static>>,
    /// No buffer before this moment.
    next: Nanos,
    /// Of the device's starts, the one the buffer is with.
    start: Option<u32>,
}

impl Statistics {
    /// These statistics, each named once, in every buffer.
    ///
    /// Name only what the kernel really knows. At most
    /// [`StatisticsBuffer::MAX`] are sent.
    #[must_use]
    pub const fn new(tags: &'static [Tag]) -> Self {
        Self {
            tags,
            with_device: None,
            next: Nanos::ZERO,
            start: None,
        }
    }

    /// Offers a buffer if the device has none, at most one a millisecond.
    ///
    /// `value` is called for each statistic only then.
    ///
    /// # Errors
    /// If the device has no statistics queue or broke it; the next step tries
    /// again.
    pub fn step<Q: Queues + ConfigIo, const N: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<N>,
        now: Nanos,
        value: impl FnMut(Tag) -> u64,
    ) -> Result<StatisticsStep, VirtioError> {
        if !balloon.negotiated().contains(Features::STATS_VQ) || self.tags.is_empty() {
            return Err(VirtioError::Unsupported);
        }
        let queue = QueueId::Statistics;
        let void = balloon.enter(&mut self.start, shared)?;
        if void || balloon.lost() == Some(VirtioError::Gone) {
            self.reset();
        }
        balloon.collect(queue, Kind::Statistics, shared)?;
        if let Some(slot) = self.with_device.take()
            && let Err(waiting) = slot.answer()
        {
            self.with_device = Some(waiting);
            // Most keep it for long and are well: they may have missed it all the same.
            return Ok(StatisticsStep {
                offered: false,
                wake_at: balloon.watch(queue, Kind::Statistics, shared.signal(), now),
            });
        }
        if is_to_come(self.next, PAUSE, now) {
            return Ok(StatisticsStep {
                offered: false,
                wake_at: Some(self.next),
            });
        }
        let full = VirtioError::Queue(queue, QueueError::Full);
        let slot = shared
            .slots()
            .claim(Kind::Statistics)
            .map_err(|_| full)?
            .launch();
        let buffer = StatisticsBuffer::collect(self.tags, value);
        if let Err(error) = balloon.tell(queue, &slot, buffer.as_bytes()) {
            self.with_device = slot.revoke().err();
            return Err(error);
        }
        self.with_device = Some(slot);
        self.next = now.saturating_add(PAUSE);
        let asked = balloon.kick_queue(queue).then_some(self.next);
        let silence = balloon.watch(queue, Kind::Statistics, shared.signal(), now);
        Ok(StatisticsStep {
            offered: true,
            wake_at: asked.or(silence),
        })
    }

    /// The device was reset: it has no buffer any more.
    pub fn reset(&mut self) {
        self.next = Nanos::ZERO;
        // An answer that came before the reset frees the slot as well.
        self.with_device = self
            .with_device
            .take()
            .and_then(|slot| slot.revoke().err())
            .and_then(|slot| slot.answer().err());
    }
}
