use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::storage::Cells;

/// The list against a plain sequence: same order, same head, same first of each class.
fn check(list: &List, nodes: &Nodes<'_>, model: &VecDeque<(u32, bool)>) {
    let found: Vec<u32> = list.iter(*nodes).collect();
    let expected: Vec<u32> = model.iter().map(|&(pair, _)| pair).collect();
    assert_eq!(found, expected);
    assert_eq!(list.first(), expected.first().copied().unwrap_or(NONE));
    for any_populated in [false, true] {
        let first = model
            .iter()
            .find(|&&(_, class)| class == any_populated)
            .map_or(NONE, |&(pair, _)| pair);
        assert_eq!(
            list.first_of(nodes, any_populated),
            first,
            "first of class {any_populated} in {model:?}"
        );
    }
}

fn run(pairs: u32, steps: impl Iterator<Item = u32>) {
    let mut memory = vec![0; pairs as usize];
    let nodes = Nodes::new(Cells::new(&mut memory));
    let mut list = List::EMPTY;
    let mut model = VecDeque::new();
    for step in steps {
        let pair = step % pairs;
        if let Some(place) = model.iter().position(|&(p, _)| p == pair) {
            list.remove(&nodes, pair, nodes.get(pair));
            model.remove(place);
        } else {
            let any_populated = (step / pairs) % 2 == 1;
            list.push(&nodes, pair, Node::free_block(1, any_populated));
            model.push_front((pair, any_populated));
        }
        check(&list, &nodes, &model);
    }
}

#[test]
fn matches_a_plain_sequence_on_random_programs() {
    for pairs in [1, 2, 3, 5, 8, 13, 40] {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(pairs);
        let steps = core::iter::repeat_with(move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            u32::try_from(seed >> 32).unwrap()
        });
        run(pairs, steps.take(if cfg!(miri) { 60 } else { 20_000 }));
    }
}

#[test]
fn matches_a_plain_sequence_on_every_removal_from_every_pattern() {
    // All class patterns of up to nine nodes, then removal of every pair of nodes.
    let longest = if cfg!(miri) { 3 } else { 9 };
    for len in 1..=longest {
        for pattern in 0..1u32 << len {
            for first in 0..len {
                for second in 0..len {
                    let pushes = (0..len).map(|pair| pair + len * ((pattern >> pair) & 1));
                    run(
                        len,
                        pushes
                            .chain([first])
                            .chain((second != first).then_some(second)),
                    );
                }
            }
        }
    }
}

/// The last link value is a pair like any other: no value doubles as "none".
#[test]
fn the_all_ones_link_is_no_sentinel() {
    let all_ones = (1u32 << crate::node::LINK_BITS) - 1;
    let node = Node::free_block(3, true)
        .with_prev(all_ones)
        .with_next(all_ones);
    assert_eq!((node.prev(), node.next()), (all_ones, all_ones));
    assert_eq!(node.slot(false), crate::node::Slot::Free(3));
    assert!(node.is_populated());
}
