//! The device against the driver, in one process, with real memory behind.
#![expect(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::unwrap_used,
    reason = "a host program"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use balloon_core::Budget;
use balloon_device::control;
use balloon_device::device::{Device, Options};
use balloon_device::front::{Front, Registers};
use balloon_device::guest::Guest;
use balloon_device::ram::{Backing, Ram};
use balloon_device::worker::Worker;
use transport_virtio::{
    ConfigIo as _, DeviceStatus, DriverOptions, Features, Handshake as _, QueueId,
};
use vm_memory::{Bytes as _, GuestAddress};

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

struct Pair<const N: usize> {
    guest: Guest<N>,
    front: Arc<Front>,
    ram: Arc<Ram>,
    device: Device,
}

impl<const N: usize> Pair<N> {
    fn new(backing: Backing, policy: DriverOptions, merge: bool, mib: usize) -> Self {
        let options = Options {
            chunks: policy.chunk_transfer(),
            requests: policy.chunk_transfer(),
            merge,
            ..Options::default()
        };
        Self::with(backing, policy, options, mib)
    }

    fn with(backing: Backing, policy: DriverOptions, options: Options, mib: usize) -> Self {
        let ram = Arc::new(Ram::new(backing, mib * MIB).unwrap());
        let shared = Guest::<N>::shared();
        let front = Front::new(options.features(), shared.signal()).unwrap();
        let device = Device::new(Arc::clone(&front), Arc::clone(&ram), options);
        let guest = Guest::new(Arc::clone(&front), shared, Arc::clone(&ram), &policy).unwrap();
        Self {
            guest,
            front,
            ram,
            device,
        }
    }

    /// Marks every free page of the guest.
    fn fill(&self) {
        for at in (8 * MIB..self.ram.len()).step_by(4096) {
            let mark = at as u64;
            let place = GuestAddress(mark);
            self.ram.memory().write_obj(mark, place).unwrap();
        }
    }

    /// Pages whose mark is gone.
    fn lost(&self) -> usize {
        let mark = |at: usize| -> u64 {
            let place = GuestAddress(at as u64);
            self.ram.memory().read_obj(place).unwrap()
        };
        (8 * MIB..self.ram.len())
            .step_by(4096)
            .filter(|&at| mark(at) != at as u64)
            .count()
    }
}

