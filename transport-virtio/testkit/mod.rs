//! A balloon device in the same process, for tests.
//!
//! [`FakeDevice`] is the registers and, through a [`FakeMemory`] shared with
//! the driver, the device side of the rings. It does nothing by itself: a test
//! takes requests, looks at them, answers them in any order, twice, wrongly or
//! not at all. [`Profile`] makes it number and size its queues as a known
//! device model does.
//!
//! ```
//! use transport_virtio::testing::{self, Profile};
//! use transport_virtio::{DriverOptions, Features, QueueId};
//!
//! let qemu = Profile::qemu(Features::PAGE_REPORTING);
//! let balloon = testing::bring_up::<16>(qemu, &DriverOptions::new())?;
//! assert_eq!(balloon.queues().map().index(QueueId::Reporting).unwrap().get(), 3);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

pub mod checker;
pub mod conformance;
mod device;
mod memory;
mod profile;

pub use checker::Checker;
pub use device::{Chain, Descriptor, FakeDevice};
pub use memory::{FakeMemory, NoDelay};
pub use profile::Profile;

use crate::balloon::VirtioBalloon;
use crate::bring_up::BringUpError;
use crate::protocol::options::DriverOptions;
use crate::rings::{Refused, Rings};

/// A device and memory for queues of up to `S` descriptors.
#[must_use]
pub fn pair<const S: usize>(profile: Profile) -> (FakeDevice, FakeMemory) {
    let memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, S>::DMA_BYTES);
    (FakeDevice::new(profile, memory.clone()), memory)
}

/// A balloon on a fake device.
pub type FakeBalloon<const S: usize> = VirtioBalloon<Rings<FakeDevice, FakeMemory, S>>;

/// Brings up a balloon on a device of this profile.
///
/// # Errors
/// As [`VirtioBalloon::bring_up`].
#[expect(
    clippy::result_large_err,
    reason = "a device with its history, in tests"
)]
pub fn bring_up<const S: usize>(
    profile: Profile,
    options: &DriverOptions,
) -> Result<FakeBalloon<S>, Refused<BringUpError, FakeDevice, FakeMemory>> {
    let memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, S>::dma_bytes(options));
    let device = FakeDevice::new(profile, memory.clone());
    VirtioBalloon::bring_up(device, memory, options, &mut NoDelay)
}
