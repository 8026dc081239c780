//! A whole balloon guest against a device that does what the bytes say.
//!
//! The device answers any request or none, in any order, with any id and length,
//! moves its indices, changes its configuration while it is read, and writes to
//! all memory it shares with the driver. Whatever it does: no panic, no endless
//! work, and every frame of the guest has exactly one owner.

use balloon_core::testing::FakeSource;
use balloon_core::{
    BitmapLedger, Budget, Engine, FrameCount, FrameRange, GivePath, Ledger, Nanos, Order, Pfn,
    Policy as Pace, Shared, Transport,
};
use transport_virtio::fake::{FakeBalloon, FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    Dma, Features, Hinting, Policy, QueueId, ReportPace, Reporting, Rings, Statistics, Tag,
    UnusedPages,
};

/// A bit of the input, and what it switches on.
type Choice = (u8, fn(Policy) -> Policy);

/// Requests per kind, and descriptors per queue: few, so that all are in use.
const N: usize = 4;
const FRAMES: u64 = 64;

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
        if odd & 4 != 0 {
            profile.without(Features::EVENT_IDX | Features::INDIRECT_DESC)
        } else {
            profile
        }
    }

    fn policy(&mut self) -> Policy {
        let bits = self.byte();
        let mut policy = Policy::new();
        let choices: [Choice; 8] = [
            (1, Policy::polled),
            (2, Policy::without_bulk),
            (4, Policy::without_event_idx),
            (8, Policy::with_statistics),
            (16, Policy::with_hints),
            (32, Policy::with_reporting),
            (64, |policy| policy.with_poison(1)),
            (128, Policy::with_host_superpages),
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
    balloon: FakeBalloon<N>,
    engine: Engine<N>,
    shared: &'static Shared<N>,
    source: FakeSource,
    statistics: Statistics,
    hinting: Hinting<N>,
    hinted: BitmapLedger<Vec<u64>>,
    unused: UnusedPages,
    unused_held: BitmapLedger<Vec<u64>>,
    reporting: Reporting,
    used: Vec<Pfn>,
    now: u64,
}

impl Guest {
    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    fn step(&mut self) {
        self.now += 1;
        let now = Nanos::from_millis(self.now);
        let budget = Budget::requests(2);
        let _ = self
            .engine
            .step(&mut self.balloon, &mut self.source, now, budget);
    }

    /// The services; any of them may be refused by this device.
    fn serve_host(&mut self) {
        let now = Nanos::from_millis(self.now);
        let slots = self.shared.slots();
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        let _ = self.statistics.step(balloon, slots, |tag| tag.get().into());
        let _ = self.hinting.step(balloon, slots, source, &mut self.hinted);
        let _ = self
            .unused
            .step(balloon, slots, source, &mut self.unused_held);
        let _ = self.reporting.step(balloon, slots, source, now);
    }

    fn churn(&mut self, what: u8) {
        for _ in 0..what % 8 {
            match self.source.allocate() {
                Some(pfn) if what & 0x80 == 0 => self.used.push(pfn),
                Some(pfn) => self.source.free_allocated(pfn),
                None => break,
            }
        }
        if what & 0x40 != 0
            && let Some(pfn) = self.used.pop()
        {
            self.source.free_allocated(pfn);
        }
    }

    /// Every frame has one owner.
    fn check(&self) {
        self.source.check(FrameCount::new(self.used.len() as u64));
        let hinted = [&self.hinted, &self.unused_held].map(|held| held.held(GivePath::Told));
        let hinted = hinted
            .into_iter()
            .fold(FrameCount::ZERO, FrameCount::saturating_add);
        assert!(
            hinted <= self.source.in_hand(),
            "hinted frames are out of the allocator"
        );
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
    let memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, N>::dma_bytes(&policy));
    let mut device = FakeDevice::new(profile, memory.clone());
    let shared_memory: FakeMemory = memory.clone();
    device.stuck = moods == 1;
    device.picky = moods == 2;
    let Ok(balloon) = FakeBalloon::<N>::bring_up(device, memory, &policy, &mut NoDelay) else {
        return;
    };
    let frames = FrameRange::new(Pfn::new(0x100), FrameCount::new(FRAMES)).unwrap();
    let words = usize::try_from(BitmapLedger::words(frames.count())).unwrap();
    let source = FakeSource::new(frames);
    let mut guest = Guest {
        balloon,
        engine: Engine::new(shared, Pace::DEFAULT),
        shared,
        source: if moods & 0x80 == 0 {
            source
        } else {
            source.scattered()
        },
        statistics: Statistics::new(&[Tag::FREE, Tag::TOTAL]),
        hinting: Hinting::new(FrameCount::new(8)),
        hinted: BitmapLedger::new(vec![0; words], &[frames]).unwrap(),
        unused: UnusedPages::new(FrameCount::new(4)),
        unused_held: BitmapLedger::new(vec![0; words], &[frames]).unwrap(),
        reporting: Reporting::new(ReportPace {
            order: Order::FRAME,
            ..ReportPace::DEFAULT
        }),
        used: Vec::new(),
        now: 0,
    };
    while !bytes.0.is_empty() {
        match bytes.byte() % 16 {
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
                let restless = bytes.byte() & 1 != 0;
                guest.device().restless = restless;
            }
            _ => {
                let _ = guest.balloon.reap(shared.slots().completer());
            }
        }
        guest.check();
    }
}
