//! The one door for every task of this workspace: `cargo xtask --help`.
//!
//! This is a host program. It starts cargo, QEMU and Debian's package tools, measures from outside what
//! a guest does, and never links against a guest.
#![expect(
    clippy::print_stdout,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    reason = "a host program that talks to a person"
)]

mod archive;
mod arguments;
mod bench;
mod cli;
mod count;
mod demo;
mod exec;
mod fuzz;
mod image;
mod setup;
mod sim;
mod svg;
mod test;
mod ui;
mod vm;
mod workspace;
mod xen;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
