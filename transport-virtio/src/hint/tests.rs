use super::*;
use crate::protocol::features::Features;
use crate::protocol::options::DriverOptions;
use crate::testing::{self, FakeBalloon, FakeDevice, Profile};
use alloc::boxed::Box;
use alloc::vec::Vec;
use balloon_core::testing::FakeSource;
use balloon_core::{BitmapLedger, FrameRange};

const FRAMES: u64 = 64;

struct Guest {
    balloon: FakeBalloon<16>,
    hinting: Hinting<4>,
    shared: &'static Shared<16>,
    source: FakeSource,
    held: BitmapLedger<Vec<u64>>,
}

/// What the device saw on the hint queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Command(u32),
    Range(u64, u64),
}

impl Guest {
    fn new() -> Self {
        Self::on(Profile::qemu(Features::FREE_PAGE_HINT))
    }

    fn on(profile: Profile) -> Self {
        let options = DriverOptions::new().with_hints();
        let memory = FrameRange::new(Pfn::new(0x100), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
        let mut balloon: FakeBalloon<16> = testing::bring_up(profile, &options).unwrap();
        let checker = balloon.queues_mut().device_mut().checker_mut();
        checker.set_memory(memory.start()..memory.end());
        Self {
            balloon,
            hinting: Hinting::new(FrameCount::new(4)),
            shared: Box::leak(Box::default()),
            source: FakeSource::new(memory),
            held: BitmapLedger::new(alloc::vec![0; words], &[memory]).unwrap(),
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    fn step(&mut self) -> HintStep {
        let shared = self.shared;
        let (source, held) = (&mut self.source, &mut self.held);
        self.hinting
            .step(&mut self.balloon, shared, source, held, Nanos::ZERO)
            .unwrap()
    }

    fn look(&mut self) -> Vec<Seen> {
        let chains = self.device().serve(QueueId::Hint);
        let seen = |chain: &testing::Chain| {
            let first = chain.descriptors[0];
            if first.writable {
                Seen::Range(first.address >> 12, u64::from(first.len) >> 12)
            } else {
                let content = self.balloon.queues().device().content(first);
                Seen::Command(u32::from_le_bytes(content.try_into().unwrap()))
            }
        };
        chains.iter().map(seen).collect()
    }

    fn run(&mut self, steps: usize) -> Vec<Seen> {
        (0..steps)
            .flat_map(|_| {
                self.step();
                self.look()
            })
            .collect()
    }

    fn held(&self) -> u64 {
        self.held.held(Via::Inflate).get()
    }

    fn whole(&self) {
        let out = self.held() + self.hinting.lent.frames().get();
        self.source.check(FrameCount::ZERO);
        assert_eq!(
            out,
            self.source.in_hand().get(),
            "hinted frames are out of the allocator"
        );
        let violations = self.balloon.queues().device().checker().violations();
        assert_eq!(violations, []);
    }
}

#[test]
fn a_round_names_everything_free_once_between_its_commands() {
    let mut guest = Guest::new();
    assert_eq!(guest.run(5), [], "no command, no hints");
    guest.device().set_hint_command(0x8000_0001);
    let seen = guest.run(200);
    assert_eq!(seen.first(), Some(&Seen::Command(0x8000_0001)));
    assert_eq!(seen.last(), Some(&Seen::Command(0)));
    let named = |seen: &Seen| match *seen {
        Seen::Range(_, frames) => frames,
        Seen::Command(_) => 0,
    };
    assert_eq!(seen.iter().map(named).sum::<u64>(), FRAMES - 4);
    assert_eq!(guest.hinting.hinted(), FrameCount::new(FRAMES - 4));
    assert_eq!((guest.held(), guest.source.free().get()), (FRAMES - 4, 4));
    guest.whole();
    // Nothing goes home before the host is done, not even after STOP.
    guest.device().set_hint_command(0);
    guest.run(20);
    assert_eq!(guest.held(), FRAMES - 4);
    guest.device().set_hint_command(1);
    assert_eq!(guest.run(20), []);
    assert_eq!((guest.held(), guest.source.free().get()), (0, FRAMES));
    assert!(guest.hinting.is_drained());
    guest.whole();
}

#[test]
fn hinted_frames_wait_for_the_answer() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    for _ in 0..50 {
        guest.step();
    }
    // Three places are taken, the fourth is for the closing command.
    assert_eq!(guest.balloon.in_flight(QueueId::Hint), 3);
    assert!(!guest.hinting.is_drained());
    guest.device().set_hint_command(1);
    for _ in 0..50 {
        assert!(!guest.hinting.lent.frames().is_zero());
        guest.step();
    }
    let source = &mut guest.source;
    let none = guest
        .hinting
        .relieve(source, &mut guest.held, FrameCount::MAX);
    assert_eq!(
        none,
        FrameCount::ZERO,
        "unanswered frames are not for relief"
    );
    guest.look();
    guest.run(20);
    assert_eq!(guest.source.free().get(), FRAMES);
    guest.whole();
}

#[test]
fn a_new_round_fences_off_the_old_one() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    guest.run(5);
    let held = guest.held();
    guest.device().set_hint_command(8);
    let seen = guest.run(200);
    assert_eq!(seen[0], Seen::Command(8));
    assert!(!seen.contains(&Seen::Command(7)));
    assert_eq!(guest.hinting.rounds(), 2);
    // What the first round named is untouched and not named again.
    assert!(held > 0 && guest.held() == FRAMES - 4);
    assert_eq!(guest.hinting.hinted(), FrameCount::new(FRAMES - 4));
    guest.whole();
}

#[test]
fn a_stopped_round_is_closed() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    guest.run(5);
    guest.device().set_hint_command(0);
    let seen = guest.run(10);
    assert_eq!(seen.last(), Some(&Seen::Command(0)));
    assert!(guest.hinting.is_drained());
    guest.whole();
}