fn policies() -> [(&'static str, DriverOptions); 4] {
    let plain = DriverOptions::new().without_bulk();
    [
        ("ranges", DriverOptions::new()),
        ("page numbers", plain),
        ("host pages of 2 MiB", plain.with_host_superpages()),
        ("chunks", plain.with_chunk_transfer()),
    ]
}

#[test]
fn what_is_given_is_gone_and_nothing_else() {
    for backing in [Backing::Anon, Backing::Memfd] {
        for (name, policy) in policies() {
            for merge in [true, false] {
                let mut pair = Pair::<16>::new(backing, policy, merge, 64);
                pair.fill();
                let Pair {
                    guest,
                    front,
                    ram: _,
                    device,
                } = &mut pair;
                for target in [5000, 2000, 9000] {
                    device.set_target(target);
                    // The engine reads targets at most a hundred times a second.
                    let begin = Instant::now();
                    while !guest.settled() {
                        guest.step(Budget::SMALL);
                        device.serve();
                        assert!(begin.elapsed() < LIMIT, "{name}: {:?}", guest.status());
                    }
                    assert_eq!(device.actual(), target);
                }
                assert!(front.kicks() > 0);
                let stages = device.stages();
                assert_eq!(stages.refused, 0, "{name}");
                let lost = pair.lost() as u64;
                // The balloon is gone; what came back in between too, unless it
                // was given again.
                assert!((9000..=12000).contains(&lost), "{name}: {lost}");
                assert!(lost <= stages.frames.get());
            }
        }
    }
}

impl<const N: usize> Pair<N> {
    /// Both sides go on until the balloon has this size.
    fn settle(&mut self, target: u32) {
        self.device.set_target(target);
        let begin = Instant::now();
        while !self.guest.settled() {
            self.guest.step(Budget::SMALL);
            self.device.serve();
            assert!(begin.elapsed() < LIMIT, "{:?}", self.guest.status());
        }
        // What the last answers brought.
        self.guest.step(Budget::SMALL);
    }

    /// Pages of the guest that hold this value from end to end.
    fn holding(&self, value: u32) -> u64 {
        let wanted = [value.to_le_bytes(); 1024].concat();
        let mut page = vec![0; wanted.len()];
        let mut held = |at: &usize| {
            let place = GuestAddress(*at as u64);
            self.ram.memory().read_slice(&mut page, place).unwrap();
            page == wanted
        };
        let pages = (4 * MIB..self.ram.len()).step_by(4096);
        pages.filter(|at| held(at)).count() as u64
    }
}

#[test]
fn must_tell_host_keeps_account_of_what_is_away() {
    for policy in [
        DriverOptions::new(),
        DriverOptions::new().with_chunk_transfer(),
    ] {
        let options = Options {
            chunks: policy.chunk_transfer(),
            requests: policy.chunk_transfer(),
            must_tell_host: true,
            ..Options::default()
        };
        let mut pair = Pair::<16>::with(Backing::Anon, policy, options, 64);
        let before = pair.guest.free().get();
        for target in [5000, 2000, 9000] {
            pair.settle(target);
            // Never in bulk, which has no words for it.
            let away = pair.device.away().unwrap();
            assert_eq!(away.get(), u64::from(target));
            assert_eq!(pair.guest.free().get(), before - u64::from(target));
        }
        // The device is told and does not answer: nothing is used.
        pair.device.set_target(0);
        let begin = Instant::now();
        while pair.guest.balloon().in_flight(QueueId::Deflate) == 0 {
            pair.guest.step(Budget::SMALL);
            assert!(begin.elapsed() < LIMIT);
        }
        for _ in 0..100 {
            pair.guest.step(Budget::SMALL);
        }
        assert_eq!(pair.guest.free().get(), before - 9000);
        pair.settle(0);
        assert_eq!(pair.guest.free().get(), before);
        assert_eq!(pair.device.away().unwrap().get(), 0);
        assert_eq!(pair.device.stages().refused, 0);
    }
}

#[test]
fn who_would_not_tell_is_not_served() {
    let options = Options {
        must_tell_host: true,
        ..Options::default()
    };
    let front = Front::new(options.features(), Guest::<2>::shared().signal()).unwrap();
    let mut registers = Registers(front);
    let ready = DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    let offered = registers.offered_features();
    for (accepted, served) in [
        (offered, true),
        (offered - Features::MUST_TELL_HOST, false),
        (offered | Features::ACCESS_PLATFORM, false),
    ] {
        registers.set_status(DeviceStatus::empty());
        registers.accept_features(accepted);
        registers.set_status(ready);
        let status = registers.status();
        assert_eq!(status.contains(DeviceStatus::FEATURES_OK), served);
    }
}

/// A guest that relies on what its free memory holds: reports are discarded only if
/// discarded memory reads as that.
#[test]
fn reported_memory_keeps_its_poison() {
    for value in [0, 0x5a5a_5a5a] {
        let policy = DriverOptions::new().with_poison(value).with_reporting();
        let options = Options {
            merge: true,
            poison: true,
            ..Options::default()
        };
        let mut pair = Pair::<16>::with(Backing::Anon, policy, options, 64);
        let all = pair.guest.free().get();
        for _ in 0..200 {
            pair.guest.serve().unwrap();
            pair.device.serve();
        }
        let reported = pair.guest.reporting().reported().get();
        assert!(reported > all / 2 && reported <= all, "{reported} of {all}");
        let stages = pair.device.stages();
        let (discarded, kept) = (stages.frames.get(), stages.kept.get());
        let expected = if value == 0 {
            (reported, 0)
        } else {
            (0, reported)
        };
        assert_eq!((discarded, kept), expected);
        assert_eq!(pair.holding(value), all);
        // What is given loses it, what comes back has it again.
        pair.settle(9000);
        let discarded = pair.device.stages().frames.get() - discarded;
        assert_eq!(discarded, 9000);
        if value != 0 {
            assert_eq!(pair.holding(value), all - 9000);
        }
        pair.settle(100);
        pair.settle(0);
        assert_eq!(pair.holding(value), all);
        assert_eq!(pair.device.stages().refused, 0);
    }
}

#[test]
fn two_threads_and_eventfds_reach_the_target() {
    for (name, policy) in policies() {
        let pair = Pair::<32>::new(Backing::Anon, policy, true, 256);
        let Pair {
            mut guest,
            front,
            device,
            ..
        } = pair;
        let worker = Worker::start(Arc::clone(&front), device).unwrap();
        for target in [50_000, 100, 60_000] {
            worker.ask(move |device| device.set_target(target)).unwrap();
            guest.run(LIMIT, Guest::settled).expect(name);
        }
        let frames = worker.ask(|device| device.stages().frames.get()).unwrap();
        assert!(frames >= 60_000, "{name}: {frames}");
        assert_eq!(guest.balloon().counters().queues.spurious_answers, 0);
    }
}

#[test]
fn hints_name_free_memory_and_come_home() {
    let policy = DriverOptions::new().with_hints().with_statistics();
    let mut pair = Pair::<16>::new(Backing::Anon, policy, true, 64);
    let free = pair.guest.free();
    pair.device.start_hints();
    for _ in 0..2000 {
        pair.guest.serve().unwrap();
        pair.device.serve();
    }
    let hints = pair.device.hints();
    assert!(hints.complete && hints.messages > 0);
    assert_eq!(
        hints.frames().get() + 256,
        free.get(),
        "all but what is kept"
    );
    assert_eq!(pair.guest.free().get(), 256);
    pair.device.end_hints();
    for _ in 0..2000 {
        pair.guest.serve().unwrap();
        pair.device.serve();
    }
    assert_eq!(pair.guest.free(), free);
    // Statistics came beside, and come again when asked for.
    assert_eq!(pair.device.statistics().len(), 2);
    pair.device.request_statistics();
    pair.guest.serve().unwrap();
    pair.device.serve();
    assert_eq!(pair.device.statistics()[0], (4, free.get() << 12));
}

/// The race of the dialect's authors: migrations start while 7 GiB are inflated
/// by the old protocol, one or two requests of 256 pages at a time.
#[test]
fn unused_pages_do_not_wait_for_an_inflation() {
    const STEPS: u64 = 4;
    const TARGET: u32 = 7 << 18;
    let options = Options {
        chunks: false,
        requests: true,
        ..Options::default()
    };
    let policy = DriverOptions::new().with_chunk_transfer();
    let mut pair = Pair::<2>::with(Backing::Anon, policy, options, 8 << 10);
    let life = |pair: &mut Pair<2>| {
        pair.guest.step(Budget::SMALL);
        pair.guest.serve().unwrap();
        pair.device.serve();
    };
    pair.device.set_target(TARGET);
    for (id, later) in [(1, 1), (2, 7), (3, 100)] {
        for _ in 0..later {
            life(&mut pair);
        }
        while pair.guest.balloon().in_flight(QueueId::Inflate) == 0 {
            assert!(!pair.guest.settled(), "over before the race");
            pair.guest.step(Budget::SMALL);
        }
        pair.device.request_unused(id);
        let before = pair.guest.steps();
        while pair.device.unused().messages == 0 {
            assert!(pair.guest.steps() - before < STEPS, "the answer waits");
            life(&mut pair);
        }
        assert!(pair.device.actual() < TARGET, "the inflation goes on");
        // What the answer named is free again, or is given.
        while pair.guest.unused().answers() < u32::from(id) {
            assert!(pair.guest.steps() - before < 100 * STEPS, "never ends");
            life(&mut pair);
        }
        assert!(pair.device.unused().complete);
    }
    let given = pair.device.actual();
    for _ in 0..200 {
        life(&mut pair);
    }
    let further = pair.device.actual();
    assert!(
        given + 100 * 256 <= further && further < TARGET,
        "{given}, {further}"
    );
}

#[test]
fn the_control_socket_speaks_lines() {
    let policy = DriverOptions::new().with_statistics().with_chunk_transfer();
    let pair = Pair::<32>::new(Backing::Anon, policy, true, 64);
    let Pair {
        mut guest,
        front,
        device,
        ..
    } = pair;
    let worker = Worker::start(Arc::clone(&front), device).unwrap();
    let ask = |line: &str| control::command(line, &front, &worker).unwrap();
    ask("balloon 40");
    guest.run(LIMIT, Guest::settled).unwrap();
    let query = ask("query");
    assert_eq!(query["actual_mib"], 40);
    assert_eq!(query["discarded_mib"], 40);
    ask("unused 9");
    guest
        .run(LIMIT, |guest| guest.unused().answers() == 1)
        .unwrap();
    let unused = ask("unused");
    assert_eq!(unused["id"], 9);
    assert_eq!(unused["complete"], true);
    assert_eq!(unused["mib"], 64 - 4 - 40 - 1);
    assert_eq!(ask("statistics")["5"], 60 << 20);
    assert!(control::command("nonsense", &front, &worker).is_err());
}

#[test]
fn an_index_that_runs_away_does_not_keep_the_device() {
    let mut pair = Pair::<16>::new(Backing::Anon, DriverOptions::new(), true, 16);
    let queues = pair.front.queues();
    let at = |queue: QueueId| queues[queue.index()].unwrap().at;
    // More requests than the queue has entries.
    let index = GuestAddress(at(QueueId::Inflate).driver + 2);
    pair.ram.memory().write_obj(5000_u16, index).unwrap();
    assert!(!pair.device.serve());
}

/// As a kernel does that starts another.
#[test]
fn a_driver_that_starts_again_at_once_is_served() {
    let policy = DriverOptions::new().without_bulk();
    let mut pair = Pair::<16>::new(Backing::Anon, policy, true, 64);
    pair.settle(5000);
    let (front, ram) = (Arc::clone(&pair.front), Arc::clone(&pair.ram));
    pair.guest = Guest::new(front, Guest::<16>::shared(), ram, &policy).unwrap();
    pair.settle(1000);
}

#[test]
fn a_reset_waits_for_the_turn_under_way() {
    let policy = DriverOptions::new().without_bulk();
    let Pair {
        front, ram, device, ..
    } = Pair::<128>::new(Backing::Anon, policy, true, 64);
    let worker = Worker::start(Arc::clone(&front), device).unwrap();
    for _ in 0..50 {
        let shared = Guest::<128>::shared();
        let mut guest: Guest<128> =
            Guest::new(Arc::clone(&front), shared, Arc::clone(&ram), &policy).unwrap();
        let at = front.queues()[QueueId::Inflate.index()].unwrap().at.device;
        let answered = || -> u16 { ram.memory().read_obj(GuestAddress(at + 2)).unwrap() };
        worker.ask(|device| device.set_target(10_000)).unwrap();
        let begin = Instant::now();
        while answered() == 0 {
            guest.step(Budget::LARGE);
            assert!(begin.elapsed() < LIMIT, "{:?}", guest.status());
        }
        Registers(Arc::clone(&front)).set_status(DeviceStatus::empty());
        let before = (answered(), front.interrupts());
        // What the device is at is over when it answers.
        worker.ask(|_| ()).unwrap();
        assert_eq!((answered(), front.interrupts()), before);
    }
}

#[test]
fn the_end_of_an_older_round_is_not_that_of_the_new_one() {
    let mut pair = Pair::<16>::new(Backing::Anon, DriverOptions::new().with_hints(), true, 64);
    pair.device.start_hints();
    // The device sees all but the last: the driver closes the round behind it.
    while pair.guest.free().get() > 256 || pair.guest.balloon().in_flight(QueueId::Hint) > 0 {
        pair.device.serve();
        pair.guest.serve().unwrap();
    }
    assert!(pair.device.hints().messages > 0);
    for _ in 0..3 {
        pair.guest.serve().unwrap();
    }
    assert!(!pair.device.hints().complete, "the end is on its way");
    pair.device.start_hints();
    pair.device.serve();
    assert!(!pair.device.hints().complete, "nobody has opened this one");
}
