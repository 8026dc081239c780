//! Every operation with a failure, and with the guest's death, at every callback.
//!
//! After each run: no frame lost, shared or left frozen, all counters recounted, the guest reads
//! what it wrote; and once it is dying, the cache drains to nothing.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use pod_core::sim::{Content, World};
use pod_core::{
    Attr, Budget, Config, Content as Moved, Demand, Drain, Entry, FrameCount, Geometry, Gfn, Leave,
    Mfn, Order, Pattern, Pod, RelocateError, Toucher, Vcpu,
};

const POISON: u64 = 0x5555_5555_5555_5555;

/// Superpages of 4, giga pages of 16: every size is there, every search is short.
fn config() -> Config {
    let mut config = Config::new(FrameCount::new(64));
    config.geometry = Geometry::new(Order::new(2).unwrap(), Order::new(4).unwrap()).unwrap();
    config.slack = FrameCount::ZERO;
    config.patterns[1] = POISON;
    config.patterns_used = 2;
    config
}

/// A guest in the middle of its life: superpages, splinters, data, zero pages, a pattern.
fn lived(unmaps: bool, logical: bool) -> World {
    let mut world = World::new(&config(), 128, 2);
    world.sim.traits.unmaps = unmaps;
    world.sim.traits.logical = logical;
    world.set_target(24);
    world.mark_all(Pattern::ZERO);
    for (gfn, content) in [
        (0, Content::Data(1)),
        (4, Content::ZERO),
        (8, Content::ZERO),
        (9, Content::Data(2)),
        (17, Content::Filled(POISON)),
    ] {
        assert!(world.write((gfn % 2) as usize, Gfn::new(gfn), content));
    }
    release(&mut world, 5, 1, Leave::Hole);
    release(&mut world, 33, 2, Leave::Hole);
    release(&mut world, 48, 16, Leave::Hole);
    world.check();
    world
}

fn release(world: &mut World, gfn: u64, count: u64, leave: Leave) -> bool {
    let done = world.with(|pod, sim| {
        let mut budget = Budget::default();
        pod.release(
            sim,
            Gfn::new(gfn),
            FrameCount::new(count),
            leave,
            &mut budget,
        )
        .is_ok()
    });
    if let Leave::Promise(_) = leave {
        world.sim.forget(Gfn::new(gfn), count);
    }
    done
}

fn demand(world: &mut World, gfn: u64, largest: Order) -> bool {
    let by = Toucher::Vcpu(Vcpu::new(1));
    let budget = &mut Budget::default();
    let answer = world.with(|pod, sim| pod.demand(sim, Gfn::new(gfn), by, largest, budget));
    matches!(answer, Ok(Demand::Populated(_) | Demand::Present))
}

fn relocate(world: &mut World, from: u64, to: u64, order: Order, content: Moved) -> bool {
    let (a, b) = (Gfn::new(from), Gfn::new(to));
    let pages = 0..order.frames().get();
    let seen = |world: &World, at: u64| world.sim.visible(Gfn::new(at));
    let before: Vec<_> = pages.clone().map(|i| seen(world, from + i)).collect();
    world.sim.landed.clear();
    let result =
        world.with(|pod, sim| pod.relocate(sim, a, b, order, content, &mut Budget::default()));
    let ok = result.is_ok();
    if let Err(RelocateError::BothHoles) = result {
        // Told, and only where a host breaks what it should keep.
        assert!(world.sim.traits.own_order_fails);
        for (i, page) in pages.clone().zip(&before) {
            let left = seen(world, from + i);
            let there = seen(world, to + i);
            let told = left.or(there).is_none() || content == Moved::Discard;
            assert!(told || world.sim.traits.eager || left.or(there) == *page);
            world.sim.expect(Gfn::new(from + i), left);
            world.sim.expect(Gfn::new(to + i), there);
        }
        return false;
    }
    for i in pages {
        let (left, there) = (seen(world, from + i), seen(world, to + i));
        // An eager virtual CPU may have written there since.
        let written = |at| world.sim.landed.iter().any(|(g, _)| g.get() == at);
        if before[i as usize].is_some() {
            assert!(left.or(there).is_some(), "page {i} is a hole on both sides");
            let written = written(from + i) || written(to + i) || !ok && world.sim.traits.eager;
            if content == Moved::Keep && !written {
                // Whatever failed, the content is in one of the two places.
                let home = if ok { there } else { left.or(there) };
                assert_eq!(home, before[i as usize], "content of page {i}");
            }
        }
        world.sim.expect(Gfn::new(to + i), there);
    }
    ok
}

