//! Calls that are wrong, and answers that say so.
#![expect(clippy::unwrap_used, reason = "a test")]

use pod_core::sim::{Memory, Sim, World};
use pod_core::{
    Budget, Config, Demand, DemandError, Drain, Entry, FrameCount, Gfn, Host as _, Leave, Mfn,
    Order, Pattern, Pod, Progress, RangeError, ResumeError, Sizes, Suspended, Target, Toucher,
    Vcpu,
};

const SUPER: u64 = 512;

fn config(max: u64) -> Config {
    Config {
        slack: FrameCount::ZERO,
        ..Config::new(FrameCount::new(max))
    }
}

/// A guest of 8 superpages that has half of them, and has used a few.
fn suspended(host: &mut Sim, memory: &mut Memory, config: Config) -> Suspended {
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let target = FrameCount::new(4 * SUPER);
    while pod.set_target(host, target, &mut Budget::default()) == Ok(Target::More) {}
    let all = pod.mark(
        host,
        Gfn::new(0),
        config.max,
        Pattern::ZERO,
        &mut Budget::default(),
    );
    assert!(all.unwrap().complete);
    pod.start();
    for (gfn, order) in [(0, Order::MAX), (SUPER, Order::FRAME)] {
        let by = Toucher::Vcpu(Vcpu::new(0));
        let touched = pod.demand(host, Gfn::new(gfn), by, order, &mut Budget::default());
        assert!(matches!(touched, Ok(Demand::Populated(_))));
    }
    pod.suspend().0
}

#[test]
fn an_engine_goes_on_only_with_the_storage_it_was_suspended_from() {
    let config = config(8 * SUPER);
    let sizes = Sizes::for_guest(&config, config.limit, 2);
    let mut host = Sim::new(&config, 64 * SUPER, 2);
    let mut memory = Memory::new(&sizes);
    let whole = suspended(&mut host, &mut memory, config);
    let resume = |memory: &mut Memory| Pod::resume(whole.clone(), memory.storage()).err();
    assert_eq!(resume(&mut Memory::new(&sizes)), Some(ResumeError), "fresh");
    let others = [
        Sizes {
            regions: sizes.regions + 1,
            ..sizes
        },
        Sizes {
            blocks: sizes.blocks - 1,
            ..sizes
        },
        Sizes {
            gigas: sizes.gigas - 1,
            ..sizes
        },
        Sizes {
            loose: sizes.loose - 1,
            ..sizes
        },
        Sizes { lanes: 3, ..sizes },
    ];
    for sizes in others {
        let mut other = Memory::new(&sizes);
        let _ = suspended(&mut Sim::new(&config, 64 * SUPER, 2), &mut other, config);
        assert_eq!(resume(&mut other), Some(ResumeError), "{sizes:?}");
    }
    // Another engine's, of the same size.
    let mut other = Memory::new(&sizes);
    let mut pod = Pod::new(config, other.storage()).unwrap();
    let few = FrameCount::new(SUPER);
    let mut elsewhere = Sim::new(&config, 64 * SUPER, 2);
    let target = pod.set_target(&mut elsewhere, few, &mut Budget::default());
    assert_eq!(target, Ok(Target::Done));
    assert_eq!(resume(&mut other), Some(ResumeError), "another guest's");
    // The right one.
    assert_eq!(resume(&mut memory), None);
    let mut pod = Pod::resume(whole, memory.storage()).unwrap();
    assert!(pod.audit(&host).is_ok());
    while pod.drain(&mut host, &mut Budget::default()) == Drain::More {}
}

