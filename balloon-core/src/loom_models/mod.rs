//! Models: every interleaving of the code that several CPUs run.
//!
//! Run by `RUSTFLAGS="--cfg loom" cargo test -p balloon-core --profile loom --lib loom`.
//! Each model states what must hold and runs over a trait, so that a wrong
//! variant goes through the very same model and must fail it:
//!
//! * the original design with one buffer for two kinds (`slots`);
//! * each memory ordering weakened to relaxed, one at a time ([`Site`]): the
//!   orderings are as strong as needed and no stronger;
//! * a flag that is raised by a store (`signal`).
//!
//! An interrupt is a thread that only completes or raises, and runs to its end.

mod reserve;
mod signal;
mod slots;

use alloc::string::String;

use loom::sync::atomic::{AtomicU32, Ordering};

use crate::sync::{Site, weakened};

/// Explores a model with up to three preemptions per interleaving.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// How some interleaving fails the model, with `weak` relaxed; empty if none does.
fn failure(weak: Option<Site>, model: impl FnOnce() + Send + 'static) -> String {
    // A thread of its own: a model that failed leaves loom's state behind.
    let run = std::thread::spawn(move || {
        if let Some(site) = weak {
            weakened::weaken(site);
        }
        model();
    });
    let Err(panic) = run.join() else {
        return String::new();
    };
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic
            .downcast_ref::<&str>()
            .map_or_else(String::new, |&m| m.into()),
    }
}

/// What loom says of two accesses that nothing orders.
const UNORDERED: &str = "Causality violation";

/// Memory that is only safe to touch for its owner, and a value to recognise.
///
/// loom fails the model if two threads touch the cell and nothing orders them.
struct Content {
    cell: loom::cell::UnsafeCell<u32>,
}

// SAFETY: loom checks that no two threads touch the cell at once.
unsafe impl Sync for Content {}
// SAFETY: it is a number.
unsafe impl Send for Content {}

impl Content {
    fn new() -> Self {
        Self {
            cell: loom::cell::UnsafeCell::new(0),
        }
    }

    fn write(&self, value: u32) {
        self.cell.with_mut(|place| {
            // SAFETY: the cell hands out a valid pointer, and fails the model
            // if any other access is not ordered before or after this one.
            unsafe { *place = value }
        });
    }

    fn read(&self) -> u32 {
        self.cell.with(|place| {
            // SAFETY: as above.
            unsafe { *place }
        })
    }
}

/// Counts events; orders nothing, so that it hides no missing ordering.
struct Tally(AtomicU32);

impl Tally {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
