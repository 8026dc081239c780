//! A guest at a virtio device: the transport, its rings and its services are the
//! real ones, and the device works between any two calls of the guest.
//!
//! Other hosts of this simulator answer at once or when they are let; here an
//! answer may come after one consumer has looked and before the next one does,
//! interrupts come only where the rings say so, and at the end the guest steps
//! only when something wakes it. Memory lies low, across the last frame that a
//! page number reaches, or in two zones that touch.

mod calm;
mod device;
mod kernel;
mod setup;

use anyhow::{Context as _, Result, bail, ensure};
use balloon_core::{
    BitmapLedger, Budget, Compactor, Engine, FrameCount, FrameRange, Nanos, Need, Order, Pfn,
    Resume, Shared, Via, compactor_words,
};
use buddy_alloc::{Config, Frame, Preference, Zones};
use transport_virtio::testing::{FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    DriverOptions, Hinting, Reporting, Rings, Statistics, UnusedPages, VirtioBalloon,
};

use crate::map::FrameMap;
use crate::rng::Rng;
use crate::tally::Tally;
use crate::trace::Trace;
use device::Device;
use kernel::Kernel;
use setup::{agree, bring_up, policy, zones};

const SLOTS: usize = 4;
const RING: usize = 16;
/// Six superpages, and an edge that is none.
const FRAMES: u64 = 6 * 512 + 37;
const LOW: u64 = 0x1000;
/// What a page number of 32 bits reaches ends within.
const ACROSS: u64 = (1 << 32) - 1500;
/// The second zone begins inside a superpage.
const BORDER: u64 = 3 * 512 + 200;

type Source<'m> = Zones<'m, 2>;
type Balloon = VirtioBalloon<Rings<FakeDevice, FakeMemory, RING>>;
type Remembered = BitmapLedger<Vec<u64>>;

/// Where the guest's memory is.
#[derive(Clone, Copy, Debug)]
struct Ground {
    first: u64,
    split: bool,
}

impl Ground {
    fn all(self) -> Result<FrameRange> {
        let range = FrameRange::new(Pfn::new(self.first), FrameCount::new(FRAMES));
        range.context("the simulated memory is out of range")
    }

    /// What each zone spans.
    fn spans(self) -> impl Iterator<Item = buddy_alloc::FrameRange> {
        let end = self.first + FRAMES;
        let border = if self.split { self.first + BORDER } else { end };
        let spans = [(self.first, border), (border, end)];
        let spans = spans.map(|(start, end)| {
            buddy_alloc::FrameRange::between(Frame::new(start), Frame::new(end))
        });
        spans.into_iter().filter(|span| !span.is_empty())
    }

    /// Frames that the device can be told of by number alone are all there are.
    const fn is_low(self) -> bool {
        self.first == LOW
    }
}

/// Metadata words that the allocator of any ground takes.
pub(crate) fn metadata_words() -> usize {
    let words = [false, true].map(|split| {
        let spans = Ground { first: LOW, split }.spans();
        spans.map(|span| Config::new().metadata_words(span)).sum()
    });
    let [one, two] = words;
    // Other places and orders take no more than this.
    usize::max(one, two) * 2
}

/// What runs beside the balloon, as far as both sides agreed on it.
struct Services {
    hinting: Option<(Hinting<4>, Remembered)>,
    unused: Option<(UnusedPages<2>, Remembered)>,
    reporting: Option<Reporting<2>>,
    statistics: Option<Statistics>,
}

/// Who is called in a step, in the order of a seed.
#[derive(Clone, Copy, Debug)]
enum Part {
    Engine,
    Compactor,
    Hints,
    Reports,
    Statistics,
}

/// A guest and its device.
pub(crate) struct World<'m> {
    ground: Ground,
    zones: Source<'m>,
    engine: Box<Engine<SLOTS>>,
    shared: &'static Shared<SLOTS>,
    compactor: Compactor<Vec<u32>, 2>,
    /// None only while the device is reset.
    balloon: Option<Balloon>,
    services: Services,
    kernel: Kernel,
    device: Device,
    policy: balloon_core::Policy,
    virtio: DriverOptions,
    profile: Profile,
    parts: [Part; 5],
    /// Frames that the program uses: as a list, and as a set.
    used: Vec<u64>,
    used_map: FrameMap,
    now: Nanos,
    /// When a step said that it wants to be called.
    wake_at: Option<Nanos>,
    /// Somebody said that a step is wanted at once.
    awake: bool,
    rng: Rng,
    migrations: u64,
    trace: &'m mut Trace,
}

