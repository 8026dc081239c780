//! Random programs of everything at once, judged by the ownership oracle.

use proptest::prelude::*;

use super::*;
use crate::testing::Fault;

#[derive(Clone, Debug)]
enum Event {
    Target(u64),
    Start,
    Stop,
    Isolate(u64),
    Migrate(u64),
    PutBack,
    Allocate(u64),
    Fault(Fault),
    Delayed(bool),
    Enforces(bool),
    Refuses(bool),
    Way(Migration),
    Step(usize),
    Sleep(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![
        Just(Fault::None),
        Just(Fault::Refuse(TransportErrorKind::Refused)),
        Just(Fault::Refuse(TransportErrorKind::Full)),
        (0..300u64).prop_map(|n| Fault::Partly(FrameCount::new(n))),
        (0..300u64).prop_map(|n| Fault::Torn(FrameCount::new(n))),
    ];
    prop_oneof![
        2 => (0..1600u64).prop_map(Event::Target),
        2 => Just(Event::Start),
        1 => Just(Event::Stop),
        2 => any::<u64>().prop_map(Event::Isolate),
        3 => any::<u64>().prop_map(Event::Migrate),
        1 => Just(Event::PutBack),
        2 => any::<u64>().prop_map(Event::Allocate),
        3 => fault.prop_map(Event::Fault),
        1 => any::<bool>().prop_map(Event::Delayed),
        1 => any::<bool>().prop_map(Event::Enforces),
        1 => any::<bool>().prop_map(Event::Refuses),
        1 => prop::sample::select(&WAYS[..]).prop_map(Event::Way),
        6 => (1..20usize).prop_map(Event::Step),
        2 => (0..2000u64).prop_map(Event::Sleep),
    ]
}

const FRAMES: u64 = 4 * BLOCK;

struct Program {
    rig: Rig,
    isolated: Vec<Isolated>,
    tickets: Vec<(Ticket, Pfn, Pfn)>,
}

impl Program {
    fn pick(&self, at: u64, wanted: At) -> Option<Pfn> {
        (0..FRAMES)
            .map(|n| pfn((at.wrapping_add(n)) % FRAMES))
            .find(|&p| self.rig.zone.at(p) == wanted)
    }

    fn run(&mut self, event: &Event) {
        let rig = &mut self.rig;
        match *event {
            Event::Target(frames) => rig.set_target(frames),
            Event::Start => {
                rig.compactor.start();
            }
            Event::Stop => rig.compactor.stop(),
            Event::Isolate(at) => {
                if let Some(old) = self.pick(at % FRAMES, At::Ballooned(Via::Inflate)) {
                    let isolated = self.rig.isolate(old).unwrap();
                    self.isolated.push(isolated);
                }
            }
            Event::Migrate(at) => {
                let Some(isolated) = self.isolated.pop() else {
                    return;
                };
                let Some(new) = self.pick(at % FRAMES, At::Free) else {
                    self.isolated.push(isolated);
                    return;
                };
                let new_range = FrameRange::single(new).unwrap();
                self.rig.zone.take_at(new_range).unwrap();
                let old = isolated.frame();
                match self.rig.migrate(isolated, new) {
                    Ok(ticket) => self.tickets.push((ticket, old, new)),
                    Err((_, isolated)) => {
                        self.isolated.push(isolated);
                        self.rig.zone.set(new, At::Free);
                    }
                }
            }
            Event::PutBack => {
                if let Some(isolated) = self.isolated.pop()
                    && let Err(isolated) = self.rig.put_back(isolated)
                {
                    self.isolated.push(isolated);
                }
            }
            Event::Allocate(at) => {
                if let Some(frame) = self.pick(at % FRAMES, At::Free) {
                    self.rig.zone.set(frame, At::Used);
                }
            }
            Event::Fault(fault) => rig.host.faults.push_back(fault),
            Event::Delayed(delayed) => rig.host.delayed = delayed,
            Event::Enforces(enforces) => rig.host.enforces = enforces,
            Event::Refuses(refuses) => rig.zone.refuses = refuses,
            Event::Way(way) => rig.host.way = way,
            Event::Step(budget) => {
                rig.step(Budget::requests(budget));
            }
            Event::Sleep(millis) => {
                rig.now = rig.now.saturating_add(Nanos::from_millis(millis));
            }
        }
        self.finish();
        self.rig.check();
    }

    /// Takes answers and checks that they are true of both frames.
    fn finish(&mut self) {
        for (ticket, old, new) in core::mem::take(&mut self.tickets) {
            let migrated = match self.rig.compactor.finish(ticket) {
                Ok(migrated) => migrated,
                Err(ticket) => {
                    self.tickets.push((ticket, old, new));
                    continue;
                }
            };
            let zone = &mut self.rig.zone;
            let mut usable = Vec::new();
            match migrated {
                Migrated::Done => usable.push(old),
                Migrated::Unchanged => usable.push(new),
                Migrated::BothHoles => {}
            }
            for frame in usable {
                assert!(!self.rig.host.owns(frame), "{frame:?} is said to be usable");
                assert_eq!(zone.at(frame), At::Hand);
                zone.set(frame, At::Free);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens, each frame has one owner; and when it stops happening,
    /// the balloon reaches its target and nothing is in hand.
    #[test]
    fn no_program_loses_a_frame(
        way in prop::sample::select(&WAYS[..]),
        seed: u64,
        events in prop::collection::vec(event(), 1..150),
    ) {
        let rig = Rig::scattered(way, FRAMES, FRAMES / 2, seed);
        let mut program = Program { rig, isolated: Vec::new(), tickets: Vec::new() };
        for event in &events {
            program.run(event);
        }
        let rig = &mut program.rig;
        rig.host.faults.clear();
        rig.host.enforces = false;
        rig.zone.refuses = false;
        rig.set_target(FRAMES / 4);
        program.rig.settle();
        program.finish();
        if program.rig.compactor.is_running() {
            // It may have waited for a batch that an answer occupied.
            program.rig.settle();
        }
        for isolated in core::mem::take(&mut program.isolated) {
            program.rig.put_back(isolated).unwrap();
            program.rig.settle_if_woken();
        }
        program.rig.check_at_rest();
        let free = program.rig.zone.count(At::Free) + program.rig.host.owned().get();
        prop_assert_eq!(program.rig.host.owned().get(), (FRAMES / 4).min(free));
    }
}
