//! The driver on the vhost-user back end: registers become messages over a
//! socket, in the roles that QEMU and its guest have.
#![expect(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a host program"
)]

use std::collections::BTreeSet;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use balloon_core::testing::FakeSource;
use balloon_core::{
    Budget, Engine, FrameCount, FrameRange, Nanos, Pfn, Policy, Shared as EngineShared,
};
use balloon_device::device::Options;
use balloon_device::front::Front;
use balloon_device::ram::{Backing, Ram, RamDma};
use balloon_device::vhost_user::{Backend, Shared};
use embedded_hal::delay::DelayNs;
use transport_virtio::protocol::{ACTUAL, NUM_PAGES};
use transport_virtio::{
    ConfigIo, Device, DeviceStatus, DriverOptions, Features, Handshake, QueueId, QueueIndex,
    QueueRefused, RingAddresses, Rings, VirtioBalloon,
};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_backend::{VhostUserBackendMut as _, VringRwLock, VringT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MIB: usize = 1 << 20;
/// Where the rings are; frames of the guest begin behind.
const RINGS: u64 = 1 << 20;
const FIRST: u64 = 8 << 8;

/// The back end's calls, by queue: all that tells the driver of answers.
struct Calls {
    events: [EventFd; QueueId::COUNT],
    any: Epoll,
    heard: u32,
}

impl Calls {
    fn new(events: [EventFd; QueueId::COUNT]) -> Self {
        let any = Epoll::new().unwrap();
        for event in &events {
            let interest = EpollEvent::new(EventSet::IN, 0);
            let fd = event.as_raw_fd();
            any.ctl(ControlOperation::Add, fd, interest).unwrap();
        }
        Self {
            events,
            any,
            heard: 0,
        }
    }

    /// Waits until the back end calls; false if it does not.
    fn wait(&mut self) -> bool {
        let mut ready = [EpollEvent::default(); QueueId::COUNT];
        let ready = self.any.wait(10_000, &mut ready).unwrap();
        self.collect();
        ready > 0
    }

    fn collect(&mut self) {
        let called = self.events.iter().filter(|event| event.read().is_ok());
        self.heard += u32::try_from(called.count()).unwrap();
    }
}

/// A virtual machine monitor of one device.
struct Monitor {
    vhost: Frontend,
    ram: Arc<Ram>,
    status: DeviceStatus,
    kicks: [EventFd; QueueId::COUNT],
    calls: [EventFd; QueueId::COUNT],
}

impl Monitor {
    /// Connects as soon as the back end listens.
    fn connect(socket: &std::path::Path, ram: Arc<Ram>) -> Self {
        let begin = Instant::now();
        let queues = QueueId::COUNT as u64;
        let mut vhost = loop {
            match Frontend::connect(socket, queues) {
                Ok(vhost) => break vhost,
                Err(error) => assert!(begin.elapsed() < Duration::from_secs(10), "{error}"),
            }
        };
        vhost.set_owner().unwrap();
        vhost.get_features().unwrap();
        let offered = vhost.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        assert!(offered.contains(wanted));
        vhost.set_protocol_features(wanted).unwrap();
        let events = || [(); QueueId::COUNT].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            vhost,
            ram,
            status: DeviceStatus::empty(),
            kicks: events(),
            calls: events(),
        }
    }
}

impl ConfigIo for Monitor {
    fn read_config(&mut self, offset: u16) -> u32 {
        let flags = VhostUserConfigFlags::WRITABLE;
        let read = self.vhost.get_config(offset.into(), 4, flags, &[0; 4]);
        let (_, bytes) = read.unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        let flags = VhostUserConfigFlags::WRITABLE;
        let bytes = value.to_le_bytes();
        self.vhost.set_config(offset.into(), flags, &bytes).unwrap();
    }

    fn generation(&mut self) -> u32 {
        0
    }

    fn status(&mut self) -> DeviceStatus {
        self.status
    }
}

