//! The decorators over a fake host: an engine gets its way through faults,
//! a recording says it again.

// Safe code alone, and whole programs: hours in an interpreter.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::{
    FakeHost, FakeMigrateHost, FakeSource, FaultInjector, Injection, Odds, Recorder, Recording,
    Replay, Said, check_ledger_laws, check_migrate_laws, check_transport_laws,
};
use balloon_core::{
    BitmapLedger, Blocked, Budget, Engine, FrameCount, FrameRange, Ledger, Migration, Nanos, Pfn,
    Policy, Progress, Shared, Transport, TransportErrorKind,
};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

/// An engine with an allocator that knows every frame.
struct Guest {
    shared: &'static Shared<16>,
    engine: Engine<16>,
    source: FakeSource,
    now: Nanos,
}

impl Guest {
    fn new() -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        Self {
            shared,
            engine: Engine::new(shared, Policy::DEFAULT),
            source: FakeSource::new(range(0x100, 1024)).scattered(),
            now: Nanos::ZERO,
        }
    }

    fn step(&mut self, transport: &mut impl Transport) -> Progress {
        self.engine
            .step(transport, &mut self.source, self.now, Budget::requests(4));
        self.source.check(self.shared.emergency_frames());
        self.engine.status(&self.source).progress
    }

    /// Steps by the clock until the target is reached.
    fn settle(&mut self, transport: &mut impl Transport) {
        self.shared.signal().config_changed();
        for _ in 0..10_000 {
            self.now = self.now.saturating_add(Nanos::from_millis(100));
            if self.step(transport) == Progress::Reached {
                return;
            }
        }
        panic!("never reached: {:?}", self.engine.status(&self.source));
    }
}

#[test]
fn the_fake_host_keeps_the_laws() {
    for mut host in [FakeHost::plain(), FakeHost::bulk()] {
        check_transport_laws(&mut host, range(0x1000, 512), |_| {});
        assert!(host.breaches.is_empty(), "{:?}", host.breaches);
    }
}

#[test]
fn decorators_keep_the_laws_of_what_they_decorate() {
    let mut injector = FaultInjector::new(FakeMigrateHost::new(Migration::Move));
    check_transport_laws(&mut injector, range(0x1000, 512), |_| {});
    assert_eq!(injector.injected(), 0);
    let mut recorder = Recorder::new(FakeMigrateHost::new(Migration::Move));
    check_transport_laws(&mut recorder, range(0x1000, 512), |_| {});
    let mut replay = Replay::new(FakeMigrateHost::new(Migration::Move), Recording::default());
    check_transport_laws(&mut replay, range(0x1000, 512), |_| {});
}

#[test]
fn every_way_to_migrate_keeps_the_law() {
    for way in [
        Migration::Exchange,
        Migration::Move,
        Migration::InflateFirst,
    ] {
        for delayed in [false, true] {
            let mut migrate_host = FakeMigrateHost::new(way);
            migrate_host.delayed = delayed;
            check_migrate_laws(&mut migrate_host, range(0, 512), |_| {});
            assert!(migrate_host.breaches.is_empty());
        }
    }
}

#[test]
#[should_panic(expected = "nothing stands in the way")]
fn a_half_migrated_batch_breaks_the_law() {
    let mut migrate_host = FakeMigrateHost::new(Migration::Exchange);
    migrate_host.faults.extend([
        balloon_core::testing::Fault::None,
        balloon_core::testing::Fault::Partly(FrameCount::new(3)),
    ]);
    check_migrate_laws(&mut migrate_host, range(0, 512), |_| {});
}

/// A ledger that shows frames it does not hold.
struct Blind(BitmapLedger<Vec<u64>>);

impl Ledger for Blind {
    fn store(&mut self, range: FrameRange, via: balloon_core::Via) -> Result<(), FrameRange> {
        self.0.store(range, via)
    }

    fn recall(
        &mut self,
        via: balloon_core::Via,
        unit: balloon_core::Order,
        out: &mut balloon_core::RangeSink<'_>,
    ) -> balloon_core::Shortage {
        self.0.recall(via, unit, out)
    }

    fn held(&self, via: balloon_core::Via) -> FrameCount {
        self.0.held(via)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, balloon_core::Via)> {
        self.0.next_held(within)
    }
}

#[test]
#[should_panic(expected = "is shown")]
fn a_ledger_that_shows_what_it_does_not_yield_breaks_the_law() {
    let words = usize::try_from(BitmapLedger::words(FrameCount::new(64))).unwrap();
    let memory = range(0, 64);
    let ledger = BitmapLedger::new(vec![0; words], &[memory]).unwrap();
    check_ledger_laws(&mut Blind(ledger), memory);
}

