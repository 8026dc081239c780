//! Programs that shrink: found failures are kept in `properties.proptest-regressions`.

use buddy_alloc::testing::{Action, Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange, Order};
use proptest::prelude::*;

fn action() -> impl Strategy<Value = Action> {
    let (at, count) = (any::<u32>(), 0u16..700);
    let (order, nth, kind) = (0u8..12, any::<u16>(), 0u8..3);
    let ranges = 0u8..20;
    prop_oneof![
        8 => (order.clone(), kind.clone())
            .prop_map(|(order, preference)| Action::Allocate { order, preference }),
        2 => (count.clone(), order.clone(), kind.clone()).prop_map(|(count, align, preference)| {
            Action::AllocateRange { count, align, preference }
        }),
        1 => (at, order.clone()).prop_map(|(at, order)| Action::AllocateAt { at, order }),
        1 => (at, count.clone()).prop_map(|(at, count)| Action::AllocateRangeAt { at, count }),
        6 => nth.prop_map(|nth| Action::Free { nth }),
        1 => (at, order.clone()).prop_map(|(at, order)| Action::FreeWild { at, order }),
        1 => (at, count.clone()).prop_map(|(at, count)| Action::FreeRange { at, count }),
        1 => (at, count.clone()).prop_map(|(at, count)| Action::FreeUnpopulated { at, count }),
        1 => (nth, order.clone()).prop_map(|(nth, into)| Action::Split { nth, into }),
        1 => (at, count.clone()).prop_map(|(at, count)| Action::Reserve { at, count }),
        1 => (at, count.clone(), kind.clone())
            .prop_map(|(at, count, backing)| Action::Unreserve { at, count, backing }),
        2 => (at, count.clone(), kind.clone())
            .prop_map(|(at, count, backing)| Action::Add { at, count, backing }),
        2 => (count.clone(), ranges.clone(), order.clone(), kind.clone(), any::<bool>(), any::<Option<u32>>())
            .prop_map(|(wanted, ranges, unit, preference, only, below)| {
                Action::Take { wanted, ranges, unit, preference, only, below }
            }),
        1 => (at, count.clone()).prop_map(|(at, count)| Action::TakeAt { at, count }),
        2 => (nth, kind.clone()).prop_map(|(nth, backing)| Action::Put { nth, backing }),
        1 => nth.prop_map(|nth| Action::PutUnchanged { nth }),
        2 => (nth, any::<bool>()).prop_map(|(nth, bulk)| Action::Store { nth, bulk }),
        2 => (count.clone(), ranges, order.clone(), any::<bool>())
            .prop_map(|(wanted, ranges, unit, bulk)| {
                Action::Recall { wanted, ranges, unit, bulk }
            }),
        2 => (order.clone(), count).prop_map(|(order, populated)| {
            Action::Isolate { order, populated }
        }),
        1 => (at, order.clone()).prop_map(|(at, order)| Action::IsolateAt { at, order }),
        2 => (0u16..700, 0u8..20, order, kind.clone()).prop_map(
            |(wanted, ranges, unit, preference)| {
                Action::AllocateBatch { wanted, ranges, unit, preference }
            },
        ),
        1 => (nth, any::<u8>(), at)
            .prop_map(|(nth, ranges, at)| Action::FreeBatch { nth, ranges, at }),
        1 => (nth, kind).prop_map(|(nth, backing)| Action::Unisolate { nth, backing }),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let added = prop_oneof![
        Just(None),
        Just(Some(Backing::Populated)),
        Just(Some(Backing::Unpopulated)),
        Just(Some(Backing::Unknown)),
    ];
    let actions = prop::collection::vec(action(), 0..60);
    (
        0u64..3000,
        1u64..1500,
        1u8..=18,
        6u8..12,
        0u32..3,
        added,
        actions,
    )
        .prop_map(
            |(start, frames, max, granule, fragmentable, added, actions)| {
                let order = |order| Order::new(order).expect("at most 18");
                let fragmentable = if granule > max { 0 } else { fragmentable };
                let config = Config::new()
                    .with_max_order(order(max))
                    .with_granule(order(granule))
                    .with_fragmentable(fragmentable);
                let span = FrameRange::new(Frame::new(start), FrameCount::new(frames));
                Program {
                    span,
                    config,
                    added,
                    actions,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 400 },
        failure_persistence: if cfg!(miri) {
            None
        } else {
            Some(Box::new(prop::test_runner::FileFailurePersistence::WithSource("proptest-regressions")))
        },
        ..ProptestConfig::default()
    })]

    #[test]
    fn zone_and_oracle_agree(program in program()) {
        let mut memory = vec![0; program.config.metadata_words(program.span)];
        run_on(&program, &mut memory, 8);
    }
}
