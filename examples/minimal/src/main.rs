#![cfg_attr(target_os = "none", no_std, no_main)]
#![doc = include_str!("../README.md")]

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: `cargo xtask image minimal` builds it");
    std::process::exit(1);
}
