//! A reservation between a guest and a hypervisor that does what real ones do.
//!
//! Random requests in worlds of many kinds: both names for a hole, holes that appear,
//! populate-on-demand, policies that forbid looks or moves, tables without room, a
//! toolstack that changes the reservation by itself, refusals and short counts; and the
//! guest is saved in one kind and restored in another. After each request no frame that
//! the guest uses is a hole, none that the host has is populated, nothing is populated
//! twice, and nothing that the guest wrote has left.
//!
//! Each run has the same few worlds of each kind. For more:
//! `XEN_WORLDS=10000 cargo test --release -p transport-xen --features test-utils --test reservation`.

// Safe code all the way, and minutes long there.
#![cfg(not(miri))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

extern crate alloc;

use alloc::collections::BTreeSet;
use core::num::NonZero;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn, Run};
use transport_xen::testing::{FakeClear, FakeP2m, FakeXen, Fault, Kind};
use transport_xen::{Errno, FrameMap, Moved, Reservation, Stopped, Translated};

const BASE: u64 = 512;
const FRAMES: u64 = 3 * 512;
/// Requests of a world.
const REQUESTS: usize = 60;
/// Hypercalls of one request: what ends it early, the extent it may be in, and looks
/// that are refused.
const CALLS: u64 = 12_000;

/// A kind of world.
#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    /// What the move of a hole is called.
    older: bool,
    /// Frames go without the guest's doing.
    holes: bool,
    promised: bool,
    /// Looks are forbidden.
    blind: bool,
    /// Tables may run out of room.
    tables: bool,
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }
}

fn memory() -> FrameRange {
    FrameRange::new(Pfn::new(BASE), FrameCount::new(FRAMES)).unwrap()
}

struct World<F> {
    rng: Rng,
    traits: Traits,
    xen: Reservation<FakeXen, F, FakeClear>,
    /// Faults in a thousand hypercalls.
    faults: u64,
    /// The toolstack changes the reservation, too.
    charges: bool,
    /// What the host was not seen to have taken it may have left.
    doubt: bool,
    mine: BTreeSet<u64>,
    theirs: BTreeSet<u64>,
    /// Gone without a request: to be found when they are given.
    punched: BTreeSet<u64>,
    /// How many ever were.
    punches: u64,
    written: BTreeSet<u64>,
    /// Both sides of a migration that nobody shows.
    undecided: Option<(Vec<u64>, Vec<u64>)>,
}

impl<F: FrameMap> World<F> {
    fn new(seed: u64, traits: Traits, mut fake: FakeXen, map: F) -> Self {
        fake.hole = match traits.older {
            true => Errno::Invalid,
            false => Errno::Access,
        };
        fake.looks = !traits.blind;
        fake.moves = !(seed / 11).is_multiple_of(4);
        // More than the host is ever asked for, or what the domain began with and a bit.
        fake.limit = match seed % 3 {
            1 => FrameCount::new(FRAMES + seed / 3 % 100),
            _ => FrameCount::new(1000 * FRAMES),
        };
        if traits.promised {
            // The last third, half of it ready; in some worlds the cache is short of
            // more than the balloon ever gives.
            let promised = FrameRange::new(Pfn::new(BASE + 1024), FrameCount::new(512)).unwrap();
            fake.promise(promised, FrameCount::new(256));
            if (seed / 7).is_multiple_of(2) {
                fake.promised += 4000;
            }
        }
        let clear = FakeClear::of(&fake);
        let faults = [0, 5, 60][usize::try_from(seed % 3).unwrap()];
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            traits,
            xen: Reservation::new(fake, map, clear),
            faults,
            charges: (seed / 5).is_multiple_of(2),
            doubt: false,
            mine: memory().frames().map(Pfn::get).collect(),
            theirs: BTreeSet::new(),
            punched: BTreeSet::new(),
            punches: 0,
            written: BTreeSet::new(),
            undecided: None,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for n in 0..REQUESTS {
            self.happen();
            let calls = self.xen.counters().hypercalls;
            let what = self.request();
            let calls = self.xen.counters().hypercalls - calls;
            self.check(calls)
                .map_err(|error| format!("request {n}, {what}: {error}"))?;
        }
        self.xen.memory_mut().faults.clear();
        if self.undecided.is_some() && !self.decide() {
            return Err("a migration stays undecided".to_owned());
        }
        Ok(())
    }

    /// Whether no frame is to be seen: what may be gone counts as gone.
    const fn is_blind(&self) -> bool {
        F::TRANSLATED && (!matches!(F::MIGRATION, Migration::Move) || self.traits.blind)
    }

