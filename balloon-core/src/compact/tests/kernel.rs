//! Isolate, migrate, put back.

use super::*;
use crate::testing::Fault;

/// One ballooned frame and one that the kernel took by place.
fn rig(way: Migration) -> (Rig, Pfn, Pfn) {
    let mut rig = Rig::scattered(way, 4 * BLOCK, BLOCK, 5);
    let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
    let new = rig.zone.next_free(rig.zone.all).unwrap().start();
    rig.zone.take_at(FrameRange::single(new).unwrap()).unwrap();
    (rig, old, new)
}

impl Rig {
    pub(super) fn isolate(&mut self, old: Pfn) -> Result<Isolated, NotBallooned> {
        self.compactor
            .isolate(&mut self.engine, &mut self.zone, old)
    }

    pub(super) fn migrate(
        &mut self,
        isolated: Isolated,
        new: Pfn,
    ) -> Result<Ticket, (MigrateError, Isolated)> {
        let Self {
            engine,
            host,
            zone,
            now,
            ..
        } = self;
        self.compactor
            .migrate(engine, host, zone, isolated, new, *now)
    }

    pub(super) fn put_back(&mut self, isolated: Isolated) -> Result<(), Isolated> {
        self.compactor
            .put_back(&mut self.engine, &mut self.zone, isolated)
    }

    fn migrate_pair(&mut self, old: Pfn, new: Pfn) -> Migrated {
        let isolated = self.isolate(old).unwrap();
        self.check();
        let mut ticket = self.migrate(isolated, new).unwrap();
        for _ in 0..10 {
            self.check();
            match self.compactor.finish(ticket) {
                Ok(migrated) => return migrated,
                Err(again) => ticket = again,
            }
            self.step(Budget::SMALL);
        }
        panic!("never finished");
    }
}

#[test]
fn migrates_a_frame_in_every_way() {
    for way in WAYS {
        for delayed in [false, true] {
            let (mut rig, old, new) = rig(way);
            rig.host.delayed = delayed;
            assert_eq!(rig.migrate_pair(old, new), Migrated::Done);
            assert_eq!(rig.zone.at(old), At::Hand, "the kernel's to use");
            assert_eq!(rig.zone.at(new), At::Ballooned(Via::Inflate));
            assert!(!rig.host.owns(old) && rig.host.owns(new));
            rig.zone
                .put(FrameRange::single(old).unwrap(), Backing::Unknown)
                .unwrap();
            rig.settle();
            rig.check_at_rest();
            assert_eq!(rig.host.owned().get(), BLOCK);
        }
    }
}

#[test]
fn an_isolated_frame_is_out_of_everybodys_reach_and_still_counts() {
    let (mut rig, old, new) = rig(Migration::Exchange);
    let isolated = rig.isolate(old).unwrap();
    assert_eq!(rig.isolate(old), Err(NotBallooned), "once only");
    assert_eq!(rig.isolate(new), Err(NotBallooned), "not ballooned");
    assert_eq!(rig.engine.status(&rig.zone).size.get(), BLOCK);
    rig.settle();
    assert_eq!(
        rig.host.owned().get(),
        BLOCK,
        "the engine gives no other for it"
    );
    rig.engine.quiesce();
    assert!(!rig.engine.is_drained());
    let (error, isolated) = rig.migrate(isolated, new).unwrap_err();
    assert_eq!(error, MigrateError::Stopped);
    rig.set_target(0);
    rig.engine.resume(crate::Resume::Kept);
    rig.settle();
    assert_eq!(
        rig.host.owned().get(),
        1,
        "all but the one that is isolated"
    );
    rig.put_back(isolated).unwrap();
    rig.settle_if_woken();
    assert_eq!(rig.host.owned().get(), 0);
}

#[test]
fn a_refusal_says_whose_the_frames_are() {
    let refuse = Fault::Refuse(TransportErrorKind::Refused);
    let none = Fault::Partly(FrameCount::ZERO);
    let torn = Fault::Torn(FrameCount::ZERO);
    let migrations = [Migration::Exchange, Migration::Move];
    for fault in [refuse, none, torn] {
        for (way, good, expected) in [
            (Migration::Exchange, 0, Migrated::Unchanged),
            (Migration::Move, 0, Migrated::Unchanged),
            (Migration::InflateFirst, 0, Migrated::Unchanged),
            (Migration::InflateFirst, 1, Migrated::BothHoles),
        ] {
            let expected = match fault {
                Fault::Torn(_) if migrations.contains(&way) => Migrated::BothHoles,
                _ => expected,
            };
            for delayed in [false, true] {
                let (mut rig, old, new) = rig(way);
                rig.host.delayed = delayed;
                rig.host
                    .faults
                    .extend(core::iter::repeat_n(Fault::None, good));
                rig.host.faults.push_back(fault);
                assert_eq!(rig.migrate_pair(old, new), expected, "{way:?} {fault:?}");
                let ballooned = At::Ballooned(Via::Inflate);
                let (old_at, new_at, size) = match expected {
                    Migrated::Done => unreachable!(),
                    Migrated::Unchanged => (ballooned, At::Hand, BLOCK),
                    Migrated::BothHoles => (ballooned, ballooned, BLOCK + 1),
                };
                assert_eq!((rig.zone.at(old), rig.zone.at(new)), (old_at, new_at));
                assert_eq!(rig.host.owned().get(), size);
                let woken = rig.shared.signal().is_set();
                assert!(woken || size == BLOCK, "the engine is to mend the size");
                let counters = rig.compactor.counters();
                assert_eq!(counters.refusals, 1);
                let sums = [counters.unchanged, counters.both_holes];
                assert_eq!(sums.map(FrameCount::get).iter().sum::<u64>(), 1);
                // The engine brings the size back to the target.
                rig.settle();
                assert_eq!(rig.host.owned().get(), BLOCK);
            }
        }
    }
}