impl<'m> World<'m> {
    pub(crate) fn new(
        seed: u64,
        metadata: &'m mut [u64],
        shared: &'static Shared<SLOTS>,
        trace: &'m mut Trace,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed ^ 0x7269_6e67);
        let ground = Ground {
            first: if rng.chance(250) { ACROSS } else { LOW },
            split: rng.chance(400),
        };
        let chunks = rng.chance(200);
        let (profile, virtio) = agree(&mut rng, ground, chunks);
        let policy = policy(&mut rng, ground);
        let zones = zones(&mut rng, ground, metadata)?;
        let balloon = bring_up(profile, &virtio)?;
        let services = Services::new(&mut rng, &balloon, ground)?;
        let words = usize::try_from(compactor_words(ground.all()?))?;
        let mut parts = [
            Part::Compactor,
            Part::Engine,
            Part::Hints,
            Part::Reports,
            Part::Statistics,
        ];
        if rng.chance(500) {
            // Any order will do.
            for at in 1..parts.len() {
                parts.swap(at, rng.index(at + 1));
            }
        }
        trace.say(|| format!("{ground:?}, {:?}, {parts:?}", balloon.negotiated()));
        Ok(Self {
            device: Device::new(&balloon, ground.all()?, chunks, Rng::new(rng.next())),
            ground,
            zones,
            engine: Box::new(Engine::new(shared, policy)),
            shared,
            compactor: Compactor::new(vec![0; words], ground.all()?)?,
            balloon: Some(balloon),
            services,
            kernel: Kernel::default(),
            policy,
            virtio,
            profile,
            parts,
            used: Vec::new(),
            used_map: FrameMap::new(ground.all()?),
            now: Nanos::from_millis(1),
            wake_at: None,
            awake: false,
            rng,
            migrations: 0,
            trace,
        })
    }

    /// Runs the whole program of the seed.
    pub(crate) fn run(&mut self) -> Result<()> {
        for most in [400, 100] {
            for _ in 0..50 + self.rng.below(most) {
                self.event()?;
                self.check()?;
            }
            let asleep = self.rng.chance(700);
            self.calm_down(asleep)?;
        }
        Ok(())
    }

    pub(crate) fn tally(&self) -> Tally {
        let counters = self.engine.status(&self.zones).counters;
        let services = &self.services;
        let hinting = services.hinting.as_ref();
        let unused = services.unused.as_ref();
        let named = [
            hinting.map(|(hinting, _)| hinting.hinted()),
            unused.map(|(unused, _)| unused.told()),
        ];
        Tally {
            inflated: counters.inflated.get(),
            deflated: counters.deflated.get(),
            relieved: counters.relieved.get(),
            migrated: self.compactor.counters().migrated.get(),
            downgrades: counters.downgrades.into(),
            errors: counters.transport_errors.into(),
            hinted: named.into_iter().flatten().map(FrameCount::get).sum(),
            reported: services
                .reporting
                .as_ref()
                .map_or(0, |r| r.reported().get()),
            statistics: self.device.statistics,
            deaths: 0,
            migrations: self.migrations,
        }
    }

    /// One thing that happens.
    fn event(&mut self) -> Result<()> {
        if self.rng.chance(80) {
            return self.kernel_moves();
        }
        match self.rng.below(100) {
            0..25 => {
                let most = 1 << self.rng.index(7);
                let budget = Budget::requests(1 + self.rng.index(most));
                self.listen();
                self.step(budget)?;
            }
            25..45 => {
                let most = 1 + self.rng.below(6);
                self.work(most, true)?;
            }
            45..55 => self.allocate()?,
            55..62 => {
                let frames = self.rng.below(40);
                self.free(frames)?;
            }
            62..68 => {
                let target = match self.rng.below(8) {
                    0 => u64::from(u32::MAX),
                    1 => 0,
                    _ => self.rng.below(FRAMES + 100),
                };
                self.set_target(target)?;
            }
            68..74 => self.relieve()?,
            74..76 => {
                let frames = FrameCount::new(self.rng.below(600));
                self.shared.request_relief(frames);
            }
            76..78 => self.use_reserve()?,
            78..84 => {
                let most = 1 << self.rng.index(12);
                let millis = Nanos::from_millis(self.rng.below(most));
                self.now = self.now.saturating_add(millis);
            }
            84..87 => _ = self.compactor.start(),
            87 => self.compactor.stop(),
            88..90 => self.engine.quiesce(),
            90..92 => self.engine.resume(Resume::Kept),
            92 => self.reset()?,
            93..96 => self.command()?,
            96..98 => {
                for _ in 0..400 {
                    self.allocate()?;
                }
            }
            _ => self.relieve_hints(),
        }
        Ok(())
    }

    fn balloon(&mut self) -> Result<&mut Balloon> {
        self.balloon.as_mut().context("the device is being reset")
    }

    fn set_target(&mut self, frames: u64) -> Result<()> {
        self.trace.say(|| format!("target {frames}"));
        self.device.target = u32::try_from(frames)?;
        self.device.apply(self.balloon.as_mut());
        Ok(())
    }

