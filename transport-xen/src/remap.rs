//! Large mappings of a PV guest after a restore.
//!
//! A restored PV domain has other machine frames, and seldom in 2 MiB blocks:
//! where the kernel's page tables named such a block by one entry, the new
//! frames may lie anywhere. The kernel comes back with small mappings, and maps
//! large again what is a block still; [`name_broken`] names the rest.
//!
//! Translated guests see nothing of it: Xen's own tables take the change.

use balloon_core::{FrameRange, Order, Pfn, RemapList};

use crate::units::Gmfn;

/// Names those of `large` that are no aligned block of machine frames any more.
///
/// `large` are the ranges that were mapped by large entries, `p2m` tells what is
/// behind a frame since the restore; a hole of the balloon breaks a block, too.
///
/// ```
/// use balloon_core::{FrameCount, FrameRange, Pfn, RemapList};
/// use transport_xen::{Gmfn, remap};
///
/// let block = |start| FrameRange::new(Pfn::new(start), FrameCount::new(512)).unwrap();
/// // Before: two blocks. After: the second one's last frame came from elsewhere.
/// let p2m = |pfn: Pfn| Some(Gmfn::new(if pfn.get() == 1023 { 7 } else { pfn.get() + 0x8000 }));
/// let mut list = RemapList::<4>::new();
/// remap::name_broken([block(0), block(512)], p2m, &mut list);
/// assert_eq!(list.front(), Some(block(512)));
/// ```
pub fn name_broken<const K: usize>(
    large: impl IntoIterator<Item = FrameRange>,
    p2m: impl Fn(Pfn) -> Option<Gmfn>,
    list: &mut RemapList<K>,
) {
    let broken = large.into_iter().filter(|&range| !is_block(range, &p2m));
    broken.for_each(|range| list.push(range));
}

fn is_block(range: FrameRange, p2m: impl Fn(Pfn) -> Option<Gmfn>) -> bool {
    let Some(base) = p2m(range.start()).map(Gmfn::get) else {
        return false;
    };
    base.is_multiple_of(Order::SUPERPAGE.frames().get())
        && base.checked_add(range.count().get()).is_some()
        && range
            .frames()
            .zip(base..)
            .all(|(pfn, machine)| p2m(pfn) == Some(Gmfn::new(machine)))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use balloon_core::FrameCount;

    use super::*;

    fn block(index: u64) -> FrameRange {
        FrameRange::new(Pfn::new(index * 512), FrameCount::new(512)).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
    fn a_kernel_remaps_what_a_restore_broke() {
        // Machine frames behind each frame before and after; 0 is a hole.
        let before: Vec<u64> = (0..8 * 512).map(|pfn| 0x10_0000 + pfn).collect();
        let mut after: Vec<u64> = before.iter().map(|machine| machine + 0x4000).collect();
        after.swap(512, 513); // out of order
        after[3 * 512 + 100] = 0; // a hole
        for machine in &mut after[5 * 512..6 * 512] {
            *machine += 1; // contiguous, not aligned
        }
        let p2m = |table: &[u64], pfn: Pfn| {
            let machine = table[usize::try_from(pfn.get()).unwrap()];
            (machine != 0).then(|| Gmfn::new(machine))
        };
        let mut list = RemapList::<2>::new();
        name_broken((0..8).map(block), |pfn| p2m(&before, pfn), &mut list);
        assert_eq!(list.front(), None);
        name_broken((0..8).map(block), |pfn| p2m(&after, pfn), &mut list);
        // The kernel's part, in pieces of 100 frames.
        let mut remapped = Vec::new();
        while let Some(range) = list.front() {
            let (head, _) = range.split_at(FrameCount::new(100));
            let head = head.unwrap_or(range);
            remapped.extend(head.frames().map(Pfn::get));
            list.acknowledge(head);
        }
        for broken in [1, 3, 5] {
            assert!(
                block(broken)
                    .frames()
                    .all(|pfn| remapped.contains(&pfn.get()))
            );
        }
        assert!(!remapped.contains(&0) && !remapped.contains(&(7 * 512)));
    }

    #[test]
    fn machine_frames_may_have_any_number() {
        let base = u64::MAX - 511;
        let mut list = RemapList::<1>::new();
        let p2m = |pfn: Pfn| Some(Gmfn::new(base.wrapping_add(pfn.get())));
        name_broken([block(0)], p2m, &mut list);
        assert_eq!(list.front(), Some(block(0)), "no block of what there is");
    }
}
