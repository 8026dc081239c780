//! Wrong orders of a slot's life that must not compile.
//!
//! The expected messages are those of one compiler: with any other the cases
//! are left to it, as the messages change between releases.

#![cfg(not(any(loom, miri)))]

use std::process::Command;

/// The compiler whose messages the `.stderr` files hold.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn wrong_orders_do_not_compile() {
    let rustc = Command::new("rustc").arg("--version").output();
    let version = rustc.map(|output| output.stdout).unwrap_or_default();
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ownership/right_order.rs");
    if version.starts_with(COMPILER.as_bytes()) {
        cases.compile_fail("tests/ownership/wrong_*.rs");
    }
}
