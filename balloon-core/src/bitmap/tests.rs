#![expect(clippy::cast_possible_truncation, reason = "tests run on 64-bit hosts")]

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// The large ones are too many bits for an interpreter.
const SIZES: &[u64] = if cfg!(miri) {
    &[1, 63, 64, 65]
} else {
    &[1, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_145]
};

#[test]
fn storage_is_small() {
    assert_eq!(words(64), 2);
    let gib = 1 << 18;
    assert_eq!(words(gib), (gib >> 6) + 1);
}

#[test]
fn too_little_storage_is_no_bitmap() {
    assert!(Bitmap::new(&mut [0; 3], 256).is_none());
}

proptest! {
    /// Against a vector of booleans, at sizes around word and group bounds.
    #[test]
    fn agrees_with_a_plain_vector(
        size in prop::sample::select(SIZES),
        ops in prop::collection::vec((any::<bool>(), any::<u32>(), 1..9000u64), 1..24),
        from: u32,
    ) {
        let mut storage = vec![0; usize::try_from(words(size)).unwrap()];
        let mut map = Bitmap::new(&mut storage, size).unwrap();
        let mut model = vec![false; usize::try_from(size).unwrap()];
        for (set, start, len) in ops {
            let start = u64::from(start) % size;
            let end = (start + len).min(size);
            let span = &mut model[start as usize..end as usize];
            prop_assert_eq!(map.any(start, end), span.contains(&true));
            prop_assert_eq!(map.all(start, end), !span.contains(&false));
            let first = span.iter().position(|&bit| bit).map(|at| {
                let ones = span[at..].iter().take_while(|&&bit| bit).count();
                (start + at as u64, start + (at + ones) as u64)
            });
            prop_assert_eq!(map.next_run_before(start, end), first);
            span.fill(set);
            if set { map.set(start, end) } else { map.clear(start, end) }
        }
        let mut bit = u64::from(from) % size;
        let mut runs = Vec::new();
        while let Some((start, end)) = map.next_run_before(bit, size) {
            prop_assert_eq!(map.next(bit, size), Some(start));
            runs.extend(start..end);
            bit = end;
        }
        let expected: Vec<u64> =
            (u64::from(from) % size..size).filter(|&bit| model[bit as usize]).collect();
        prop_assert_eq!(runs, expected);
    }
}
