#![cfg_attr(target_os = "none", no_std, no_main)]
//! Guest kernel with a balloon for a Xen domain; see the library's documentation.

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: build it for x86_64-unknown-none (`cargo xtask image xen`)");
    std::process::exit(1);
}
