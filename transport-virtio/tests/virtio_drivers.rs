//! The adapter for `virtio-drivers`: our fake device as one of its transports,
//! driven back through the adapter.

#![cfg(all(feature = "virtio-drivers-0-13", not(any(miri, loom))))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use core::cell::RefCell;

use balloon_core::testing::check_transport_laws;
use balloon_core::{FrameCount, FrameRange, Pfn, Transport as _};
use transport_virtio::testing::{self, FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::virtio_drivers_0_13::Adapter;
use transport_virtio::{
    BringUpError, ConfigIo, Device, DeviceStatus, DriverOptions, Features, Handshake, QueueId,
    QueueIndex, RingAddresses, Rings, VirtioBalloon,
};
use virtio_drivers_0_13::transport::{
    DeviceStatus as Status, DeviceType, InterruptStatus, Transport,
};
use virtio_drivers_0_13::{Error, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A transport of that crate over our fake device.
struct Theirs(RefCell<FakeDevice>);

impl Transport for Theirs {
    fn device_type(&self) -> DeviceType {
        DeviceType::MemoryBalloon
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.get_mut().offered_features().bits()
    }

    fn write_driver_features(&mut self, features: u64) {
        let features = Features::from_bits_retain(features);
        self.0.get_mut().accept_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let queue = QueueIndex::new(queue);
        self.0.get_mut().max_queue_size(queue).into()
    }

    fn notify(&mut self, queue: u16) {
        self.0.get_mut().notify(QueueIndex::new(queue));
    }

    fn get_status(&self) -> Status {
        Status::from_bits_retain(self.0.borrow_mut().status().bits().into())
    }

    fn set_status(&mut self, status: Status) {
        let status = u8::try_from(status.bits()).unwrap();
        self.0
            .get_mut()
            .set_status(DeviceStatus::from_bits_retain(status));
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        let at = RingAddresses {
            descriptors,
            driver,
            device,
        };
        let size = u16::try_from(size).unwrap();
        let _ = self.0.get_mut().set_queue(QueueIndex::new(queue), size, at);
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        let device = self.0.get_mut();
        let index = |queue| device.profile().index(queue);
        let mine = QueueId::ALL
            .into_iter()
            .find(|&id| index(id) == Some(queue));
        mine.is_some_and(|id| device.queue_size(id) != 0)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.borrow_mut().generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut device = self.0.borrow_mut();
        if offset + size_of::<T>() > device.config_len() {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let word = device.read_config(u16::try_from(offset).unwrap());
        T::read_from_bytes(word.as_bytes()).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        let word = u32::read_from_bytes(value.as_bytes()).unwrap();
        let offset = u16::try_from(offset).unwrap();
        self.0.get_mut().write_config(offset, word);
        Ok(())
    }
}

type Balloon = VirtioBalloon<Rings<Adapter<Theirs>, FakeMemory, 16>>;

fn bring_up(profile: Profile) -> core::result::Result<Balloon, BringUpError> {
    let (device, memory) = testing::pair::<16>(profile);
    let device = Adapter(Theirs(RefCell::new(device)));
    VirtioBalloon::bring_up(device, memory, &DriverOptions::new(), &mut NoDelay)
        .map_err(|refused| refused.error)
}

fn device(balloon: &mut Balloon) -> &mut FakeDevice {
    balloon.queues_mut().device_mut().0.0.get_mut()
}

#[test]
fn the_laws_hold_through_the_adapter() {
    let mut balloon = bring_up(Profile::qemu(Features::PAGE_REPORTING)).unwrap();
    assert!(balloon.capabilities().bulk.is_some());
    let frames = FrameRange::new(Pfn::new(0x1000), FrameCount::new(4096)).unwrap();
    check_transport_laws(&mut balloon, frames, |balloon| {
        for queue in QueueId::ALL {
            device(balloon).serve(queue);
        }
    });
    device(&mut balloon).set_target(99);
    assert_eq!(balloon.read_target(), Ok(FrameCount::new(99)));
    balloon.write_actual(FrameCount::new(7)).unwrap();
    assert_eq!(device(&mut balloon).actual(), 7);
}

#[test]
fn a_field_that_is_not_there_reads_as_ones_and_is_not_written() {
    let mut balloon = bring_up(Profile::qemu(Features::empty()).with_config(4)).unwrap();
    let adapter = balloon.queues_mut().device_mut();
    assert_eq!(adapter.read_config(12), u32::MAX);
    adapter.write_config(4, 7);
    assert_eq!(device(&mut balloon).actual(), 0);
}

/// Short enough that a kernel with a fork of that crate copies it.
#[test]
fn the_adapter_has_at_most_40_lines() {
    let source = include_str!("../src/virtio_drivers_0_13.rs");
    let (_, adapter) = source.split_once("/// Registers behind").unwrap();
    let lines = adapter.lines().count();
    assert!(lines <= 40, "{lines} lines");
}
