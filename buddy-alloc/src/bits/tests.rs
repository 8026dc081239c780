use alloc::vec;
use alloc::vec::Vec;

use super::*;

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed >> 11
}

#[test]
fn matches_a_vector_of_bools() {
    // A start off any word boundary, an end off it too.
    let (start, end) = (
        1_000_003u64,
        1_000_003 + if cfg!(miri) { 5000 } else { 300_000 },
    );
    let mut memory = vec![0; usize::try_from(words(start, end)).unwrap()];
    let mut bits = Bits::new(&mut memory, start, end).unwrap();
    let mut model: Vec<bool> = vec![false; usize::try_from(end - start).unwrap()];
    let mut seed = 7;
    for _ in 0..if cfg!(miri) { 30 } else { 1000 } {
        let order = (random(&mut seed) % 15) as u32;
        let item = (start + random(&mut seed) % (end - start)) & !((1 << order) - 1);
        if item < start || item + (1 << order) > end {
            continue;
        }
        let at = usize::try_from(item - start).unwrap();
        let part = &mut model[at..at + (1 << order)];
        assert_eq!(
            bits.count(item, order),
            part.iter().filter(|&&bit| bit).count() as u64
        );
        assert_eq!(bits.any(item, order), part.contains(&true));
        let value = random(&mut seed).is_multiple_of(3);
        bits.fill(item, order, value);
        part.fill(value);
        let from = start + random(&mut seed) % (end - start);
        let at = usize::try_from(from - start).unwrap();
        let next = model[at..]
            .iter()
            .position(|&bit| bit)
            .map(|skip| from + skip as u64);
        assert_eq!(bits.next_set(from), next);
        let run = next.map(|first| {
            let at = usize::try_from(first - start).unwrap();
            let len = model[at..]
                .iter()
                .position(|&bit| !bit)
                .unwrap_or(model.len() - at);
            (first, first + len as u64)
        });
        assert_eq!(bits.next_run(from, end), run);
    }
}

#[test]
fn tiers_above_empty_out_again() {
    let end = 1 << 19;
    let mut memory = vec![0; usize::try_from(words(0, end)).unwrap()];
    let mut bits = Bits::new(&mut memory, 0, end).unwrap();
    bits.fill(1 << 18, 18, true);
    assert!(bits.any(1 << 18, 18) && !bits.any(0, 18));
    assert_eq!(bits.next_set(3), Some(1 << 18));
    bits.fill(1 << 18, 17, false);
    assert_eq!(bits.next_set(3), Some((1 << 18) + (1 << 17)));
    bits.fill((1 << 18) + (1 << 17), 17, false);
    assert!(!bits.any(1 << 18, 18));
    assert_eq!(bits.next_set(0), None);
}
