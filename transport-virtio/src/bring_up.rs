//! From a device in any state to a running balloon.

use embedded_hal::delay::DelayNs;

use crate::balloon::VirtioBalloon;
use crate::device::{DeviceStatus, Handshake};
use crate::dma::Dma;
use crate::protocol::{Features, Policy, REQUIRED, wanted_features};
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
        policy: &Policy,
        delay: &mut impl DelayNs,
    ) -> Result<Self, Refused<BringUpError, D, M>> {
        let (offered, negotiated) = match negotiate(&mut device, policy, delay) {
            Ok(features) => features,
            Err(error) => {
                device.set_status(DeviceStatus::FAILED);
                return Err(Refused {
                    error,
                    device,
                    memory,
                });
            }
        };
        let mut rings = match Rings::attach(device, memory, offered, negotiated, policy) {
            Ok(rings) => rings,
            Err(Refused {
                error,
                mut device,
                memory,
            }) => {
                let error = abandon(&mut device, error.into(), delay);
                return Err(Refused {
                    error,
                    device,
                    memory,
                });
            }
        };
        let device = rings.device_mut();
        device.set_status(READY | DeviceStatus::DRIVER_OK);
        if device.status().contains(DeviceStatus::NEEDS_RESET) {
            let error = abandon(device, BringUpError::Failed, delay);
            let (device, memory) = rings.into_parts();
            return Err(Refused {
                error,
                device,
                memory,
            });
        }
        Ok(Self::attach(rings, negotiated, policy))
    }

    /// Resets the device, which forgets all requests, and gives it and the
    /// memory back. `delay` paces the wait as in [`bring_up`](Self::bring_up).
    ///
    /// Nobody looks for a device that asks for this at run time (`NEEDS_RESET`, told
    /// by a configuration interrupt): it answers nothing, which the engine reports
    /// after [`silent_after`](balloon_core::Policy::silent_after).
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
    policy: &Policy,
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
    let wanted = wanted_features(offered, policy);
    device.accept_features(wanted);
    device.set_status(READY);
    if !device.status().contains(DeviceStatus::FEATURES_OK) {
        return Err(BringUpError::FeaturesRefused(wanted));
    }
    Ok((offered, wanted))
}
