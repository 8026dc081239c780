//! Random programs on `pod-core`'s simulator, compared with its naive model.

use arbitrary::{Arbitrary, Unstructured};
use pod_core::sim::{Step, run_program};

#[derive(Arbitrary, Debug)]
struct Program {
    setup: u8,
    steps: Vec<(u8, u8, u8, u8)>,
}

/// Decodes a program and runs it; panics at the first difference.
pub fn run(data: &[u8]) {
    let Ok(program) = Program::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let steps: Vec<Step> = program
        .steps
        .iter()
        .take(200)
        .map(|&(kind, gfn, other, choice)| Step {
            kind,
            gfn,
            other,
            choice,
        })
        .collect();
    run_program(program.setup, &steps);
}
