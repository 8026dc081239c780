//! The fewest moves, computed in two ways that know nothing of the plan.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use proptest::prelude::*;

/// Holes and free frames of a block; the rest is in use.
pub(super) type Counts = (u64, u64);

/// Most blocks that can be completed, and the fewest moves for that, over all
/// sets of blocks: each must lose its holes to free frames outside the set.
pub(super) fn by_subsets(blocks: &[Counts], size: u64) -> (u64, u64) {
    let mut best = (0, 0);
    for set in 0..1u32 << blocks.len() {
        let inside = |at: &usize| set >> at & 1 == 1;
        let (mut holes, mut room, mut feasible) = (0, 0, true);
        for (at, &(h, f)) in blocks.iter().enumerate() {
            if inside(&at) {
                feasible &= h + f == size;
                holes += h;
            } else {
                room += f;
            }
        }
        let count = u64::from(set.count_ones());
        if feasible && holes <= room && (count > best.0 || (count == best.0 && holes < best.1)) {
            best = (count, holes);
        }
    }
    best
}

/// The same by trying every sequence of moves, shortest first.
fn by_search(blocks: &[Counts], size: u64) -> (u64, u64) {
    let whole = |b: &Vec<Counts>| b.iter().filter(|&&(_, f)| f == size).count() as u64;
    let mut best = (whole(&blocks.to_vec()), 0);
    let mut seen = BTreeSet::from([blocks.to_vec()]);
    let mut border = Vec::from([blocks.to_vec()]);
    let mut moves = 0;
    while !border.is_empty() {
        moves += 1;
        let mut next = Vec::new();
        for state in border {
            for from in 0..state.len() {
                for to in 0..state.len() {
                    if from == to || state[from].0 == 0 || state[to].1 == 0 {
                        continue;
                    }
                    let mut after = state.clone();
                    after[from] = (after[from].0 - 1, after[from].1 + 1);
                    after[to] = (after[to].0 + 1, after[to].1 - 1);
                    if seen.insert(after.clone()) {
                        if whole(&after) > best.0 {
                            best = (whole(&after), moves);
                        }
                        next.push(after);
                    }
                }
            }
        }
        border = next;
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The quick oracle is right: no sequence of moves does better.
    #[test]
    fn subsets_agree_with_searching_all_sequences(
        kinds in prop::collection::vec((0..=3u64, 0..=3u64), 1..=4),
    ) {
        let size = 3;
        let blocks: Vec<Counts> =
            kinds.iter().map(|&(h, f)| (h, f.min(size - h))).collect();
        prop_assert_eq!(by_subsets(&blocks, size), by_search(&blocks, size));
    }
}