/// The storage is written between two calls: every touch has an answer that is final.
#[test]
fn a_touch_ends_whatever_is_in_the_storage() {
    let config = config(8 * SUPER);
    let sizes = Sizes::for_guest(&config, config.limit, 1);
    let mut host = Sim::new(&config, 64 * SUPER, 1);
    let (mut memory, mut zeroed) = (Memory::new(&sizes), Memory::new(&sizes));
    let whole = suspended(&mut host, &mut memory, config);
    // What a successor cannot notice by counting: the same numbers, and an empty cache.
    let storage = zeroed.storage();
    storage.regions.copy_from_slice(memory.storage().regions);
    assert_eq!(Pod::resume(whole.clone(), storage).err(), Some(ResumeError));
    let mut pod = Pod::resume(whole, memory.storage()).unwrap();
    let by = Toucher::Vcpu(Vcpu::new(0));
    for gfn in (0..8 * SUPER).step_by(7) {
        let answer = pod.demand(
            &mut host,
            Gfn::new(gfn),
            by,
            Order::FRAME,
            &mut Budget::default(),
        );
        assert_ne!(answer, Err(DemandError::Storage));
    }
}

#[test]
fn an_ordinary_guest_is_one_that_gets_all_its_memory() {
    // 4 GiB of RAM: 3 GiB below a hole for devices, 1 GiB above it.
    let mut config = Config::new(FrameCount::from_mib(5 << 10));
    config.ram = FrameCount::from_mib(4 << 10);
    assert!(config.is_ordinary(FrameCount::from_mib(4 << 10)));
    assert!(!config.is_ordinary(FrameCount::from_mib((4 << 10) - 1)));
    config.limit = FrameCount::from_mib(2 << 10);
    assert!(
        !config.is_ordinary(config.limit),
        "half of it stays promised"
    );
    config.ram = FrameCount::from_mib(6 << 10);
    let mut memory = Memory::new(&Sizes::for_guest(&config, FrameCount::ZERO, 1));
    assert!(
        Pod::new(config, memory.storage()).is_err(),
        "more than the map"
    );
}

fn fill(world: &mut World, gfn: u64, count: u64, mfn: u64) -> Result<Progress, RangeError> {
    let (count, entry) = (FrameCount::new(count), Entry::ram(Mfn::new(mfn)));
    for i in 0..count.get() {
        // The host's own choice.
        assert!(
            world
                .sim
                .alloc_at(Mfn::new(mfn + i), Order::FRAME)
                .is_some()
        );
    }
    world.with(|p, s| p.fill(s, Gfn::new(gfn), count, entry, &mut Budget::default()))
}

#[test]
fn what_is_filled_in_keeps_to_the_limit() {
    let mut config = config(4 * SUPER);
    config.limit = FrameCount::new(SUPER + 3);
    for started in [false, true] {
        let mut world = World::built(&config, SUPER, 16 * SUPER, 1);
        world.sim.traits.dirty_heap = false;
        if started {
            world.with(|pod, _| pod.start());
        }
        // Debt: what comes in comes on top.
        let answer = fill(&mut world, 8, 5, 8 * SUPER);
        assert_eq!(answer, Err(RangeError::AboveLimit(Gfn::new(11))));
        assert_eq!(world.stats().owned(), config.limit);
        assert_eq!(world.stats().populated.get(), 3);
        // No debt: each frame that comes in sends one of the cache home.
        let rest = (Gfn::new(SUPER), FrameCount::new(3 * SUPER));
        let given =
            world.with(|p, s| p.release(s, rest.0, rest.1, Leave::Hole, &mut Budget::default()));
        assert!(given.is_ok());
        let answer = fill(&mut world, 16, 5, 9 * SUPER);
        assert_eq!(answer.is_ok(), started, "{answer:?}");
        assert!(world.stats().owned() <= config.limit, "{}", world.stats());
    }
}

#[test]
fn a_guest_that_dies_in_the_middle_says_how_far_it_got() {
    let mut world = World::new(&config(4 * SUPER), 8 * SUPER, 1);
    world.set_target(SUPER);
    let calls = world.sim.script.calls();
    world.sim.script.die_at = Some(calls + 12);
    let all = FrameCount::new(4 * SUPER);
    let answer = world.with(|p, s| {
        p.mark(
            s,
            Gfn::new(5),
            FrameCount::new(all.get() - 5),
            Pattern::ZERO,
            &mut Budget::default(),
        )
    });
    let Err(RangeError::Dying(at)) = answer else {
        panic!("{answer:?}");
    };
    assert!(at > Gfn::new(5));
    let marked = world.stats().promises.get();
    assert_eq!(at.get() - 5, marked);
}
