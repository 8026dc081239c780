#![cfg_attr(target_os = "none", no_std, no_main)]
#![doc = include_str!("../README.md")]

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
mod kernel;

#[cfg(all(target_os = "none", not(target_arch = "aarch64")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: `cargo xtask xen arm64` builds and boots it");
    std::process::exit(1);
}
