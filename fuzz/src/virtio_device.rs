//! A whole balloon guest against a device that does what the bytes say.
//!
//! The device answers any request or none, in any order, with any id and length,
//! moves its indices, changes its configuration while it is read, and writes to
//! all memory it shares with the driver. Whatever it does: no panic, no endless
//! work, and every frame of the guest has exactly one owner.

mod frames;
mod watched;

use balloon_core::{
    Blocked, Budget, Engine, FrameCount, Nanos, Need, Order, Pfn, Policy, Progress, Resume, Shared,
    Transport,
};
use transport_virtio::testing::{FakeBalloon, FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    Dma, DriverOptions, Features, Hinting, QueueId, QueueIndex, ReportPace, Reporting, Statistics,
    Tag, UnusedPages, VirtioBalloon, VirtioError,
};

use frames::{Frames, Kept, Owner};
use watched::Watched;

/// A bit of the input, and what it switches on.
type Choice = (u8, fn(DriverOptions) -> DriverOptions);

/// Requests per kind, and descriptors per queue: few, so that all are in use.
const N: usize = 4;

/// Readings of the configuration in one step, at most: four attempts at the
/// target, the size by which the device is known, and once whether it shows one.
const READS: u32 = 6;

/// Steps after which a reset balloon has let go of every frame.
const ROUNDS: usize = 64;

/// The input, which never ends: it goes on with zeros.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u32 {
        u32::from(self.half()) | u32::from(self.half()) << 16
    }

    fn queue(&mut self) -> QueueId {
        QueueId::ALL[usize::from(self.byte()) % QueueId::COUNT]
    }

    fn profile(&mut self) -> Profile {
        let offered = Features::from_bits_retain(self.byte().into());
        let profile = match self.byte() % 7 {
            6 => Profile::chunk_transfer(offered),
            0 => Profile::specification(offered),
            1 => Profile::qemu(offered),
            2 => Profile::firecracker(offered),
            3 => Profile::cloud_hypervisor(offered),
            4 => Profile::crosvm(offered),
            _ => Profile::libkrun(offered),
        };
        // Now and then a queue or a configuration of another size.
        let odd = self.byte();
        let profile = if odd & 1 != 0 {
            profile.with_size(self.queue(), self.half())
        } else {
            profile
        };
        let profile = if odd & 2 != 0 {
            profile.with_config(usize::from(self.byte() % 20))
        } else {
            profile
        };
        let profile = if odd & 4 != 0 {
            profile.without(Features::EVENT_IDX | Features::INDIRECT_DESC)
        } else {
            profile
        };
        // Now and then any bits the other way round, VERSION_1 among them.
        if odd & 8 != 0 {
            let bits = u64::from(self.word()) | u64::from(self.word()) << 32;
            let bits = Features::from_bits_retain(bits);
            let offered = profile.offered();
            profile.without(bits & offered).with(bits - offered)
        } else {
            profile
        }
    }

    fn policy(&mut self) -> DriverOptions {
        let bits = self.byte();
        let mut policy = DriverOptions::new();
        let choices: [Choice; 8] = [
            (1, DriverOptions::polled),
            (2, DriverOptions::without_bulk),
            (4, DriverOptions::without_event_idx),
            (8, DriverOptions::with_statistics),
            (16, DriverOptions::with_hints),
            (32, DriverOptions::with_reporting),
            (64, |policy| policy.with_poison(1)),
            (128, DriverOptions::with_host_superpages),
        ];
        for (bit, choose) in choices {
            if bits & bit != 0 {
                policy = choose(policy);
            }
        }
        policy
    }
}

struct Guest {
    policy: DriverOptions,
    balloon: VirtioBalloon<Watched>,
    engine: Engine<N>,
    shared: &'static Shared<N>,
    source: Frames,
    statistics: Statistics,
    hinting: Hinting<N>,
    hinted: Kept,
    unused: UnusedPages,
    unused_held: Kept,
    reporting: Reporting,
    used: Vec<u64>,
    now: u64,
}

fn watch(
    balloon: FakeBalloon<N>,
    frames: &Frames,
    policy: &DriverOptions,
) -> VirtioBalloon<Watched> {
    let negotiated = balloon.negotiated();
    let watched = Watched::new(balloon.into_queues(), frames.clone(), negotiated, policy);
    VirtioBalloon::attach(watched, negotiated, policy)
}

