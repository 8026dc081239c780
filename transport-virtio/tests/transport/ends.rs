//! Devices that fail or are pulled out.

use alloc::rc::Rc;
use core::cell::Cell;

use balloon_core::{BitmapLedger, Blocked, Need, Status};
use transport_virtio::protocol::wanted_features;
use transport_virtio::{
    ConfigIo, Device, Dma, Handshake, HintStep, Hinting, QueueIndex, QueueRefused, Queues,
    ReportPace, Reporting, RingAddresses, Statistics, Tag,
};

use super::*;

const FRAMES: u64 = 2048;

/// What an empty place reads as: on most buses, and on QEMU's.
const EMPTY: [u8; 2] = [0xff, 0];

/// Registers of a kernel that negotiates by itself: the driver sees no status.
struct Blind(FakeDevice);

impl ConfigIo for Blind {
    fn config_len(&self) -> usize {
        self.0.config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.0.read_config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.0.write_config(offset, value);
    }

    fn generation(&mut self) -> u32 {
        self.0.generation()
    }
}

impl Device for Blind {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        self.0.max_queue_size(queue)
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        self.0.set_queue(queue, size, at)
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.0.notify(queue);
    }
}

/// Who gets at the fake device behind a driver.
trait Fake: Queues + ConfigIo {
    fn testing(&mut self) -> &mut FakeDevice;
}

impl Fake for Rings<Blind, FakeMemory, 16> {
    fn testing(&mut self) -> &mut FakeDevice {
        &mut self.device_mut().0
    }
}

impl Fake for Rings<FakeDevice, FakeMemory, 16> {
    fn testing(&mut self) -> &mut FakeDevice {
        self.device_mut()
    }
}