#[test]
fn memory_pressure_gets_answered_frames_at_once() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    guest.run(200);
    let free = guest.source.free();
    let wanted = FrameCount::new(10);
    let relieved = guest
        .hinting
        .relieve(&mut guest.source, &mut guest.held, wanted);
    assert_eq!(relieved, wanted);
    assert_eq!(guest.source.free(), free.saturating_add(wanted));
    guest.whole();
}

#[test]
fn a_reset_brings_everything_home() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    for _ in 0..10 {
        guest.step();
    }
    guest.look();
    for _ in 0..3 {
        guest.step();
    }
    guest.hinting.reset(&mut guest.source, &mut guest.held);
    assert!(guest.hinting.is_drained());
    guest.device().set_hint_command(0);
    guest.run(10);
    assert_eq!((guest.held(), guest.source.free().get()), (0, FRAMES));
}

#[test]
fn hints_do_not_wait_for_an_inflation() {
    let mut guest = Guest::new();
    let shared = guest.shared;
    // The device answers no inflation; every slot of that kind is in flight.
    for _ in 0..16 {
        let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
        let run = FrameRange::single(Pfn::new(9)).and_then(Run::new).unwrap();
        let runs = [run];
        let request = slot.request(Via::Inflate, &runs);
        guest
            .balloon
            .submit(request, shared.slots().completer())
            .unwrap();
    }
    guest.device().set_hint_command(7);
    guest.step();
    assert_eq!(guest.look(), [Seen::Command(7)]);
    guest.step();
    assert!(matches!(guest.look()[..], [Seen::Range(..)]));
}

#[test]
fn without_the_feature_nothing_is_touched() {
    let mut balloon: FakeBalloon<16> = testing::bring_up(
        Profile::qemu(Features::FREE_PAGE_HINT),
        &DriverOptions::new(),
    )
    .unwrap();
    let mut guest = Guest::new();
    let shared = guest.shared;
    let (source, held) = (&mut guest.source, &mut guest.held);
    let step = guest
        .hinting
        .step(&mut balloon, shared, source, held, Nanos::ZERO);
    assert_eq!(step.err(), Some(VirtioError::Unsupported));
}

#[test]
fn commands_are_heard_where_the_generation_never_moves() {
    let mut guest = Guest::on(Profile::firecracker(Features::FREE_PAGE_HINT));
    assert_eq!(guest.run(5), [], "no command, no hints");
    for round in [7, 8] {
        guest.device().set_hint_command(round);
        let seen = guest.run(200);
        assert_eq!(seen.first(), Some(&Seen::Command(round)));
        assert_eq!(seen.last(), Some(&Seen::Command(STOP)));
        assert_eq!(guest.held(), FRAMES - 4);
        guest.device().set_hint_command(DONE);
        assert_eq!(guest.run(20), []);
        assert_eq!(guest.source.free().get(), FRAMES);
    }
    guest.whole();
}

#[test]
fn a_round_is_closed_by_any_change_if_its_command_is_gone_meanwhile() {
    // As QEMU has it: a new target in the middle of a round.
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    guest.run(5);
    let named = guest.hinting.hinted();
    guest.device().set_target(1);
    let seen = guest.run(10);
    assert_eq!(seen, [Seen::Command(STOP)]);
    assert_eq!(guest.hinting.hinted(), named);
    guest.whole();
}

#[test]
fn hints_are_drained_in_the_middle_of_a_round() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(7);
    for _ in 0..10 {
        guest.step();
    }
    let drain = |guest: &mut Guest| {
        let (source, held) = (&mut guest.source, &mut guest.held);
        let shared = guest.shared;
        let drained = guest
            .hinting
            .drain(&mut guest.balloon, shared, source, held);
        drained.unwrap()
    };
    let hinted = guest.hinting.hinted();
    assert!(!hinted.is_zero() && !drain(&mut guest));
    guest.look();
    assert!(drain(&mut guest));
    assert_eq!(guest.look(), [], "nothing more is named");
    assert_eq!(guest.held(), hinted.get());
    guest.whole();
    // The round goes on.
    assert_eq!(guest.run(200).last(), Some(&Seen::Command(STOP)));
}

#[test]
fn an_allocator_that_refuses_is_offered_the_frames_again() {
    let mut guest = Guest::new();
    guest.device().set_hint_command(9);
    guest.run(40);
    guest.source.refuses = true;
    guest.device().set_hint_command(1);
    let mut step = guest.step();
    for _ in 0..100 {
        assert!(
            step.more || step.wake_at.is_some(),
            "{step:?}: nobody steps again"
        );
        guest.look();
        step = guest.step();
    }
    assert!(!step.more && !step.held.is_zero(), "{step:?}");
    guest.source.refuses = false;
    guest.run(40);
    let step = guest.step();
    assert!(
        !step.more && step.wake_at.is_none() && step.held.is_zero(),
        "{step:?}"
    );
    assert_eq!(guest.source.free().get(), FRAMES);
}
