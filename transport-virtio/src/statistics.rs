//! Memory statistics for the host.
//!
//! The device keeps one filled buffer and hands it back when it wants newer
//! values; the kernel then fills it again. Called whenever the engine is, by the
//! same thread.

use balloon_core::{InFlight, Kind, Slots};

use crate::balloon::{VirtioBalloon, VirtioError};
use crate::protocol::{ConfigIo, Features, QueueId, StatisticsBuffer, Tag};
use crate::queues::{QueueError, Queues};

/// Offers statistics to the host, each time it asks.
///
/// ```
/// use balloon_core::Shared;
/// use transport_virtio::fake::{self, Profile};
/// use transport_virtio::{Features, Policy, QueueId, Statistics, Tag};
///
/// static SHARED: Shared<16> = Shared::new();
///
/// let policy = Policy::new().with_statistics();
/// let mut balloon = fake::bring_up::<16>(Profile::qemu(Features::empty()), &policy)?;
/// let mut statistics = Statistics::new(&[Tag::FREE, Tag::TOTAL]);
/// let mut read = |tag| if tag == Tag::FREE { 4 << 20 } else { 1 << 30 };
///
/// // The first buffer goes out by itself, the next only when asked for.
/// assert!(statistics.step(&mut balloon, SHARED.slots(), &mut read)?);
/// assert!(!statistics.step(&mut balloon, SHARED.slots(), &mut read)?);
/// balloon.queues_mut().device_mut().serve(QueueId::Statistics);
/// assert!(statistics.step(&mut balloon, SHARED.slots(), &mut read)?);
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Statistics {
    tags: &'static [Tag],
    with_device: Option<InFlight<'static>>,
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
        }
    }

    /// Offers a buffer if the device has none; whether it did.
    ///
    /// `value` is called for each statistic only then. After one was offered,
    /// step once more before you sleep: a device that was quick to ask for the
    /// next may not interrupt.
    ///
    /// # Errors
    /// If the device has no statistics queue or broke it; the next step tries
    /// again.
    pub fn step<Q: Queues + ConfigIo, const N: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<N>,
        value: impl FnMut(Tag) -> u64,
    ) -> Result<bool, VirtioError> {
        if !balloon.negotiated().contains(Features::STATS_VQ) || self.tags.is_empty() {
            return Err(VirtioError::Unsupported);
        }
        balloon.collect(QueueId::Statistics, slots.completer())?;
        if let Some(slot) = self.with_device.take()
            && let Err(waiting) = slot.answer()
        {
            self.with_device = Some(waiting);
            return Ok(false);
        }
        let queue = QueueId::Statistics;
        let full = VirtioError::Queue(queue, QueueError::Full);
        let slot = slots.claim(Kind::Statistics).map_err(|_| full)?.launch();
        let buffer = StatisticsBuffer::collect(self.tags, value);
        if let Err(error) = balloon.tell(queue, &slot, buffer.as_bytes()) {
            self.with_device = slot.revoke().err();
            return Err(error);
        }
        self.with_device = Some(slot);
        balloon.notify(queue);
        Ok(true)
    }

    /// The device was reset: it has no buffer any more.
    pub fn reset(&mut self) {
        // An answer that came before the reset frees the slot as well.
        self.with_device = self
            .with_device
            .take()
            .and_then(|slot| slot.revoke().err())
            .and_then(|slot| slot.answer().err());
    }
}