fn blind(profile: Profile, options: &DriverOptions) -> VirtioBalloon<Rings<Blind, FakeMemory, 16>> {
    let (mut device, memory) = testing::pair::<16>(profile);
    let negotiated = wanted_features(profile.offered(), options);
    device.accept_features(negotiated);
    device.set_status(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
    let rings = Rings::attach(
        Blind(device),
        memory,
        profile.offered(),
        negotiated,
        options,
    );
    let rings = rings.map_err(|refused| refused.error).unwrap();
    VirtioBalloon::attach(rings, negotiated, options)
}

/// A whole guest.
struct Guest<Q> {
    balloon: VirtioBalloon<Q>,
    shared: &'static Shared<16>,
    engine: Engine<16>,
    source: FakeSource,
    now: u64,
}

impl<Q: Fake> Guest<Q> {
    fn new(balloon: VirtioBalloon<Q>) -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        Self {
            balloon,
            shared,
            engine: Engine::new(shared, Policy::DEFAULT),
            source: FakeSource::new(range(0x100, FRAMES)).scattered(),
            now: 0,
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().testing()
    }

    fn serve(&mut self) {
        for queue in ALL {
            self.device().serve(queue);
        }
    }

    fn step(&mut self) {
        self.now += 50;
        let now = Nanos::from_millis(self.now);
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        while self.engine.step(balloon, source, now, Budget::SMALL).more {}
    }

    fn status(&self) -> Status {
        self.engine.status(&self.source)
    }

    /// A balloon of 500, and 500 more on their way.
    fn half_way(&mut self) {
        for (target, answers) in [(500, true), (1000, false)] {
            self.device().set_target(target);
            self.shared.signal().config_changed();
            for _ in 0..50 {
                self.step();
                if answers {
                    self.serve();
                    self.shared.signal().used();
                }
            }
        }
        let status = self.status();
        assert_eq!((status.size.get(), status.inflating.get()), (500, 500));
    }

    #[track_caller]
    fn assert_all_home(&self) {
        let status = self.status();
        let gone = Progress::Blocked(Blocked::DeviceGone);
        assert_eq!((status.progress, status.target), (gone, None));
        assert_eq!(self.source.free().get(), FRAMES, "{status:?}");
        assert_eq!(self.balloon.lost(), Some(VirtioError::Gone));
    }

    /// The device is pulled out; found out by a signal, by polling, by its silence.
    fn pull_out(&mut self, byte: u8, signal: bool) {
        let told = self.balloon.counters();
        self.device().gone = Some(byte);
        if signal {
            self.shared.signal().config_changed();
            self.step();
        }
        for _ in 0..400 {
            self.step();
        }
        self.assert_all_home();
        assert_eq!(self.balloon.counters().queues.kicks, told.queues.kicks);
        // Memory that is short: nobody is asked for any.
        let now = Nanos::from_millis(self.now);
        let need = Need::frames(FrameCount::new(10));
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        let _ = self.engine.relieve(balloon, source, need, now).wake(|| {});
        self.assert_all_home();
    }
}

fn all_options() -> [DriverOptions; 4] {
    let options = DriverOptions::new();
    [
        options,
        options.without_bulk(),
        options.polled(),
        options.polled().without_bulk(),
    ]
}

#[test]
fn a_device_that_is_pulled_out_is_found_out_and_its_frames_come_home() {
    for (_, profile) in profiles() {
        for options in all_options() {
            for byte in EMPTY {
                for signal in [false, true] {
                    let mut guest = Guest::new(testing::bring_up(profile, &options).unwrap());
                    guest.half_way();
                    guest.pull_out(byte, signal);
                }
            }
        }
    }
}

#[test]
fn a_device_that_reads_as_an_empty_place_for_a_moment_keeps_its_frames() {
    for (name, profile) in profiles() {
        for options in all_options() {
            for byte in EMPTY {
                let mut guest = Guest::new(testing::bring_up(profile, &options).unwrap());
                guest.half_way();
                guest.device().gone = Some(byte);
                guest.shared.signal().config_changed();
                guest.now += 50;
                let now = Nanos::from_millis(guest.now);
                let (balloon, source) = (&mut guest.balloon, &mut guest.source);
                guest.engine.step(balloon, source, now, Budget::SMALL);
                assert_eq!(guest.status().inflating.get(), 500, "{name}");
                guest.device().gone = None;
                for _ in 0..200 {
                    guest.step();
                    guest.serve();
                    guest.shared.signal().used();
                }
                assert_eq!(guest.balloon.lost(), None, "{name}");
                assert_eq!(guest.status().size.get(), 1000, "{name}");
            }
        }
    }
}

#[test]
fn without_a_status_the_size_gives_it_away() {
    for (name, profile) in profiles() {
        for options in all_options() {
            for byte in EMPTY {
                // Zeros are all that this model ever shows there.
                if byte == 0 && !profile.remembers_size() {
                    continue;
                }
                let mut guest = Guest::new(blind(profile, &options));
                guest.half_way();
                guest.pull_out(byte, name != "qemu");
            }
        }
    }
}

/// A device that was restored with other contents of its configuration, or that never
/// shows the size: neither is gone.
#[test]
fn a_device_that_shows_another_size_is_told_ours() {
    for (name, profile) in profiles() {
        let mut guest = Guest::new(blind(profile, &DriverOptions::new().polled()));
        guest.half_way();
        guest.device().forget_size();
        for _ in 0..100 {
            guest.step();
            guest.serve();
        }
        assert_eq!(guest.status().progress, Progress::Reached, "{name}");
        assert_eq!(guest.device().actual(), 1000, "{name}");
        // A greedy host is there.
        guest.device().set_target(u32::MAX);
        for _ in 0..100 {
            guest.step();
            guest.serve();
        }
        assert_eq!(guest.balloon.lost(), None, "{name}");
        assert_eq!(guest.status().size.get(), FRAMES, "{name}");
    }
}

#[test]
fn one_call_brings_a_device_back_that_asked_for_a_reset() {
    for options in all_options() {
        let profile = Profile::qemu(Features::PAGE_REPORTING);
        let mut guest = Guest::new(testing::bring_up(profile, &options).unwrap());
        guest.half_way();
        guest.device().fail();
        guest.shared.signal().config_changed();
        guest.step();
        let status = guest.status();
        let reason = Blocked::DeviceNeedsReset;
        assert_eq!(status.progress, Progress::Blocked(reason));
        assert_eq!(status.inflating.get(), 500, "it may still discard them");
        let Guest {
            balloon,
            engine,
            source,
            ..
        } = &mut guest;
        // In vain, and again.
        balloon.queues_mut().device_mut().stuck = true;
        let stuck = balloon.restart(engine, &mut NoDelay);
        assert_eq!(stuck, Err(BringUpError::Stuck));
        assert_eq!(engine.status(source).inflating.get(), 500);
        balloon.queues_mut().device_mut().stuck = false;
        assert_eq!(balloon.restart(engine, &mut NoDelay), Ok(()));
        assert_eq!(balloon.lost(), None);
        for _ in 0..100 {
            guest.step();
            guest.serve();
            guest.shared.signal().used();
        }
        assert_eq!(guest.status().progress, Progress::Reached);
        assert_eq!(
            (guest.status().size.get(), guest.device().actual()),
            (1000, 1000)
        );
        assert_eq!(guest.device().checker().violations(), []);
        // Plugged in again where it was.
        guest.pull_out(0xff, true);
        guest.device().gone = None;
        let restarted = guest.balloon.restart(&mut guest.engine, &mut NoDelay);
        assert_eq!(restarted, Ok(()));
        for _ in 0..200 {
            guest.step();
            guest.serve();
            guest.shared.signal().used();
        }
        assert_eq!(guest.status().size.get(), 1000);
    }
}

#[test]
fn a_kernel_that_knows_says_so_and_no_register_is_touched() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut guest = Guest::new(testing::bring_up(profile, &DriverOptions::new()).unwrap());
    guest.half_way();
    let reads = guest.device().config_reads();
    guest.balloon.set_gone();
    guest.shared.signal().config_changed();
    guest.step();
    guest.assert_all_home();
    assert_eq!(guest.device().config_reads(), reads);
}