    /// What happens before a request.
    fn happen(&mut self) {
        const ERRNOS: [u16; 11] = [1, 11, 12, 13, 14, 16, 22, 28, 38, 95, 4095];
        self.doubt |= self.is_blind() && self.faults > 0;
        let Self {
            rng,
            faults,
            charges,
            traits,
            ..
        } = self;
        let fault = |_| match rng.below(1000) {
            n if n < *faults => Fault::Refuse(Errno::from_number(ERRNOS[rng.index(11)])),
            n if n < 2 * *faults => Fault::Extents(rng.index(70)),
            n if n < 3 * *faults => Fault::Frames(rng.below(1500)),
            n if traits.tables && n < 4 * *faults => Fault::NoRoom,
            // Never by as much as an extent has.
            n if *charges && n < 6 * *faults => Fault::Charge((rng.below(9) as i64 - 4) * 1000),
            _ => Fault::None,
        };
        let faults = (0..400).map(fault).collect();
        let tables = match self.traits.tables && rng.below(4) == 0 {
            true => rng.below(40),
            false => u64::MAX,
        };
        let (punch, write) = (BASE + rng.below(FRAMES), BASE + rng.below(FRAMES));
        let punches = self.traits.holes && rng.below(10) == 0 && self.mine.contains(&punch);
        let writes = 1 + rng.below(200);
        let xen = self.xen.memory_mut();
        (xen.faults, xen.tables) = (faults, tables);
        for pfn in write..write + writes {
            if self.mine.contains(&pfn) && xen.is_populated(Pfn::new(pfn)) {
                xen.write(Pfn::new(pfn));
                self.written.insert(pfn);
            }
        }
        if punches && !self.written.contains(&punch) {
            xen.punch(Pfn::new(punch));
            self.punched.insert(punch);
            self.punches += 1;
        }
    }

    fn request(&mut self) -> String {
        if self.undecided.is_some() {
            self.decide();
        }
        match self.rng.below(31) {
            30 => self.restore(),
            0..10 => {
                let frames = self.pick(true);
                let moved = self.xen.inflate(&self.runs(&frames));
                self.book(&[], done(&frames, moved));
                format!("give {} -> {moved:?}", frames.len())
            }
            10..20 => {
                let frames = self.pick(false);
                let moved = self.xen.deflate(&self.runs(&frames));
                self.book(done(&frames, moved), &[]);
                format!("take {} -> {moved:?}", frames.len())
            }
            _ => {
                let (from, mut to) = (self.pick(false), self.pick(true));
                // No kernel moves a promise that Xen may have no memory for.
                let xen = self.xen.memory_mut();
                to.retain(|&pfn| xen.promised == 0 || !xen.is_promised(Pfn::new(pfn)));
                let pairs = from.len().min(to.len());
                let (from, to) = (&from[..pairs], &to[..pairs]);
                let moved = self.xen.migrate(&self.runs(from), &self.runs(to));
                self.migrated(from, to, moved);
                format!("migrate {pairs} -> {moved:?}")
            }
        }
    }

    /// Saves a guest that has no migration under way, and restores it elsewhere.
    fn restore(&mut self) -> String {
        if !F::TRANSLATED || self.undecided.is_some() {
            return "not restored".to_owned();
        }
        let Self { rng, traits, .. } = self;
        let xen = self.xen.memory_mut();
        xen.hole = [Errno::Access, Errno::Invalid][rng.index(2)];
        (xen.looks, xen.moves) = (rng.below(2) == 0, rng.below(4) != 0);
        xen.largest = Order::new([9, 4, 0][rng.index(3)]).unwrap();
        xen.superpages_cost = rng.below(2) == 0;
        // The target of then, which it has reached.
        let spare = [FrameCount::new(rng.below(100)), FrameCount::new(1 << 20)];
        xen.limit = xen.owned().saturating_add(spare[rng.index(2)]);
        traits.blind = !xen.looks;
        self.xen.restored();
        format!("restored {traits:?}")
    }

    /// Books what is known of a migration.
    fn migrated(&mut self, from: &[u64], to: &[u64], moved: Moved) {
        let pairs = usize::try_from(moved.frames.get()).unwrap();
        let torn = usize::from(moved.stopped == Some(Stopped::Torn));
        self.book(&from[..pairs], &to[..pairs + torn]);
        if moved.stopped == Some(Stopped::Undecided) {
            let (from, to) = (&from[pairs..], &to[pairs..]);
            for pfn in from.iter().chain(to) {
                self.mine.remove(pfn);
                self.theirs.remove(pfn);
            }
            self.undecided = Some((from.to_vec(), to.to_vec()));
        }
    }

    /// Whether Xen shows how far the migration got; the rest is as it was.
    fn decide(&mut self) -> bool {
        let Some(moved) = self.xen.decide() else {
            return false;
        };
        let (from, to) = self.undecided.take().unwrap();
        self.theirs.extend(&from);
        self.mine.extend(&to);
        self.migrated(&from, &to, moved);
        true
    }

    fn book(&mut self, came: &[u64], went: &[u64]) {
        for pfn in came {
            self.theirs.remove(pfn);
            self.mine.insert(*pfn);
            // By move with what was in another frame.
            if F::MIGRATION == Migration::Move && !went.is_empty() {
                self.written.insert(*pfn);
            }
        }
        for pfn in went {
            self.mine.remove(pfn);
            self.punched.remove(pfn);
            self.written.remove(pfn);
            self.theirs.insert(*pfn);
        }
    }