/// Says which case it was, if the test panics in it.
struct Case(String);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in case: {}", self.0);
        }
    }
}

type Operation = (&'static str, fn(&mut World) -> bool);

fn whole(world: &mut World, run: fn(&mut Pod<'_>, &mut pod_core::sim::Sim) -> bool) -> bool {
    world.with(run)
}

const SUPER: fn() -> Order = || Order::new(2).unwrap();

const OPERATIONS: &[Operation] = &[
    ("demand superpage", |w| demand(w, 20, Order::MAX)),
    ("demand frame", |w| demand(w, 20, Order::FRAME)),
    ("demand in a splintered region", |w| {
        demand(w, 32, Order::MAX)
    }),
    ("demand all that is left", |w| {
        (20..48).all(|g| demand(w, g, Order::MAX) || (33..35).contains(&g))
    }),
    ("release promises", |w| release(w, 36, 12, Leave::Hole)),
    ("release memory", |w| release(w, 0, 20, Leave::Hole)),
    ("release to promises", |w| {
        release(w, 0, 20, Leave::Promise(Pattern::ZERO))
    }),
    ("release one page of a superpage", |w| {
        release(w, 1, 1, Leave::Hole)
    }),
    ("release unaligned", |w| release(w, 3, 38, Leave::Hole)),
    ("relocate keeping", |w| {
        relocate(w, 9, 33, Order::FRAME, Moved::Keep)
    }),
    ("relocate by copying", |w| {
        w.sim.traits.copies = true;
        relocate(w, 9, 33, Order::FRAME, Moved::Keep)
    }),
    ("relocate a superpage by copying", |w| {
        w.sim.traits.copies = true;
        relocate(w, 0, 48, SUPER(), Moved::Keep)
    }),
    ("relocate a part of a superpage by copying", |w| {
        w.sim.traits.copies = true;
        relocate(w, 0, 48, Order::new(1).unwrap(), Moved::Keep)
    }),
    ("relocate a part of a superpage", |w| {
        relocate(w, 0, 48, Order::new(1).unwrap(), Moved::Keep)
    }),
    ("relocate a part that nobody needs", |w| {
        relocate(w, 0, 48, Order::new(1).unwrap(), Moved::Discard)
    }),
    ("relocate to its own frame", |w| {
        relocate(w, 9, 5, Order::FRAME, Moved::Discard)
    }),
    ("relocate to its own frames", |w| {
        let pair = Order::new(1).unwrap();
        release(w, 10, 2, Leave::Hole) && relocate(w, 0, 10, pair, Moved::Discard)
    }),
    ("relocate a superpage", |w| {
        relocate(w, 0, 48, SUPER(), Moved::Keep)
    }),
    ("relocate a promise", |w| {
        relocate(w, 36, 52, SUPER(), Moved::Keep)
    }),
    ("reclaim", |w| {
        whole(w, |p, s| {
            while let Ok(pod_core::ReclaimStep::Found(_)) =
                p.reclaim_step(s, &mut Budget::default())
            {}
            true
        })
    }),
    ("coalesce", |w| {
        whole(w, |p, s| p.coalesce_step(s, &mut Budget::default()).is_ok())
    }),
    ("raise the target", |w| {
        whole(w, |p, s| {
            p.set_target(s, FrameCount::new(60), &mut Budget::default())
                .is_ok()
        })
    }),
    ("mark", |w| {
        whole(w, |p, s| {
            let all = FrameCount::new(16);
            p.mark(
                s,
                Gfn::new(48),
                all,
                Pattern::new(1).unwrap(),
                &mut Budget::default(),
            )
            .is_ok()
        })
    }),
    ("change the pattern", |w| {
        whole(w, |p, s| {
            let all = FrameCount::new(64);
            p.set_pattern(
                s,
                Gfn::new(0),
                all,
                Pattern::new(1).unwrap(),
                &mut Budget::default(),
            )
            .is_ok()
        })
    }),
    ("fill with special", |w| {
        whole(w, |p, s| {
            p.fill(
                s,
                Gfn::new(20),
                FrameCount::new(28),
                Entry::Special,
                &mut Budget::default(),
            )
            .is_ok()
        })
    }),
    ("pin", |w| {
        whole(w, |p, s| {
            p.pin(s, Gfn::new(18), FrameCount::new(8), &mut Budget::default())
                .is_ok()
        })
    }),
    ("broken frame", |w| {
        whole(w, |p, s| {
            let cached = (0..128).map(Mfn::new).find(|m| p.is_cached(*m)).unwrap();
            p.frame_failed(s, cached).is_ok()
        })
    }),
];

fn worlds() -> impl Iterator<Item = (String, World)> {
    let kinds = [
        (true, false, false),
        (false, false, false),
        (true, true, false),
        (true, false, true),
        (false, true, true),
    ];
    kinds.into_iter().map(|(unmaps, logical, eager)| {
        let mut world = lived(unmaps, logical);
        world.sim.traits.eager = eager;
        let name = format!("unmaps {unmaps} logical {logical} eager {eager}");
        (name, world)
    })
}

#[test]
fn a_failure_at_any_callback_leaves_everything_accounted() {
    every_failure(worlds());
}

#[test]
fn no_frame_is_lost_if_a_host_cannot_take_back_what_it_wrote() {
    every_failure(worlds().map(|(kind, mut world)| {
        world.sim.traits.own_order_fails = true;
        (format!("{kind} own order fails"), world)
    }));
}

fn every_failure(worlds: impl Iterator<Item = (String, World)>) {
    for (kind, start) in worlds {
        for (name, operation) in OPERATIONS {
            for (prefix, on) in [(0, false), (1, false), (3, false), (0, true), (2, true)] {
                for n in 1.. {
                    let mut world = start.clone();
                    let _case = Case(format!(
                        "{kind}: {name}: failure {n}, prefix {prefix}, on {on}"
                    ));
                    let before = world.sim.script.fallible();
                    world.sim.script.fail_at = Some(before + n);
                    world.sim.script.fail_on = on;
                    world.sim.script.prefix = prefix;
                    operation(&mut world);
                    let reached = world.sim.script.fallible() >= before + n;
                    world.sim.script.fail_at = None;
                    world.sim.check();
                    world
                        .with(|p, s| p.reclaim_step(s, &mut Budget::default()))
                        .unwrap();
                    world.check();
                    // And the guest can go on.
                    operation(&mut world);
                    world.check();
                    if !reached {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_guest_may_die_at_any_callback() {
    for (kind, start) in worlds() {
        for (name, operation) in OPERATIONS {
            for n in 1.. {
                let mut world = start.clone();
                let _case = Case(format!("{kind}: {name}: death at {n}"));
                let before = world.sim.script.calls();
                world.sim.script.die_at = Some(before + n);
                operation(&mut world);
                let reached = world.sim.script.calls() >= before + n;
                world.sim.check();
                assert!(world.with(|pod, sim| pod.audit(sim)).is_ok());
                while world.with(|p, s| p.drain(s, &mut Budget::new(1))) == Drain::More {}
                let stats = world.stats();
                assert_eq!(stats.cache.get(), 0, "{name} at {n}");
                let kept = stats.populated.get() + world.sim.retired().len() as u64;
                assert_eq!(kept, world.sim.owned(), "{name} at {n}: frames lost");
                if !reached {
                    break;
                }
            }
        }
    }
}

#[test]
fn table_memory_may_run_out_at_any_write() {
    for (name, operation) in OPERATIONS {
        for pages in 0..6 {
            let mut world = lived(true, false);
            let _case = Case(format!("{name}: {pages} table pages"));
            world.sim.set_table_pages(Some(pages));
            operation(&mut world);
            world.check();
        }
    }
}

#[test]
fn entries_in_different_states_never_become_one_leaf() {
    let mut world = lived(true, false);
    assert!(world.write(0, Gfn::new(20), Content::Data(5)));
    world.sim.set_attr(Gfn::new(21), Attr::new(7));
    let step = world.with(|pod, sim| pod.coalesce_step(sim, &mut Budget::default()));
    assert!(step.is_ok());
    assert_eq!(world.sim.leaf(Gfn::new(20)).order, Order::FRAME);
    world.sim.set_attr(Gfn::new(21), Attr::PLAIN);
    let step = world.with(|pod, sim| pod.coalesce_step(sim, &mut Budget::default()));
    assert!(step.is_ok());
    assert!(world.sim.leaf(Gfn::new(20)).order > Order::FRAME);
}
