//! Guests that boot: a scrubber on some virtual CPUs, data, and a balloon that is early, late,
//! absent, or some pages short.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Content, World};
use crate::{Budget, Census, FrameCount, Gfn, Leave, Level, Order, ReleaseError, Stats};

/// What the guest does with all its memory at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrub {
    /// Nothing.
    Nothing,
    /// Fills it with a word, each virtual CPU a share of its own.
    Word(u64),
}

/// What the balloon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balloon {
    /// Inflates before the scrubber starts.
    Early,
    /// Inflates after the scrubber.
    Late,
    /// Inflates late and stops this many pages short.
    Short(u64),
    /// Never comes.
    Absent,
}

/// A guest's boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The scrubber.
    pub scrub: Scrub,
    /// The balloon.
    pub balloon: Balloon,
    /// Order of the runs the balloon picks, all over the map.
    pub extent: Order,
    /// Order of the pieces in which it gives them, at most `extent`.
    pub piece: Order,
    /// Pages with data at the end.
    pub data: u64,
    /// In thousandths: data pages that are written during the scrubbing.
    pub early_data: u64,
    /// For everything random.
    pub seed: u64,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The guest got every page it touched.
    pub survived: bool,
    /// The worst level of alarm before the end.
    pub worst: Level,
    /// The alarm had been at `Losing` or worse before the first touch that failed.
    pub warned: bool,
    /// Leaves at the end.
    pub census: Census,
    /// Counters at the end.
    pub stats: Stats,
}

struct Run<'a> {
    world: &'a mut World,
    seed: u64,
    clock: u64,
    worst: Level,
    dead: bool,
    warned: bool,
}

impl Run<'_> {
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below.max(1)
    }

    /// One page access takes a microsecond of the guest's time.
    fn write(&mut self, vcpu: usize, gfn: u64, content: Content) {
        if self.dead {
            return;
        }
        self.clock += 1;
        if self.clock.is_multiple_of(512) {
            self.observe();
        }
        if !self.world.write(vcpu, Gfn::new(gfn), content) {
            self.warned = self.worst >= Level::Losing;
            self.dead = true;
        }
    }

    fn observe(&mut self) {
        let now = Duration::from_micros(self.clock);
        let level = self.world.with(|pod, sim| pod.observe(sim, now)).level;
        self.worst = self.worst.max(level);
    }
}

impl Boot {
    /// Boots the guest of a built world; frames below `reserved` are never given away.
    pub fn run(&self, world: &mut World) -> Outcome {
        let max = world.with(|pod, _| pod.config().max.get());
        let target = world.stats().target.map_or(max, FrameCount::get);
        let mut run = Run {
            world,
            seed: self.seed | 1,
            clock: 0,
            worst: Level::Safe,
            dead: false,
            warned: false,
        };
        // The balloon takes runs all over the map; the rest is what the guest uses.
        let size = self.extent.frames().get();
        let mut runs: Vec<u64> = (0..max / size).collect();
        for i in (1..runs.len()).rev() {
            let j = run.random(i as u64 + 1) as usize;
            runs.swap(i, j);
        }
        let wanted = match self.balloon {
            Balloon::Absent => 0,
            Balloon::Short(k) => (max - target).saturating_sub(k),
            Balloon::Early | Balloon::Late => max - target,
        };
        let given = runs.split_off(runs.len() - (wanted / size) as usize);
        // Without a balloon the guest uses whatever it likes.
        let mut data = Vec::new();
        while (data.len() as u64) < self.data {
            let pick = run.random(runs.len() as u64) as usize;
            let within = run.random(size);
            data.push(runs[pick] * size + within);
        }
        let early = data.split_off(data.len() - (self.data * self.early_data / 1000) as usize);
        if self.balloon == Balloon::Early {
            inflate(&mut run, &given, self.extent, self.piece);
        }
        if let Scrub::Word(word) = self.scrub {
            scrub(
                &mut run,
                max,
                word,
                &early,
                self.balloon == Balloon::Early,
                &given,
                size,
            );
        }
        if self.balloon != Balloon::Early {
            inflate(&mut run, &given, self.extent, self.piece);
        }
        for (i, gfn) in data.into_iter().enumerate() {
            let vcpu = i % run.world.vcpus();
            run.write(vcpu, gfn, Content::Data(gfn));
        }
        run.observe();
        let (survived, worst, warned) = (!run.dead, run.worst, run.warned);
        let census = run.world.with(|pod, sim| pod.audit(sim));
        let census = census.unwrap_or_else(|e| panic!("{e}"));
        Outcome {
            survived,
            worst,
            warned,
            census,
            stats: world.stats(),
        }
    }
}

fn scrub(
    run: &mut Run<'_>,
    max: u64,
    word: u64,
    early: &[u64],
    ballooned: bool,
    given: &[u64],
    size: u64,
) {
    let mut gone = super::Map::new(max as usize);
    if ballooned {
        for g in given {
            gone.put(g * size, size, true);
        }
    }
    let vcpus = run.world.vcpus() as u64;
    let share = max.div_ceil(vcpus);
    let mut data = early.iter();
    let every = (max / (early.len() as u64).max(1)).max(1);
    let mut kept = super::Map::new(max as usize);
    for step in 0..share {
        for vcpu in 0..vcpus {
            let gfn = vcpu * share + step;
            if gfn >= max || gone.has(gfn) || kept.has(gfn) {
                continue;
            }
            run.write(vcpu as usize, gfn, Content::Filled(word));
            // Data follows the scrubber: it lands on pages that are done.
            if (step * vcpus + vcpu).is_multiple_of(every)
                && let Some(at) = data.next().copied().filter(|g| !gone.has(*g))
            {
                kept.put(at, 1, true);
                run.write(vcpu as usize, at, Content::Data(at));
            }
        }
    }
}

fn inflate(run: &mut Run<'_>, given: &[u64], extent: Order, piece: Order) {
    for start in given {
        if run.dead {
            return;
        }
        let gfn = Gfn::new(start * extent.frames().get());
        let (mut done, total) = (0, extent.frames().get());
        while done < total {
            let left = FrameCount::new((total - done).min(piece.frames().get()));
            let answer = run.world.with(|pod, sim| {
                pod.release(
                    sim,
                    gfn.plus(done),
                    left,
                    Leave::Hole,
                    &mut Budget::default(),
                )
            });
            match answer {
                Ok(released) if released.progress.complete => done += left.get(),
                Ok(released) => done += released.progress.done.get().max(1),
                Err(ReleaseError::Dying) => return,
                Err(e) => panic!("{e}"),
            }
        }
        run.clock += total;
        if start % 16 == 0 {
            run.observe();
        }
    }
}