    /// Some frames of one side, often from the start of a superpage on.
    fn pick(&mut self, mine: bool) -> Vec<u64> {
        let (count, start) = (1 + self.rng.index(700), self.rng.below(FRAMES));
        let start = match self.rng.below(2) {
            0 => start / 512 * 512,
            _ => start,
        };
        let side = if mine { &self.mine } else { &self.theirs };
        side.range(BASE + start..).take(count).copied().collect()
    }

    /// As runs, apart where the guest wrote.
    fn runs(&self, frames: &[u64]) -> Vec<Run> {
        let alike =
            |a: &u64, b: &u64| a + 1 == *b && self.written.contains(a) == self.written.contains(b);
        let runs = frames.chunk_by(alike).map(|frames| {
            let count = FrameCount::new(frames.len() as u64);
            let run = Run::new(FrameRange::new(Pfn::new(frames[0]), count).unwrap()).unwrap();
            match self.written.contains(&frames[0]) {
                true => run,
                false => run.untouched(),
            }
        });
        runs.collect()
    }

    fn check(&mut self, calls: u64) -> Result<(), String> {
        let (doubt, charges) = (self.doubt, self.charges);
        let lost = self.xen.counters().lost;
        let xen = self.xen.memory_mut();
        let bad = |breach: &&String| !doubt || !breach.contains(" over ");
        if let Some(breach) = xen.breaches.iter().find(bad) {
            return Err(breach.clone());
        }
        if calls > CALLS {
            return Err(format!("{calls} hypercalls"));
        }
        // One that is lost while the toolstack changes the reservation is not seen, and a
        // hole whose move is refused for want of memory looks like one.
        let most = xen.lost + self.punches;
        if lost > most || (lost < xen.lost && !charges) {
            return Err(format!("{} frames are lost, {lost} counted", xen.lost));
        }
        let place = |pfn: u64| usize::try_from(pfn - BASE).unwrap();
        let mut behind = vec![false; place(BASE + FRAMES)];
        for pfn in xen.populated() {
            behind[place(pfn.get())] = true;
        }
        let empty = |pfn: &u64| !behind[place(*pfn)] && !xen.is_promised(Pfn::new(*pfn));
        let mut holes = self.mine.iter().filter(|&pfn| empty(pfn));
        if let Some(pfn) = holes.find(|pfn| !self.punched.contains(pfn)) {
            return Err(format!("{pfn:#x} is used, and a hole"));
        }
        match self.theirs.iter().find(|&pfn| !empty(pfn)) {
            Some(pfn) if !doubt => Err(format!("{pfn:#x} is the host's, and populated")),
            _ => Ok(()),
        }
    }
}

/// The frames that a request moved.
fn done(frames: &[u64], moved: Moved) -> &[u64] {
    &frames[..usize::try_from(moved.frames.get()).unwrap()]
}

fn live(seed: u64, kind: Kind, traits: Traits) -> Result<(), String> {
    let mut fake = FakeXen::new(kind, memory());
    let largest = [9, 9, 4, 0][usize::try_from(seed / 3 % 4).unwrap()];
    fake.largest = Order::new(largest).unwrap();
    match kind {
        Kind::Pvh => World::new(seed, traits, fake, Translated::<true>).live(),
        Kind::Arm => World::new(seed, traits, fake, Translated::<false>).live(),
        Kind::Pv => {
            let p2m = FakeP2m::of(&fake);
            World::new(seed, traits, fake, p2m).live()
        }
    }
}

#[test]
fn no_frame_is_lost_or_had_by_two() {
    let mut kinds = Vec::new();
    let all = [false, true];
    for (holes, promised, blind, older) in all.into_iter().flat_map(|holes| {
        all.into_iter().flat_map(move |promised| {
            all.into_iter()
                .flat_map(move |blind| all.map(|older| (holes, promised, blind, older)))
        })
    }) {
        let traits = Traits {
            older,
            holes,
            promised,
            blind,
            tables: false,
        };
        kinds.push((Kind::Pvh, traits));
        let starved = Traits {
            tables: true,
            ..traits
        };
        kinds.extend((!blind).then_some((Kind::Pvh, starved)));
    }
    for (holes, tables) in all
        .into_iter()
        .flat_map(|holes| all.map(|tables| (holes, tables)))
    {
        let traits = Traits {
            holes,
            tables,
            ..Traits::default()
        };
        kinds.push((Kind::Arm, traits));
    }
    kinds.push((Kind::Pv, Traits::default()));
    let asked = std::env::var("XEN_WORLDS").ok();
    let worlds = asked.and_then(|count| count.parse().ok()).unwrap_or(4u64);
    let (next, bad) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&(kind, traits)) = kinds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let failed = (1..=worlds).filter_map(|seed| {
                let error = live(seed, kind, traits).err()?;
                Some(format!("{kind:?} {traits:?}, seed {seed}: {error}"))
            });
            let failed: Vec<String> = failed.collect();
            bad.lock().unwrap().extend(failed);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut bad = bad.into_inner().unwrap();
    bad.sort();
    let some = bad.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(bad.is_empty(), "{} bad worlds\n{some}", bad.len());
}
