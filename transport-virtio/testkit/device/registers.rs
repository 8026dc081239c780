//! The registers, as the driver sees them.

use super::{FakeDevice, Queue};
use crate::device::{Device, Handshake, QueueRefused, RingAddresses};
use crate::dma::Dma;
use crate::protocol::config::{ACTUAL, ConfigIo};
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueIndex;
use crate::protocol::status::DeviceStatus;

impl<M> ConfigIo for FakeDevice<M> {
    fn config_len(&self) -> usize {
        self.profile.config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        if let Some(byte) = self.gone {
            return u32::from_ne_bytes([byte; 4]);
        }
        self.checker.reads(offset, self.profile.config_len());
        self.config_reads += 1;
        if usize::from(offset) + 4 > self.profile.config_len() {
            return u32::MAX;
        }
        if offset == ACTUAL && (self.keeps_no_size || !self.profile.remembers_size()) {
            return 0;
        }
        self.config
            .get(usize::from(offset / 4))
            .copied()
            .unwrap_or(u32::MAX)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        if self.gone.is_some() {
            return;
        }
        self.checker.writes(offset);
        if usize::from(offset) + 4 <= self.profile.config_len()
            && let Some(word) = self.config.get_mut(usize::from(offset / 4))
        {
            *word = value;
        }
    }

    fn generation(&mut self) -> u32 {
        if let Some(byte) = self.gone {
            return byte.into();
        }
        self.checker.looks_at_generation();
        if self.restless {
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }

    fn status(&mut self) -> DeviceStatus {
        if let Some(byte) = self.gone {
            return DeviceStatus::from_bits_retain(byte);
        }
        if let Some(left) = self.resetting.checked_sub(1) {
            self.resetting = left;
            if left == 0 {
                self.reset();
            }
        }
        self.status
    }
}

impl<M: Dma> Device for FakeDevice<M> {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        if let Some(byte) = self.gone {
            return u16::from_ne_bytes([byte; 2]);
        }
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
        if self.gone.is_some() {
            return Err(QueueRefused);
        }
        if self.refuses.is_some() && self.profile.purpose(queue) == self.refuses {
            return Err(QueueRefused);
        }
        self.checker.enables(self.profile.purpose(queue));
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
        if self.gone.is_some() {
            return;
        }
        self.checker.notifies();
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
    fn set_status(&mut self, status: DeviceStatus) {
        if self.gone.is_some() {
            return;
        }
        self.history.push(status);
        self.checker.status(status);
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
        // As QEMU does, which would not know what addresses are then.
        let needed = self.profile.offered() & Features::ACCESS_PLATFORM;
        let refused = self.picky || !offered || !self.accepted.contains(needed);
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
        match self.gone {
            Some(byte) => Features::from_bits_retain(u64::from_ne_bytes([byte; 8])),
            None => self.profile.offered(),
        }
    }

    fn accept_features(&mut self, accepted: Features) {
        if self.gone.is_some() {
            return;
        }
        self.accepted = accepted;
        self.checker.accepts(accepted);
    }
}
