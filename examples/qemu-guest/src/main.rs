#![cfg_attr(target_os = "none", no_std, no_main)]
//! Guest kernel with a balloon for stock QEMU; see the library's documentation.

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: `cargo xtask image qemu` builds it, or `qemu-aarch64`");
    std::process::exit(1);
}