impl Device for Monitor {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        if usize::from(queue.get()) < QueueId::COUNT {
            128
        } else {
            0
        }
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        let index = usize::from(queue.get());
        let host = |address| {
            let place = self.ram.memory().get_host_address(GuestAddress(address));
            place.unwrap() as u64
        };
        let rings = VringConfigData {
            queue_max_size: 128,
            queue_size: size,
            flags: 0,
            desc_table_addr: host(at.descriptors),
            used_ring_addr: host(at.device),
            avail_ring_addr: host(at.driver),
            log_addr: None,
        };
        self.vhost.set_vring_num(index, size).unwrap();
        self.vhost.set_vring_addr(index, &rings).unwrap();
        self.vhost.set_vring_base(index, 0).unwrap();
        self.vhost
            .set_vring_call(index, &self.calls[index])
            .unwrap();
        self.vhost
            .set_vring_kick(index, &self.kicks[index])
            .unwrap();
        self.vhost.set_vring_enable(index, true).unwrap();
        Ok(())
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.kicks[usize::from(queue.get())].write(1).unwrap();
    }
}

const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

impl Handshake for Monitor {
    fn set_status(&mut self, status: DeviceStatus) {
        self.status = status;
    }

    fn offered_features(&mut self) -> Features {
        Features::from_bits_retain(self.vhost.get_features().unwrap() & !PROTOCOL)
    }

    fn accept_features(&mut self, accepted: Features) {
        self.vhost.set_features(accepted.bits() | PROTOCOL).unwrap();
        let region = self.ram.memory().iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.vhost.set_mem_table(&[region]).unwrap();
    }
}

struct NoDelay;

impl DelayNs for NoDelay {
    fn delay_ns(&mut self, _: u32) {}
}

