//! The transport against a device in the same process: what the engine relies
//! on, on each device model, and what a device may do to it.

// Whole guests on memory that is safe code: hours under Miri, and nothing for it
// to find. What is unsafe it sees in the unit tests.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

extern crate alloc;

mod bring_up;
mod ends;
mod hostile;
mod kernels;
mod paths;

use balloon_core::testing::{FakeSource, check_transport_laws};
use balloon_core::{
    Budget, Capabilities, Engine, FrameCount, FrameRange, InFlight, Kind, Ledger, Nanos, Order,
    Pfn, Policy, Progress, Resume, Run, Shared, Slots, Transport, TransportError,
    TransportErrorKind, Via,
};
use transport_virtio::testing::{self, FakeBalloon, FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    AttachError, BringUpError, DeviceStatus, DriverOptions, Features, QueueError, QueueId, Rings,
    VirtioBalloon, VirtioError,
};

const ALL: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];

fn profiles() -> [(&'static str, Profile); 6] {
    let all = Features::STATS_VQ | Features::FREE_PAGE_HINT | Features::PAGE_REPORTING;
    [
        (
            "specification",
            Profile::specification(Features::PAGE_REPORTING),
        ),
        ("qemu", Profile::qemu(Features::PAGE_REPORTING)),
        (
            "firecracker",
            Profile::firecracker(Features::FREE_PAGE_HINT | Features::PAGE_REPORTING),
        ),
        (
            "cloud-hypervisor",
            Profile::cloud_hypervisor(Features::PAGE_REPORTING),
        ),
        (
            "crosvm",
            Profile::crosvm(Features::STATS_VQ | Features::PAGE_REPORTING),
        ),
        ("libkrun", Profile::libkrun(all)),
    ]
}

fn device(balloon: &mut FakeBalloon<16>) -> &mut FakeDevice {
    balloon.queues_mut().device_mut()
}

fn serve(balloon: &mut FakeBalloon<16>) {
    for queue in ALL {
        device(balloon).serve(queue);
    }
}

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(range(start, count)).unwrap()
}

/// A balloon without an engine: the test sends.
struct Rig {
    balloon: FakeBalloon<16>,
    slots: &'static Slots<16>,
}

impl Rig {
    fn new(profile: Profile, options: DriverOptions) -> Self {
        Self {
            balloon: testing::bring_up::<16>(profile, &options).unwrap(),
            slots: Box::leak(Box::default()),
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        device(&mut self.balloon)
    }

    /// Claims a slot and submits; a refused request leaves no slot behind.
    fn submit(
        &mut self,
        kind: Kind,
        via: Via,
        runs: &[Run],
    ) -> Result<InFlight<'static>, VirtioError> {
        let slot = self.slots.claim(kind).unwrap().launch();
        let request = slot.request(via, runs);
        match self.balloon.submit(request, self.slots.completer()) {
            Ok(()) => Ok(slot),
            Err(error) => {
                assert!(slot.revoke().is_ok());
                Err(error)
            }
        }
    }

    /// Submits a request nobody waits for.
    fn send(&mut self, kind: Kind, via: Via, runs: &[Run]) {
        self.submit(kind, via, runs).map(drop).unwrap();
    }

    fn reap(&mut self) -> Result<(), VirtioError> {
        self.balloon.reap(self.slots.completer()).map(drop)
    }
}

#[test]
fn the_laws_hold_on_every_device_model() {
    for (name, profile) in profiles() {
        for options in [
            DriverOptions::new(),
            DriverOptions::new().polled().without_event_idx(),
        ] {
            let mut balloon = testing::bring_up::<16>(profile, &options).expect(name);
            assert!(balloon.capabilities().bulk.is_some(), "{name}");
            check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
        }
    }
}

#[test]
fn a_balloon_follows_its_target_on_every_device_model() {
    for (name, profile) in profiles() {
        for options in [DriverOptions::new(), DriverOptions::new().without_bulk()] {
            let shared: &'static Shared<16> = Box::leak(Box::default());
            let mut balloon = testing::bring_up::<16>(profile, &options).expect(name);
            let mut engine = Engine::new(shared, Policy::DEFAULT);
            let mut source = FakeSource::new(range(0x100, 2048)).scattered();
            let mut now = 0;
            for target in [1500, 100, 1024, 0] {
                device(&mut balloon).set_target(target);
                shared.signal().config_changed();
                let reached = (0..2000).any(|_| {
                    now += 1;
                    let interrupts = balloon.queues().device().interrupts();
                    engine.step(
                        &mut balloon,
                        &mut source,
                        Nanos::from_millis(now),
                        Budget::SMALL,
                    );
                    serve(&mut balloon);
                    // The interrupt handler of this test.
                    if balloon.queues().device().interrupts() != interrupts {
                        shared.signal().used();
                    }
                    let reached = engine.status(&source).progress == Progress::Reached;
                    reached && balloon.queues().device().actual() == target
                });
                assert!(reached, "{name} at {target}: {:?}", engine.status(&source));
                source.check(FrameCount::ZERO);
            }
            assert_eq!(source.held(Via::Bulk), FrameCount::ZERO);
        }
    }
}