impl Guest {
    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().inner.device_mut()
    }

    /// What the device has not answered for is nobody else's, unless there is none.
    fn check(&self) {
        if self.balloon.lost() == Some(VirtioError::Gone) {
            return;
        }
        let frames = self.balloon.queues().with_device();
        self.source.check(frames, Owner::InHand);
    }

    /// The guest resets the device in whatever state both are; `None` if it does
    /// not come back.
    fn reset(mut self) -> Option<Self> {
        // Plugged in again.
        self.device().gone = None;
        let (device, memory) = self.balloon.into_queues().inner.into_parts();
        let balloon = FakeBalloon::bring_up(device, memory, &self.policy, &mut NoDelay).ok()?;
        self.balloon = watch(balloon, &self.source, &self.policy);
        self.statistics.reset();
        self.hinting.reset(&mut self.source, &mut self.hinted);
        self.unused.reset(&mut self.source, &mut self.unused_held);
        self.reporting.reset(&mut self.source);
        self.engine.resume(Resume::Reset);
        Some(self)
    }

    /// Whether the guest has found the queues where this device has them.
    fn understands(&mut self) -> bool {
        let map = *self.balloon.queues().inner.map();
        let profile = *self.device().profile();
        QueueId::ALL.into_iter().all(|queue| {
            let index = map.index(queue).map(QueueIndex::get);
            index.is_none() || index == profile.index(queue)
        })
    }

    /// What a device had that was pulled out finds its way home without it.
    fn bereave(&mut self) {
        self.shared.signal().config_changed();
        self.step();
        let progress = self.engine.status(&self.source).progress;
        if progress != Progress::Blocked(Blocked::DeviceGone) {
            // It had failed before: the kernel's bus knows better.
            self.balloon.set_gone();
            let now = Nanos::from_millis(self.now);
            let (engine, source) = (&mut self.engine, &mut self.source);
            while engine.retire(source, now, Budget::SMALL).more {}
        }
        let home = (0..ROUNDS).any(|_| {
            self.step();
            self.serve_host();
            self.source.is_home()
        });
        let status = self.engine.status(&self.source);
        assert!(home, "{status:?}, {:x?}", self.source);
    }

    /// Once the device was reset and behaves, every frame finds its way home.
    fn recover(mut self) {
        if self.device().gone.is_some() {
            self.bereave();
        }
        let Some(mut guest) = self.reset() else {
            return;
        };
        if guest.understands() {
            guest.come_home();
        }
        // A balloon that is dropped leaves its memory to a device that may still run.
        drop(guest.balloon.into_queues().inner.into_parts());
    }

    fn come_home(&mut self) {
        let device = self.device();
        device.restless = false;
        device.set_target(0);
        device.set_hint_command(1);
        let home = (0..ROUNDS).any(|_| {
            self.step();
            self.serve_host();
            for queue in QueueId::ALL {
                self.device().serve(queue);
            }
            self.source.is_home()
        });
        let status = self.engine.status(&self.source);
        assert!(home, "{status:?}, {:x?}", self.source);
    }

    fn step(&mut self) {
        self.now += 1;
        let now = Nanos::from_millis(self.now);
        let budget = Budget::requests(2);
        let restless = self.device().restless;
        let before = self.device().config_reads();
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        let _ = self.engine.step(balloon, source, now, budget);
        let reads = self.device().config_reads() - before;
        let allowed = if restless { READS } else { READS - 3 };
        assert!(reads <= allowed, "{reads} readings for one decision");
    }

    /// Memory is short.
    fn relieve(&mut self, frames: FrameCount) {
        let now = Nanos::from_millis(self.now);
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        self.engine
            .relieve(balloon, source, Need::frames(frames), now)
            .wake(|| {});
        self.hinting.relieve(source, &mut self.hinted, frames);
    }

    /// The services; any of them may be refused by this device.
    fn serve_host(&mut self) {
        let now = Nanos::from_millis(self.now);
        let shared = self.shared;
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        let _ = self
            .statistics
            .step(balloon, shared, now, |tag| tag.get().into());
        let _ = self
            .hinting
            .step(balloon, shared, source, &mut self.hinted, now);
        let _ = self
            .unused
            .step(balloon, shared, source, &mut self.unused_held, now);
        let _ = self.reporting.step(balloon, shared, source, now);
    }

    fn churn(&mut self, what: u8) {
        for _ in 0..what % 8 {
            match self.source.allocate() {
                Some(frame) if what & 0x80 == 0 => self.used.push(frame),
                Some(frame) => self.source.free(frame),
                None => break,
            }
        }
        if what & 0x40 != 0
            && let Some(frame) = self.used.pop()
        {
            self.source.free(frame);
        }
    }
}