#[test]
fn what_is_given_over_a_socket_is_gone_and_nothing_else() {
    let plain = DriverOptions::new().without_bulk();
    let policies = [
        ("ranges", DriverOptions::new()),
        ("numbers", plain),
        ("chunks", plain.with_chunk_transfer()),
    ];
    for (name, policy) in policies {
        let shared: &'static EngineShared<64> = Box::leak(Box::default());
        let options = Options {
            chunks: policy.chunk_transfer(),
            requests: policy.chunk_transfer(),
            merge: true,
            ..Options::default()
        };
        // The device's own: the driver hears the front end alone.
        let unheard: &'static EngineShared<2> = Box::leak(Box::default());
        let front = Front::new(options.features(), unheard.signal()).unwrap();
        let backend = Backend::new(Arc::clone(&front), options).unwrap();
        let backend: Shared = Arc::new(RwLock::new(backend));
        let file = format!("balloon-device-{}-{name}.sock", std::process::id());
        let socket = std::env::temp_dir().join(file);
        let served = {
            let (backend, socket) = (Arc::clone(&backend), socket.clone());
            std::thread::spawn(move || Backend::serve(&backend, &socket))
        };

        let ram = Arc::new(Ram::new(Backing::Memfd, 64 * MIB).unwrap());
        let marked = || (8 * MIB..64 * MIB).step_by(4096);
        for at in marked() {
            let mark = at as u64;
            ram.memory().write_obj(mark, GuestAddress(mark)).unwrap();
        }
        let len = Rings::<Monitor, RamDma, 64>::dma_bytes(&policy);
        let memory = ram.dma(RINGS, len).unwrap();
        let monitor = Monitor::connect(&socket, Arc::clone(&ram));
        let mut calls = Calls::new(monitor.calls.each_ref().map(|c| c.try_clone().unwrap()));
        let balloon: Result<VirtioBalloon<Rings<Monitor, RamDma, 64>>, _> =
            VirtioBalloon::bring_up(monitor, memory, &policy, &mut NoDelay);
        let mut balloon = balloon.map_err(|refused| refused.error).unwrap();
        let frames = FrameRange::new(Pfn::new(FIRST), FrameCount::new(56 << 8));
        let mut source = FakeSource::new(frames.unwrap());
        let mut engine = Engine::new(shared, Policy::DEFAULT);

        let begin = Instant::now();
        for target in [9000, 2000, 5000] {
            front.set_config(NUM_PAGES, target);
            // The one message the protocol's crate has not.
            shared.signal().config_changed();
            loop {
                let now = Nanos::new(u64::try_from(begin.elapsed().as_nanos()).unwrap());
                let step = engine.step(&mut balloon, &mut source, now, Budget::SMALL);
                let status = engine.status(&source);
                // The size goes over the socket too, and nobody waits for it.
                if status.size.get() == u64::from(target) && front.config(ACTUAL) == target {
                    break;
                }
                assert!(
                    begin.elapsed() < Duration::from_secs(60),
                    "{name}: {status:?}"
                );
                let out = |queue| balloon.in_flight(queue) > 0;
                if step.more {
                    continue;
                } else if QueueId::ALL.into_iter().any(out) {
                    assert!(calls.wait(), "{name}: no call, {status:?}");
                    shared.signal().used();
                } else {
                    // For the next reading of the target, or the size on its way.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        calls.collect();
        assert!(calls.heard > 0, "{name}: no call");
        let given = source.clone();
        let lost = marked().filter(|&at| {
            let mark: u64 = ram.memory().read_obj(GuestAddress(at as u64)).unwrap();
            mark != at as u64
        });
        let lost: BTreeSet<u64> = lost.map(|at| at as u64 >> 12).collect();
        let stages = backend.read().unwrap().device().stages();
        assert_eq!(stages.refused, 0, "{name}");
        assert!(
            lost.len() >= 9000 && lost.len() as u64 <= stages.frames.get(),
            "{name}"
        );
        let ballooned = frames
            .unwrap()
            .frames()
            .filter(|&p| given.ballooned(p).is_some());
        assert!(
            ballooned.into_iter().all(|p| lost.contains(&p.get())),
            "{name}"
        );

        // The front end hangs up.
        drop(balloon);
        served.join().unwrap().unwrap();
        let _ = std::fs::remove_file(socket);
    }
}

/// A guest that adds requests as fast as the device answers them.
#[test]
fn a_queue_that_fills_up_all_the_time_does_not_keep_the_back_end() {
    const SIZE: u16 = 128;
    let unheard: &'static EngineShared<2> = Box::leak(Box::default());
    let options = Options::default();
    let front = Front::new(options.features(), unheard.signal()).unwrap();
    let mut backend = Backend::new(Arc::clone(&front), options).unwrap();
    let ram = Arc::new(Ram::new(Backing::Memfd, 16 * MIB).unwrap());
    let memory = GuestMemoryAtomic::new(ram.memory().clone());
    backend.update_memory(memory.clone()).unwrap();
    backend.acked_features(Features::VERSION_1.bits());
    let new = |_| VringRwLock::new(memory.clone(), SIZE).unwrap();
    let vrings: [VringRwLock; QueueId::COUNT] = core::array::from_fn(new);
    let (available, used) = (0x2000, 0x3000);
    // Every request is the one of the first descriptor, which is empty.
    let inflate = &vrings[QueueId::Inflate.index()];
    inflate.set_queue_info(0x1000, available, used).unwrap();
    inflate.set_queue_ready(true);
    let stop = AtomicBool::new(false);
    let answered = || -> u16 { ram.memory().read_obj(GuestAddress(used + 2)).unwrap() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && answered() < 30_000 {
                let index = answered() + SIZE / 2;
                let at = GuestAddress(available + 2);
                ram.memory().store(index, at, Ordering::Release).unwrap();
            }
        });
        let (mut turns, mut longest) = (0, 0);
        while turns < 100 || longest == 0 {
            let before = answered();
            let served = backend.handle_event(0, EventSet::IN, &vrings, 0);
            assert!(served.is_ok());
            longest = longest.max(answered() - before);
            turns += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(longest <= 64 * SIZE, "{longest} in one turn");
    });
}
