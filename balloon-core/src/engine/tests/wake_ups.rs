//! What a balloon costs that cannot get what its host wants, and one at rest.

use alloc::vec;

use super::*;

/// Why the target is out of reach.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    TooFewFrames,
    Floor(u8),
    Pinned(u8),
    /// So many frames at a time, the rest when asked again.
    Short(u8),
    /// No block of the unit.
    NoBlocks,
    SourceRefuses,
    HostRefuses,
    HostKeepsChanging,
    Silent,
    Clamped,
    NoPath,
    /// Every request is answered, none carried out.
    AnswersNothing,
}

fn obstacle() -> impl Strategy<Value = Obstacle> {
    prop_oneof![
        Just(Obstacle::TooFewFrames),
        any::<u8>().prop_map(Obstacle::Floor),
        any::<u8>().prop_map(Obstacle::Pinned),
        any::<u8>().prop_map(Obstacle::Short),
        Just(Obstacle::NoBlocks),
        Just(Obstacle::SourceRefuses),
        Just(Obstacle::HostRefuses),
        Just(Obstacle::HostKeepsChanging),
        Just(Obstacle::Silent),
        Just(Obstacle::Clamped),
        Just(Obstacle::NoPath),
        Just(Obstacle::AnswersNothing),
    ]
}

impl Rig {
    fn put_in_the_way(&mut self, obstacle: Obstacle) {
        match obstacle {
            Obstacle::TooFewFrames | Obstacle::NoBlocks | Obstacle::Clamped => {}
            Obstacle::Floor(frames) => self.source.floor = FrameCount::new(frames.into()),
            Obstacle::Pinned(frames) => self.source.pinned = FrameCount::new(frames.into()),
            Obstacle::Short(frames) => self.source.short = FrameCount::new(frames.into()),
            Obstacle::SourceRefuses => self.source.refuses = true,
            Obstacle::HostRefuses => self.host.fails = Some(TransportErrorKind::Refused),
            Obstacle::HostKeepsChanging => self.host.fails = Some(TransportErrorKind::Unstable),
            Obstacle::Silent => self.host.answers = Answers::WhenTold,
            Obstacle::AnswersNothing => self.host.answers = Answers::Partly(FrameCount::ZERO),
            Obstacle::NoPath => self.host.capabilities.inflate.in_flight = 0,
        }
    }

    /// Wake-ups of a simulated hour from now on, stepping only when asked to.
    fn wake_ups_of_an_hour(&mut self) -> u32 {
        let end = self.now.saturating_add(Nanos::from_secs(3600));
        let mut wakes = 0;
        loop {
            let wake_at = self.run_or_wait().wake_at.filter(|&at| at < end);
            let Some(at) = wake_at else { return wakes };
            self.now = at;
            wakes += 1;
        }
    }

    /// Steps until nothing is to be done now, whatever the host keeps.
    fn run_or_wait(&mut self) -> Step {
        for _ in 0..10_000 {
            let step = self.step(Budget::LARGE);
            if !step.more {
                return step;
            }
        }
        panic!("the engine never comes to rest: {:?}", self.status());
    }
}

/// Frames of the guest: a superpage and some more.
const FRAMES: u64 = 700;

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// 120 wake-ups an hour at most for a target out of reach, none at rest.
    #[test]
    fn an_unreachable_target_costs_few_wake_ups(
        obstacle in obstacle(),
        bulk: bool,
        adaptive: bool,
        scattered: bool,
        first in 0..FRAMES,
        beyond in 1u64..100_000,
        tolerance in 0u64..4,
    ) {
        let unit = match obstacle {
            Obstacle::NoBlocks => Granularity::Whole(Order::SUPERPAGE),
            _ if adaptive => Granularity::Adaptive,
            _ => Granularity::Frames,
        };
        let max_size = match obstacle {
            Obstacle::Clamped => FrameCount::new(FRAMES / 2),
            _ => FrameCount::MAX,
        };
        let tolerance = FrameCount::new(tolerance);
        let policy = Policy { granularity: unit, max_size, tolerance, ..POLICY };
        let host = if bulk && !matches!(obstacle, Obstacle::NoPath) {
            FakeHost::bulk()
        } else {
            FakeHost::plain()
        };
        let mut rig = Rig::with_policy(host, FRAMES, policy);
        rig.host.capabilities.unit = Order::SUPERPAGE;
        if scattered {
            rig.source = rig.source.scattered();
        }
        rig.inflate_to(first);
        rig.put_in_the_way(obstacle);
        rig.set_target(FRAMES + beyond);
        let wakes = rig.wake_ups_of_an_hour();
        prop_assert!(wakes <= 120, "{wakes} wake-ups, {:?}", rig.status());
        prop_assert_ne!(rig.status().progress, Progress::Working);

        // The way is free, the target in reach: no wake-up once it is reached.
        rig.host.fails = None;
        rig.host.answers = Answers::Promptly;
        rig.source.refuses = false;
        rig.shared.signal().used();
        rig.set_target(0);
        rig.wake_ups_of_an_hour();
        rig.assert_reached(0);
        prop_assert_eq!(rig.wake_ups_of_an_hour(), 0);
    }
}