    /// The device opens, ends or stops a round of hints.
    fn command(&mut self) -> Result<()> {
        if self.services.hinting.is_some() {
            let command = match self.rng.below(4) {
                0 => 0,
                1 => 1,
                _ => self.device.next_command(),
            };
            let balloon = self.balloon()?;
            balloon.queues_mut().device_mut().set_hint_command(command);
        }
        Ok(())
    }

    /// The device works on some requests.
    fn work(&mut self, most: u64, odd: bool) -> Result<()> {
        let balloon = self.balloon.as_mut().context("the device is being reset")?;
        self.device.work(balloon, &self.used_map, most, odd)
    }

    /// Perhaps the device does something between two calls, and is heard of.
    fn inject(&mut self) -> Result<()> {
        if self.rng.chance(300) {
            self.work(2, false)?;
            self.listen();
        }
        Ok(())
    }

    /// Takes an interrupt, if one came; whether one did.
    fn listen(&mut self) -> bool {
        let came = self.device.interrupted(self.balloon.as_mut());
        let heard = came && self.virtio.interrupts();
        if heard {
            self.shared.signal().config_changed();
            self.shared.signal().used();
        }
        heard
    }

    /// The guest's turn: everybody once. Whether somebody has more to do.
    fn step(&mut self, budget: Budget) -> Result<bool> {
        // What comes from here on wakes the guest again.
        let _ = self.shared.signal().take();
        self.awake = false;
        let now = self.now;
        let (mut more, mut wakes) = (false, Vec::new());
        for part in self.parts {
            self.inject()?;
            let balloon = self.balloon.as_mut().context("the device is being reset")?;
            let (zones, shared) = (&mut self.zones, self.shared);
            match part {
                Part::Engine => {
                    let step = self.engine.step(balloon, zones, now, budget);
                    more |= step.more;
                    wakes.extend(step.wake_at);
                }
                Part::Compactor => {
                    let engine = &mut self.engine;
                    let step = self.compactor.step(engine, balloon, zones, now, budget);
                    more |= step.more;
                    wakes.extend(step.wake_at);
                }
                Part::Hints => {
                    if let Some((hinting, held)) = &mut self.services.hinting {
                        let step = hinting.step(balloon, shared, zones, held, now)?;
                        more |= step.more;
                        wakes.extend(step.wake_at);
                    }
                    if let Some((unused, held)) = &mut self.services.unused {
                        let step = unused.step(balloon, shared, zones, held, now)?;
                        more |= step.more;
                        wakes.extend(step.wake_at);
                        let soon = now.saturating_add(Nanos::from_millis(5));
                        let looks = !self.virtio.interrupts();
                        wakes.extend(looks.then_some(soon));
                    }
                }
                Part::Reports => {
                    if let Some(reporting) = &mut self.services.reporting {
                        let step = reporting.step(balloon, shared, zones, now)?;
                        more |= step.more;
                        wakes.extend(step.wake_at);
                    }
                }
                Part::Statistics => {
                    if let Some(statistics) = &mut self.services.statistics {
                        let step = statistics.step(balloon, shared, now, |_| 1)?;
                        wakes.extend(step.wake_at);
                    }
                }
            }
        }
        self.inject()?;
        self.wake_at = wakes.into_iter().min();
        let more = more || self.shared.signal().is_set();
        self.trace.say(|| {
            let status = self.engine.status(&self.zones);
            let (size, up, down) = (status.size, status.inflating, status.deflating);
            let wake_at = self.wake_at.map(Nanos::get);
            format!(
                "step: {:?}, size {size}, +{up} -{down}, more {more}, wake {wake_at:?}",
                status.progress
            )
        });
        Ok(more)
    }

    /// Steps until nobody has more to do.
    fn step_all(&mut self) -> Result<()> {
        for _ in 0..20_000 {
            let budget = Budget::requests(1 + self.rng.index(40));
            if !self.step(budget)? {
                return Ok(());
            }
        }
        bail!(
            "there is always more: {:?}",
            self.engine.status(&self.zones)
        )
    }

    /// The program takes a block and uses its frames.
    fn allocate(&mut self) -> Result<()> {
        let order = u8::try_from(self.rng.below(4))?;
        let order = buddy_alloc::Order::new(order).context("an order")?;
        let Ok(block) = self.zones.allocate(order, Preference::Populated) else {
            return Ok(());
        };
        let start = block.get();
        for frame in start..start + order.frames() {
            ensure!(
                !self.used_map.set(Pfn::new(frame), true),
                "frame {frame:#x} has two owners"
            );
            ensure!(
                !self.device.must_tell || !self.device.told.contains(Pfn::new(frame)),
                "frame {frame:#x} is used before the device was told"
            );
            self.used.push(frame);
        }
        let zone = self.zones.zone_of(block).context("a zone of its own")?;
        if order > buddy_alloc::Order::FRAME {
            zone.split_block(block, order, buddy_alloc::Order::FRAME)?;
        }
        Ok(())
    }