/// Memory that notes when it is freed.
struct Owned(FakeMemory, Rc<Cell<bool>>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.1.set(true);
    }
}

impl Dma for Owned {
    fn address(&self) -> u64 {
        self.0.address()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn load16(&self, offset: usize) -> u16 {
        self.0.load16(offset)
    }

    fn store16(&self, offset: usize, value: u16) {
        self.0.store16(offset, value);
    }
}

#[test]
fn the_memory_of_a_running_device_is_not_freed() {
    type Owning = VirtioBalloon<Rings<FakeDevice, Owned, 16>>;
    let start = || {
        let (device, memory) = testing::pair::<16>(Profile::qemu(Features::empty()));
        let freed = Rc::new(Cell::new(false));
        let memory = Owned(memory, freed.clone());
        let balloon = Owning::bring_up(device, memory, &DriverOptions::new(), &mut NoDelay);
        (balloon.map_err(|refused| refused.error).unwrap(), freed)
    };
    let (balloon, freed) = start();
    drop(balloon);
    assert!(!freed.get(), "the device goes on using it");
    let (balloon, freed) = start();
    drop(
        balloon
            .reset(&mut NoDelay)
            .map_err(|refused| refused.error)
            .unwrap(),
    );
    assert!(freed.get());
    let (mut balloon, freed) = start();
    balloon.set_gone();
    drop(balloon.into_queues().into_parts());
    assert!(freed.get());
}

#[test]
fn services_bring_home_what_a_device_had_that_is_gone() {
    let all = Features::FREE_PAGE_HINT | Features::PAGE_REPORTING;
    let options = DriverOptions::new()
        .with_hints()
        .with_reporting()
        .with_statistics();
    for byte in EMPTY {
        let mut guest = Guest::new(testing::bring_up(Profile::qemu(all), &options).unwrap());
        let shared = guest.shared;
        let mut statistics = Statistics::new(&[Tag::FREE]);
        let mut reporting: Reporting = Reporting::new(ReportPace {
            order: Order::FRAME,
            ..ReportPace::DEFAULT
        });
        let mut hinting: Hinting<16> = Hinting::new(FrameCount::new(FRAMES - 1000));
        let mut words =
            vec![0; usize::try_from(BitmapLedger::words(FrameCount::new(FRAMES))).unwrap()];
        let mut held = BitmapLedger::new(&mut words[..], &[range(0x100, FRAMES)]).unwrap();
        guest.device().set_hint_command(9);
        for round in 0..600 {
            guest.step();
            let now = Nanos::from_millis(guest.now);
            let Guest {
                balloon, source, ..
            } = &mut guest;
            let _ = hinting
                .step(balloon, shared, source, &mut held, now)
                .unwrap();
            if round > 500 {
                reporting.step(balloon, shared, source, now).unwrap();
            } else {
                guest.device().serve(QueueId::Hint);
            }
        }
        let now = Nanos::from_millis(guest.now);
        let (balloon, source) = (&mut guest.balloon, &mut guest.source);
        let out = hinting.step(balloon, shared, source, &mut held, now);
        assert!(!out.unwrap().held.is_zero() && !reporting.held().is_zero());
        guest.device().gone = Some(byte);
        guest.shared.signal().config_changed();
        guest.step();
        assert_eq!(guest.balloon.lost(), None, "one reading proves nothing");
        for _ in 0..30 {
            guest.step();
        }
        let mut left: Vec<HintStep> = Vec::new();
        let gone = loop {
            let Guest {
                balloon, source, ..
            } = &mut guest;
            match hinting.step(balloon, shared, source, &mut held, now) {
                Ok(step) => left.push(step),
                Err(error) => break error,
            }
            assert!(left.last().unwrap().wake_at.is_some() || left.last().unwrap().more);
        };
        let now = Nanos::from_millis(guest.now);
        let Guest {
            balloon, source, ..
        } = &mut guest;
        let told = reporting.step(balloon, shared, source, now).unwrap_err();
        assert_eq!((gone, told), (VirtioError::Gone, VirtioError::Gone));
        assert_eq!(statistics.step(balloon, shared, now, |_| 1), Err(gone));
        guest.assert_all_home();
    }
}

#[test]
fn the_hinting_command_of_an_empty_place_opens_no_round() {
    for byte in EMPTY {
        let options = DriverOptions::new().with_hints();
        let profile = Profile::qemu(Features::FREE_PAGE_HINT);
        let mut guest = Guest::new(blind(profile, &options));
        let shared = guest.shared;
        let mut hinting: Hinting<16> = Hinting::new(FrameCount::ZERO);
        let mut words =
            vec![0; usize::try_from(BitmapLedger::words(FrameCount::new(FRAMES))).unwrap()];
        let mut held = BitmapLedger::new(&mut words[..], &[range(0x100, FRAMES)]).unwrap();
        guest.step();
        let (balloon, source) = (&mut guest.balloon, &mut guest.source);
        let now = Nanos::ZERO;
        hinting
            .step(balloon, shared, source, &mut held, now)
            .unwrap();
        guest.device().gone = Some(byte);
        for _ in 0..100 {
            let (balloon, source) = (&mut guest.balloon, &mut guest.source);
            let _ = hinting.step(balloon, shared, source, &mut held, now);
        }
        assert_eq!(hinting.rounds(), 0);
        assert_eq!(guest.source.free().get(), FRAMES);
    }
}

/// It is there, and well by its status, but what it was told is lost: frames that it has may
/// still be discarded.
#[test]
fn a_device_that_forgot_the_size_for_good_is_to_be_reset() {
    for options in all_options() {
        let profile = Profile::qemu(Features::PAGE_REPORTING);
        let mut guest = Guest::new(testing::bring_up(profile, &options).unwrap());
        guest.half_way();
        guest.device().keeps_no_size = true;
        guest.shared.signal().config_changed();
        guest.step();
        assert_eq!(guest.balloon.lost(), None, "one reading proves nothing");
        for _ in 0..30 {
            guest.step();
        }
        assert_eq!(guest.balloon.lost(), Some(VirtioError::NeedsReset));
        let status = guest.status();
        let reason = Progress::Blocked(Blocked::DeviceNeedsReset);
        assert_eq!(status.progress, reason);
        assert_eq!((status.size.get(), status.inflating.get()), (500, 500));
        guest.device().keeps_no_size = false;
        let restarted = guest.balloon.restart(&mut guest.engine, &mut NoDelay);
        assert_eq!(restarted, Ok(()));
        for _ in 0..100 {
            guest.step();
            guest.serve();
            guest.shared.signal().used();
        }
        assert_eq!(guest.status().progress, Progress::Reached);
    }
}
