//! Passes the linker what a bare-metal image needs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let bare = std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if !bare {
        return;
    }
    let script = format!("{}/../guest-rt/link/{arch}.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    // At a fixed address: nobody would relocate the image, and the log's
    // format strings are known by their addresses.
    println!("cargo:rustc-link-arg-bins=--no-pie");
}
