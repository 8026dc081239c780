//! From a device in any state to a running balloon.

use balloon_core::{Engine, Resume};
use embedded_hal::delay::DelayNs;

use crate::balloon::VirtioBalloon;
use crate::device::{Device, Handshake};
use crate::dma::Dma;
use crate::protocol::features::{Features, REQUIRED};
use crate::protocol::negotiation::wanted_features;
use crate::protocol::numbering::{QueueId, QueueMap};
use crate::protocol::options::DriverOptions;
use crate::protocol::status::DeviceStatus;
use crate::ring::Ring;
use crate::rings::{AttachError, Refused, Rings};

/// A device could not be brought up; it was told so and is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BringUpError {
    /// The device did not finish its reset, as when there is none.
    #[error("the device did not come out of reset")]
    Stuck,
    /// The device lacks features without which there is no balloon.
    #[error("the device does not offer {0:?}")]
    Unsuitable(Features),
    /// The device did not accept the choice of features.
    #[error("the device refused the features {0:?}")]
    FeaturesRefused(Features),
    /// The device asked for a reset as soon as it ran.
    #[error("the device failed when it was started")]
    Failed,
    /// The queues could not be set up.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

const RESET_POLLS: u32 = 1000;
const RESET_POLL_US: u32 = 100;

impl<D: Device, M: Dma, const S: usize> VirtioBalloon<Rings<D, M, S>> {
    /// Bytes of shared memory to bring: [`Rings::DMA_BYTES`].
    pub const DMA_BYTES: usize = Rings::<D, M, S>::DMA_BYTES;
}

impl<D: Handshake, M: Dma, const S: usize> VirtioBalloon<Rings<D, M, S>> {
    /// Resets the device, negotiates features, sets up the queues and starts it.
    ///
    /// `memory` must offer [`Rings::DMA_BYTES`]. `delay` paces the wait for the
    /// reset to finish, at most 100 ms. After a restart of the guest the device
    /// may still account for an old balloon: the engine's first step publishes
    /// a size of zero.
    ///
    /// # Errors
    /// Resets the device, sets `FAILED` and hands device and memory back. After
    /// [`BringUpError::Stuck`] the device may still use memory it was given.
    pub fn bring_up(
        mut device: D,
        memory: M,
        options: &DriverOptions,
        delay: &mut impl DelayNs,
    ) -> Result<Self, Refused<BringUpError, D, M>> {
        match start(&mut device, &memory, options, delay) {
            Ok((queues, negotiated)) => {
                let rings = Rings::join(device, memory, queues, negotiated, options);
                Ok(Self::attach(rings, negotiated, options))
            }
            Err(error) => Err(Refused {
                error,
                device,
                memory,
            }),
        }
    }

    /// Brings a balloon back whose device asks for a reset
    /// ([`DeviceNeedsReset`](balloon_core::Blocked::DeviceNeedsReset)), broke the
    /// protocol, or was plugged in again at the same registers.
    ///
    /// Resets the device, starts it anew over the same memory, and resumes the engine:
    /// with the next steps every frame the device had comes home, and then the target
    /// is followed. Services beside it do so by themselves, with their next step.
    /// `delay` paces the wait as in [`bring_up`](Self::bring_up).
    ///
    /// # Errors
    /// As [`bring_up`](Self::bring_up); the device is not spoken to any more. After
    /// [`BringUpError::Stuck`] it may still do to frames what it was asked to, so they stay
    /// where they are, and another attempt may follow. After any other error it has
    /// forgotten them, and [`Engine::retire`] takes them home.
    pub fn restart<const N: usize>(
        &mut self,
        engine: &mut Engine<N>,
        delay: &mut impl DelayNs,
    ) -> Result<(), BringUpError> {
        self.set_unfit();
        let options = *self.options();
        let (device, memory) = self.queues_mut().parts();
        let (queues, negotiated) = start(device, memory, &options, delay)?;
        self.queues_mut().renew(queues, negotiated);
        self.renew(negotiated);
        engine.resume(Resume::Reset);
        Ok(())
    }

    /// Resets the device, which forgets all requests, and gives it and the
    /// memory back. `delay` paces the wait as in [`bring_up`](Self::bring_up).
    ///
    /// For a balloon that is given up: [`Engine::retire`] then takes its frames home.
    /// [`restart`](Self::restart) brings one back.
    ///
    /// # Errors
    /// [`BringUpError::Stuck`]: the device may go on using the memory and the
    /// frames it was told of.
    pub fn reset(self, delay: &mut impl DelayNs) -> Result<(D, M), Refused<BringUpError, D, M>> {
        let (mut device, memory) = self.into_queues().into_parts();
        match reset(&mut device, delay) {
            Ok(()) => Ok((device, memory)),
            Err(error) => Err(Refused {
                error,
                device,
                memory,
            }),
        }
    }
}

/// Queues of a running device, and the features it runs with.
type Started<const S: usize> = ((QueueMap, [Ring<S>; QueueId::COUNT]), Features);

/// From a device in any state to one that runs; gives it up if it does not.
fn start<D: Handshake, M: Dma, const S: usize>(
    device: &mut D,
    memory: &M,
    options: &DriverOptions,
    delay: &mut impl DelayNs,
) -> Result<Started<S>, BringUpError> {
    let (offered, negotiated) = negotiate(device, options, delay)
        .inspect_err(|_| device.set_status(DeviceStatus::FAILED))?;
    let queues = Rings::set_up(device, memory, offered, negotiated, options)
        .map_err(|error| abandon(device, error.into(), delay))?;
    device.set_status(READY | DeviceStatus::DRIVER_OK);
    if device.status().contains(DeviceStatus::NEEDS_RESET) {
        return Err(abandon(device, BringUpError::Failed, delay));
    }
    Ok((queues, negotiated))
}

const READY: DeviceStatus = DeviceStatus::ACKNOWLEDGE
    .union(DeviceStatus::DRIVER)
    .union(DeviceStatus::FEATURES_OK);

/// Takes the queues away from the device, which says when it is done.
fn reset<D: Handshake>(device: &mut D, delay: &mut impl DelayNs) -> Result<(), BringUpError> {
    device.set_status(DeviceStatus::empty());
    for _ in 0..RESET_POLLS {
        if device.status().is_empty() {
            return Ok(());
        }
        delay.delay_us(RESET_POLL_US);
    }
    Err(BringUpError::Stuck)
}

/// Gives a device up that knows of memory of ours; why.
fn abandon<D: Handshake>(
    device: &mut D,
    error: BringUpError,
    delay: &mut impl DelayNs,
) -> BringUpError {
    let error = reset(device, delay).err().unwrap_or(error);
    device.set_status(DeviceStatus::FAILED);
    error
}

/// From reset to `FEATURES_OK`: what was offered, and what both sides settled on.
fn negotiate<D: Handshake>(
    device: &mut D,
    options: &DriverOptions,
    delay: &mut impl DelayNs,
) -> Result<(Features, Features), BringUpError> {
    reset(device, delay)?;
    device.set_status(DeviceStatus::ACKNOWLEDGE);
    device.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let offered = device.offered_features();
    let lacking = REQUIRED.difference(offered);
    if !lacking.is_empty() {
        return Err(BringUpError::Unsuitable(lacking));
    }
    let wanted = wanted_features(offered, options);
    device.accept_features(wanted);
    device.set_status(READY);
    if !device.status().contains(DeviceStatus::FEATURES_OK) {
        return Err(BringUpError::FeaturesRefused(wanted));
    }
    Ok((offered, wanted))
}
