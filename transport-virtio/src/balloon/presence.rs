//! Whether there is a device, and whether it is well.

use super::{VirtioBalloon, VirtioError};
use crate::protocol::config::{ACTUAL, ConfigIo, NUM_PAGES};
use crate::protocol::status::DeviceStatus;
use crate::queues::Queues;

/// What a register of an empty place reads as on most buses.
const ONES: u32 = u32::MAX;

impl<Q: Queues + ConfigIo> VirtioBalloon<Q> {
    /// Why the device is not spoken to any more: it is [gone](VirtioError::Gone), or it
    /// [asks for a reset](VirtioError::NeedsReset).
    ///
    /// Found out when the target is read: after a configuration interrupt, when the
    /// policy polls, or when the device has not answered for a while. No register is
    /// touched from then on.
    #[must_use]
    pub const fn lost(&self) -> Option<VirtioError> {
        self.lost
    }

    /// The bus says that the device is gone: no register of it is touched any more, so
    /// that they may be unmapped.
    ///
    /// Then [`config_changed`](balloon_core::Signal::config_changed) and steps: engine
    /// and services bring home what the device had. An engine that had given the device
    /// up before asks it nothing more: [`Engine::retire`](balloon_core::Engine::retire).
    pub const fn set_gone(&mut self) {
        self.lost = Some(VirtioError::Gone);
    }

    /// The device is about to be reset: it is not spoken to before it runs again.
    pub(crate) fn set_unfit(&mut self) {
        self.lost = self.lost.or(Some(VirtioError::NeedsReset));
    }

    /// An error if the device was lost.
    pub(super) fn find(&self) -> Result<(), VirtioError> {
        self.lost.map_or(Ok(()), Err)
    }

    /// Looks whether the device is there and well, so that what was just read of it can
    /// be believed.
    ///
    /// A device whose registers are moved or asleep for a moment reads as an empty place,
    /// and is alive: nothing is concluded before the target is read again, a second later
    /// by the engine's clock, and it still does. Who `decides` reads the target. One that
    /// has a status and forgot only the size keeps its frames, until it is reset.
    pub(super) fn examine(&mut self, decides: bool) -> Result<(), VirtioError> {
        self.find()?;
        let status = self.queues.status();
        let empty = status.is_of_nobody();
        if empty || self.has_forgotten() {
            if !decides || !core::mem::replace(&mut self.suspected, true) {
                return Err(VirtioError::Absent);
            }
            // A status that nobody reads for us says this alone.
            let blind = status == DeviceStatus::DRIVER_OK;
            self.lost = Some(if empty || blind {
                VirtioError::Gone
            } else {
                VirtioError::NeedsReset
            });
            return self.find();
        }
        self.suspected = false;
        if status.contains(DeviceStatus::NEEDS_RESET) {
            self.lost = Some(VirtioError::NeedsReset);
        }
        self.find()
    }

    /// Whether the size reads as no device has it that was told ours.
    fn has_forgotten(&mut self) -> bool {
        let shown = self.queues.read_config(ACTUAL);
        if shown == ONES && self.queues.read_config(NUM_PAGES) == ONES {
            return true;
        }
        let known = self.published.pages.filter(|_| self.published.remembered);
        let Some(pages) = known.filter(|&pages| pages != shown) else {
            return false;
        };
        // One that was restored without it is told once more.
        self.queues.write_config(ACTUAL, pages);
        self.queues.read_config(ACTUAL) != pages
    }

    /// Tells the device the size, and looks once whether it remembers.
    pub(super) fn publish(&mut self, pages: u32) {
        // Beyond 16 TiB the field can only say "a lot", and not what an empty place says.
        let pages = pages.min(ONES - 1);
        self.queues.write_config(ACTUAL, pages);
        self.published.pages = Some(pages);
        if pages != 0 && !self.published.remembered {
            self.published.remembered = self.queues.read_config(ACTUAL) == pages;
        }
    }
}
