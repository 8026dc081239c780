//! What a domain can read of others: memory that Xen gave it as it was.

use buddy_alloc::Zone;
use guest_rt::{PhysAddr, println, ram};
use qemu_guest::{free_frames, is_word};

/// Looks for the workload's pattern in all free memory, before anybody has written
/// to it, and tells in how many frames it stands.
pub(super) fn search(zone: &Zone<'_>) {
    let (mut frames, mut found) = (0_u64, 0_u64);
    for frame in free_frames(zone) {
        frames += 1;
        // SAFETY: a frame of RAM that is free, and nothing else runs yet.
        let has = unsafe { ram::frame_has(PhysAddr::new(frame.address()), is_word) };
        found += u64::from(has);
    }
    println!("@searched frames={frames} found={found}");
}