    fn free(&mut self, frames: u64) -> Result<()> {
        for _ in 0..frames {
            if self.used.is_empty() {
                break;
            }
            let frame = self.used.swap_remove(self.rng.index(self.used.len()));
            self.used_map.set(Pfn::new(frame), false);
            self.zones
                .free(Frame::new(frame), buddy_alloc::Order::FRAME)?;
        }
        Ok(())
    }

    fn relieve(&mut self) -> Result<()> {
        let order = u8::try_from(self.rng.below(10)).ok().and_then(Order::new);
        let order = order.unwrap_or(Order::FRAME);
        let need = match self.rng.below(3) {
            0 => Need::run(FrameCount::new(1 + self.rng.below(600)), order),
            1 => Need::frames(FrameCount::MAX),
            _ => Need::frames(FrameCount::new(self.rng.below(700))),
        };
        let before = self.zones.free_frames().get();
        let balloon = self.balloon.as_mut().context("the device is being reset")?;
        let awake = &mut self.awake;
        let relieved = self
            .engine
            .relieve(balloon, &mut self.zones, need, self.now)
            .wake(|| *awake = true);
        self.trace.say(|| format!("{need:?}: {relieved:?}"));
        ensure!(
            !self.awake || self.shared.signal().is_set(),
            "relief woke the worker, which finds no news to step for"
        );
        let came = self.zones.free_frames().get() - before;
        ensure!(
            came == relieved.usable.get(),
            "{came} frames came, and relief says {relieved:?}"
        );
        Ok(())
    }

    fn use_reserve(&mut self) -> Result<()> {
        let Some(frame) = self.shared.take_emergency() else {
            return Ok(());
        };
        ensure!(
            !self.used_map.contains(frame.start()),
            "frame {frame:?} of the reserve is in use"
        );
        let first = Frame::new(frame.start().get());
        self.zones.free(first, buddy_alloc::Order::FRAME)?;
        Ok(())
    }

    fn zones_put(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        balloon_core::FrameSource::put(&mut self.zones, range, balloon_core::Backing::Unknown)
    }

    fn relieve_hints(&mut self) {
        if let Some((hinting, held)) = &mut self.services.hinting {
            hinting.relieve(&mut self.zones, held, FrameCount::new(50));
        }
    }

    /// The device is reset, or another one takes its place; nobody asked the guest.
    fn reset(&mut self) -> Result<()> {
        self.trace.say(|| "device reset".into());
        let Some(balloon) = self.balloon.take() else {
            bail!("the device is being reset")
        };
        let Ok((device, memory)) = balloon.reset(&mut NoDelay) else {
            bail!("the device does not let itself be reset")
        };
        let balloon = if self.rng.chance(300) {
            bring_up(self.profile, &self.virtio)?
        } else {
            match Balloon::bring_up(device, memory, &self.virtio, &mut NoDelay) {
                Ok(balloon) => balloon,
                Err(refused) => bail!("{}", refused.error),
            }
        };
        self.balloon = Some(balloon);
        self.device.reset();
        self.device.apply(self.balloon.as_mut());
        self.engine.resume(Resume::Reset);
        let zones = &mut self.zones;
        if let Some((hinting, held)) = &mut self.services.hinting {
            hinting.reset(zones, held);
        }
        if let Some((unused, held)) = &mut self.services.unused {
            unused.reset(zones, held);
        }
        if let Some(reporting) = &mut self.services.reporting {
            reporting.reset(zones);
        }
        if let Some(statistics) = &mut self.services.statistics {
            statistics.reset();
        }
        Ok(())
    }

    /// All frames of the allocator are somebody's.
    fn check(&self) -> Result<()> {
        let (mut used, mut known) = (0, 0);
        for zone in self.zones.iter() {
            let stats = zone.stats();
            used += stats.used.get();
            known += [
                stats.free,
                stats.used,
                stats.in_hand,
                stats.ballooned,
                stats.isolated,
            ]
            .map(buddy_alloc::FrameCount::get)
            .iter()
            .sum::<u64>();
        }
        ensure!(
            used == self.used.len() as u64 + self.shared.emergency_frames().get()
                && known == FRAMES,
            "the allocator knows {known} frames, {used} of them in use; the program uses {}, {} \
             are in the reserve",
            self.used.len(),
            self.shared.emergency_frames()
        );
        Ok(())
    }

    fn held(&self) -> u64 {
        let held = |via| balloon_core::Ledger::held(&self.zones, via).get();
        Via::ALL.map(held).iter().sum()
    }
}