#[test]
fn scripted_faults_come_in_order_and_then_end() {
    let mut guest = Guest::new();
    let mut host = FaultInjector::new(FakeHost::plain());
    host.inner_mut().target = FrameCount::new(700);
    host.reads
        .extend([Injection::Fail(TransportErrorKind::Unstable); 3]);
    host.submits.extend([
        Injection::Pass,
        Injection::Fail(TransportErrorKind::Refused),
        Injection::Fail(TransportErrorKind::Full),
    ]);
    host.writes
        .push_back(Injection::Fail(TransportErrorKind::Refused));
    guest.settle(&mut host);
    let scripts = [&host.reads, &host.submits, &host.writes];
    assert!(
        scripts.iter().all(|script| script.is_empty()),
        "{scripts:?}"
    );
    assert_eq!(host.injected(), 3 + 2 + 1);
    assert_eq!(host.inner().owned(), FrameCount::new(700));
    assert!(
        host.inner().breaches.is_empty(),
        "{:?}",
        host.inner().breaches
    );
    let injected = host.injected();
    host.inner_mut().target = FrameCount::ZERO;
    guest.settle(&mut host);
    assert_eq!(host.injected(), injected, "the scripts are over");
}

#[test]
fn a_kick_is_lost_or_repeated() {
    let mut host = FaultInjector::new(FakeHost::plain());
    host.kicks.extend([Injection::Lose, Injection::Repeat]);
    let kicks = [0, 2, 3].map(|seen| {
        assert_eq!(host.kick(1), Ok(false));
        (host.inner().kicks, seen)
    });
    assert!(kicks.iter().all(|(kicks, seen)| kicks == seen), "{kicks:?}");
    assert_eq!(host.injected(), 2);
}

#[test]
fn a_broken_transport_is_given_up() {
    let mut guest = Guest::new();
    let mut host = FaultInjector::new(FakeHost::plain());
    host.inner_mut().target = FrameCount::new(10);
    host.submits
        .push_back(Injection::Fail(TransportErrorKind::Broken));
    guest.step(&mut host);
    guest.now = Nanos::from_secs(100);
    assert_eq!(
        guest.step(&mut host),
        Progress::Blocked(Blocked::DeviceBroken)
    );
    assert_eq!(host.inner().requests(), 0);
}

#[test]
fn seeded_faults_keep_no_engine_from_its_target_and_repeat_by_seed() {
    let odds = Odds {
        refused: 300,
        // A kick that got lost is made again once, not for ever.
        lost_kicks: 0,
        repeated_kicks: 200,
        unstable_reads: 300,
        failed_writes: 300,
        failed_kicks: 200,
    };
    let run = |seed| {
        let mut guest = Guest::new();
        let mut host = FaultInjector::seeded(FakeHost::bulk(), seed, odds);
        for target in [700, 20, 1000, 0] {
            host.inner_mut().target = FrameCount::new(target);
            guest.settle(&mut host);
            assert!(
                host.inner().breaches.is_empty(),
                "{:?}",
                host.inner().breaches
            );
        }
        assert!(host.injected() > 0);
        (
            host.injected(),
            guest.now,
            guest.engine.status(&guest.source),
        )
    };
    for seed in 0..8 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}

#[test]
fn a_recording_replayed_to_another_guest_ends_in_the_same_sizes() {
    let mut guest = Guest::new();
    let mut host = Recorder::new(FakeHost::plain());
    let seconds = |seconds| Nanos::from_secs(seconds);
    for (second, target) in [(1, 900), (20, 30), (40, 1000), (60, 512)] {
        host.inner_mut().target = FrameCount::new(target);
        guest.shared.signal().config_changed();
        for tick in 0..19 {
            guest.now = seconds(second + tick);
            host.now = guest.now;
            guest.step(&mut host);
        }
    }
    let recording = host.into_recording();
    assert_eq!(recording.targets().count(), 4);
    assert_eq!(
        recording.target_at(seconds(45)),
        Some(FrameCount::new(1000))
    );
    assert_eq!(recording.target_at(Nanos::ZERO), None);
    assert!(
        recording
            .entries
            .contains(&(seconds(20), Said::Target(FrameCount::new(30))))
    );

    let mut other = Guest::new();
    let mut host = Replay::new(Recorder::new(FakeHost::bulk()), recording.clone());
    for second in 0..90 {
        other.now = seconds(second);
        host.inner_mut().now = other.now;
        if host.advance(other.now) {
            other.shared.signal().config_changed();
        }
        for _ in 0..10 {
            other.step(&mut host);
        }
    }
    assert_eq!(host.next_change(), None);
    let again = host.inner().recording();
    let last = |recording: &Recording| recording.sizes().last().map(|(_, size)| size);
    assert_eq!(last(again), last(&recording));
    assert_eq!(last(again), Some(FrameCount::new(512)));
    // Its own wishes were not asked for.
    assert_eq!(again.targets().count(), 0);
}
