//! Random programs against the naive model. Regressions are committed beside this file.

use pod_core::sim::{Step, run_program};
use proptest::prelude::*;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = any::<[u8; 4]>().prop_map(|[kind, gfn, other, choice]| Step {
        kind,
        gfn,
        other,
        choice,
    });
    proptest::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn engine_and_model_agree(setup in any::<u8>(), steps in steps()) {
        run_program(setup, &steps);
    }
}
