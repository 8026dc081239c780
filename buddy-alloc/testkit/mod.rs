//! An oracle for [`Zone`](crate::Zone), and programs of actions run against both.
//!
//! The oracle knows each frame's state and the borders of held blocks, and nothing of lists, nodes
//! or tiers. [`run`] performs a program on a zone, compares every answer, and compares the whole
//! state at the end. Property tests, exhaustive tests and the fuzz target share it.

mod action;
mod oracle;
mod program;

pub use action::{Action, Program};
pub use oracle::Oracle;
pub use program::{run, run_on};
