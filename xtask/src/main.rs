//! The one door for every task of this workspace.
fn main() {}
