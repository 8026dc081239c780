//! The registers, as the driver sees them.

use super::{FakeDevice, Queue};
use crate::device::{Device, DeviceStatus, Handshake, QueueRefused, RingAddresses};
use crate::dma::Dma;
use crate::protocol::{ConfigIo, Features, QueueIndex};

impl<M> ConfigIo for FakeDevice<M> {
    fn config_len(&self) -> usize {
        self.profile.config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.judge.reads(offset, self.profile.config_len());
        self.config_reads += 1;
        if usize::from(offset) + 4 > self.profile.config_len() {
            return u32::MAX;
        }
        self.config
            .get(usize::from(offset / 4))
            .copied()
            .unwrap_or(u32::MAX)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.judge.writes(offset);
        if usize::from(offset) + 4 <= self.profile.config_len()
            && let Some(word) = self.config.get_mut(usize::from(offset / 4))
        {
            *word = value;
        }
    }

    fn generation(&mut self) -> u32 {
        self.judge.looks_at_generation();
        if self.restless {
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }
}

impl<M: Dma> Device for FakeDevice<M> {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        let bit = 1_u8.checked_shl(queue.get().into()).unwrap_or(0);
        let gone = self.forgets_sizes && self.shown & bit != 0;
        self.shown |= bit;
        if gone {
            0
        } else {
            self.profile.max_size(queue)
        }
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        let max = self.profile.max_size(queue);
        if self.refuses.is_some() && self.profile.purpose(queue) == self.refuses {
            return Err(QueueRefused);
        }
        self.judge.enables(self.profile.purpose(queue));
        let place = self
            .queues
            .get_mut(usize::from(queue.get()))
            .ok_or(QueueRefused)?;
        if !size.is_power_of_two() || size > max || place.at.is_some() {
            return Err(QueueRefused);
        }
        *place = Queue {
            size,
            at: Some(at),
            ..Queue::default()
        };
        Ok(())
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.judge.notifies();
        if let Some(queue) = self.queues.get_mut(usize::from(queue.get())) {
            queue.notified += 1;
        }
    }
}

impl<M> FakeDevice<M> {
    fn reset(&mut self) {
        self.queues = [Queue::default(); 8];
        self.accepted = Features::empty();
        self.status = DeviceStatus::empty();
    }
}

impl<M: Dma> Handshake for FakeDevice<M> {
    fn status(&mut self) -> DeviceStatus {
        if let Some(left) = self.resetting.checked_sub(1) {
            self.resetting = left;
            if left == 0 {
                self.reset();
            }
        }
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.history.push(status);
        self.judge.status(status);
        if self.stuck {
            return;
        }
        if status.is_empty() {
            self.resetting = self.reset_takes;
            if self.resetting == 0 {
                self.reset();
            }
            return;
        }
        let offered = self.profile.offered().contains(self.accepted);
        let refused = self.picky || !offered;
        let refused = if refused {
            DeviceStatus::FEATURES_OK
        } else {
            DeviceStatus::empty()
        };
        self.status = status.difference(refused);
        if self.fails && status.contains(DeviceStatus::DRIVER_OK) {
            self.status |= DeviceStatus::NEEDS_RESET;
        }
    }

    fn offered_features(&mut self) -> Features {
        self.profile.offered()
    }

    fn accept_features(&mut self, accepted: Features) {
        self.accepted = accepted;
        self.judge.accepts(accepted);
    }
}
