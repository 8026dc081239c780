//! What each fuzz target does, as functions that `cargo test` replays over the corpus.

pub mod buddy_zone;
pub mod core_wire;
pub mod pod_program;
pub mod virtio_device;
pub mod xen_store;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The folder of a target's corpus, and its function.
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: &[Target] = &[
        ("buddy_zone", super::buddy_zone::run),
        ("core_wire", super::core_wire::run),
        ("pod_program", super::pod_program::run),
        ("virtio_device", super::virtio_device::run),
        ("xen_store", super::xen_store::run),
    ];

    #[test]
    fn every_corpus_replays() {
        for (name, run) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("corpus")
                .join(name);
            let mut files: Vec<_> = std::fs::read_dir(&folder)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            assert!(!files.is_empty(), "{name} has no corpus");
            for file in files {
                println!("{}", file.display());
                run(&std::fs::read(&file).unwrap());
            }
        }
    }
}