#[test]
fn a_full_transport_decides_nothing() {
    for way in WAYS {
        let (mut rig, old, new) = rig(way);
        rig.host
            .faults
            .push_back(Fault::Refuse(TransportErrorKind::Full));
        assert_eq!(rig.migrate_pair(old, new), Migrated::Done);
    }
}

#[test]
fn works_above_an_enforced_target() {
    for (way, expected) in [
        (Migration::Exchange, Migrated::Done),
        (Migration::Move, Migrated::Done),
        // Gives one, and gets none back: one nearer to the target.
        (Migration::InflateFirst, Migrated::BothHoles),
    ] {
        let (mut rig, old, new) = rig(way);
        rig.host.enforces = true;
        rig.host.target = FrameCount::new(BLOCK + 10);
        assert_eq!(rig.migrate_pair(old, new), expected, "{way:?}");
        // At the target itself two steps find the room they make.
        let (mut rig, old, new) = self::rig(way);
        rig.host.enforces = true;
        assert_eq!(rig.migrate_pair(old, new), Migrated::Done, "{way:?}");
    }
}

#[test]
fn a_frame_the_ledger_cannot_remember_is_refused_before_the_host_is_asked() {
    let (mut rig, old, new) = rig(Migration::Exchange);
    let requests = rig.host.requests;
    for wrong in [Pfn::new(1), pfn(4 * BLOCK), Pfn::LIMIT, old] {
        let isolated = rig.isolate(old).unwrap();
        let (error, isolated) = rig.migrate(isolated, wrong).unwrap_err();
        assert_eq!(error, MigrateError::NotEligible);
        rig.put_back(isolated).unwrap();
    }
    assert_eq!(rig.host.requests, requests);
    assert_eq!(rig.migrate_pair(old, new), Migrated::Done);
}

#[test]
fn more_than_there_are_batches_is_busy() {
    let (mut rig, _, new) = rig(Migration::Exchange);
    rig.host.delayed = true;
    let mut tickets = Vec::new();
    for _ in 0..2 {
        let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
        let new = rig.zone.next_free(rig.zone.all).unwrap();
        let new = FrameRange::single(new.start()).unwrap();
        rig.zone.take_at(new).unwrap();
        let isolated = rig.isolate(old).unwrap();
        tickets.push(rig.migrate(isolated, new.start()).unwrap());
    }
    let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
    let isolated = rig.isolate(old).unwrap();
    let (error, isolated) = rig.migrate(isolated, new).unwrap_err();
    assert_eq!(error, MigrateError::Busy);
    rig.put_back(isolated).unwrap();
    rig.step(Budget::SMALL);
    for ticket in tickets {
        assert_eq!(rig.compactor.finish(ticket), Ok(Migrated::Done));
    }
}

#[test]
fn a_reset_voids_what_is_in_flight() {
    for way in WAYS {
        let (mut rig, old, new) = rig(way);
        rig.host.delayed = true;
        let isolated = rig.isolate(old).unwrap();
        let ticket = rig.migrate(isolated, new).unwrap();
        rig.engine.quiesce();
        rig.host.reset();
        rig.engine.resume(crate::Resume::Reset);
        rig.compactor.step(
            &mut rig.engine,
            &mut rig.host,
            &mut rig.zone,
            rig.now,
            Budget::SMALL,
        );
        assert_eq!(
            rig.compactor.finish(ticket),
            Ok(Migrated::Unchanged),
            "{way:?}"
        );
        rig.zone
            .put(FrameRange::single(new).unwrap(), Backing::Unknown)
            .unwrap();
        rig.set_target(3);
        for _ in 0..100 {
            rig.engine
                .step(&mut rig.host, &mut rig.zone, rig.now, Budget::LARGE);
            rig.now = rig.now.saturating_add(Nanos::from_secs(1));
        }
        rig.check();
        assert_eq!(
            rig.host.owned().get(),
            3,
            "everything returned, then the target"
        );
        assert_eq!(rig.zone.count(At::Hand), 0);
    }
}