/// Lets the bytes drive the device, and the guest beside it.
pub fn run(data: &[u8]) {
    let shared: &'static Shared<N> = Box::leak(Box::default());
    drive(Bytes(data), shared);
    let address: *const Shared<N> = shared;
    // SAFETY: leaked above, and all that held the reference was dropped inside
    // `drive`.
    drop(unsafe { Box::from_raw(address.cast_mut()) });
}

fn drive(mut bytes: Bytes<'_>, shared: &'static Shared<N>) {
    let profile = bytes.profile();
    let moods = bytes.byte();
    let policy = bytes.policy();
    // Only a device that is known to speak the dialect is spoken to in it; now
    // and then one that was mistaken for it.
    let policy = if profile.chunks() || moods & 0x40 != 0 {
        policy.with_chunk_transfer()
    } else {
        policy
    };
    let memory = FakeMemory::new(watched::Inner::dma_bytes(&policy));
    let mut device = FakeDevice::new(profile, memory.clone());
    let shared_memory: FakeMemory = memory.clone();
    device.stuck = moods == 1;
    device.picky = moods == 2;
    let Ok(balloon) = FakeBalloon::<N>::bring_up(device, memory, &policy, &mut NoDelay) else {
        return;
    };
    // Now and then half of the frames have no 32-bit number.
    let first = Pfn::new(if moods & 0x20 == 0 {
        0x100
    } else {
        (1 << 32) - 32
    });
    let source = Frames::new(first, moods & 0x80 != 0);
    let mut guest = Guest {
        policy,
        balloon: watch(balloon, &source, &policy),
        engine: Engine::new(shared, Policy::DEFAULT),
        shared,
        hinted: source.kept(Owner::Hinted),
        unused_held: source.kept(Owner::Unused),
        source,
        statistics: Statistics::new(&[Tag::FREE, Tag::TOTAL]),
        hinting: Hinting::new(FrameCount::new(8)),
        unused: UnusedPages::new(FrameCount::new(4)),
        reporting: Reporting::new(ReportPace {
            order: Order::FRAME,
            share: 2,
            ..ReportPace::DEFAULT
        }),
        used: Vec::new(),
        now: 0,
    };
    while !bytes.0.is_empty() {
        let operation = bytes.byte();
        match operation % 16 {
            0..=3 => guest.step(),
            4 => guest.serve_host(),
            5 => {
                let (queue, id) = (bytes.queue(), bytes.byte() % 8);
                guest.device().answer(queue, id.into(), 0);
            }
            6 => {
                let (queue, id, len) = (bytes.queue(), bytes.word(), bytes.word());
                guest.device().answer(queue, id, len);
            }
            7 => {
                // An honest spell: each head once.
                let queue = bytes.queue();
                for id in 0..N as u32 {
                    guest.device().answer(queue, id, 0);
                }
            }
            8 => {
                let (queue, by) = (bytes.queue(), bytes.half());
                guest.device().jump(queue, by % 64);
            }
            9 => {
                let (place, value) = (usize::from(bytes.half()), bytes.half());
                shared_memory.store16(place * 2 % shared_memory.len(), value);
            }
            10 => {
                // Its notification wishes, or a target within reach or beyond.
                let target = bytes.byte();
                let target = if target < 200 {
                    target.into()
                } else {
                    bytes.word()
                };
                guest.device().set_target(target);
                shared.signal().config_changed();
            }
            11 => {
                let command = bytes.byte() % 4;
                guest.device().set_hint_command(command.into());
            }
            12 => {
                let what = bytes.byte();
                guest.churn(what);
            }
            13 => shared.signal().used(),
            14 => {
                let mood = bytes.byte();
                let device = guest.device();
                device.restless = mood & 1 != 0;
                match mood >> 4 {
                    13 => device.fail(),
                    14 => device.gone = Some(0),
                    15 => device.gone = Some(u8::MAX),
                    _ => {}
                }
            }
            _ if operation == 0xff => {
                let Some(after) = guest.reset() else { return };
                guest = after;
            }
            _ if operation & 0x80 != 0 => {
                let frames = bytes.byte() % 16;
                guest.relieve(FrameCount::new(frames.into()));
            }
            _ => {
                let _ = guest.balloon.reap(shared.slots().completer());
            }
        }
        guest.check();
    }
    guest.recover();
}
