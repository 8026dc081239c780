use alloc::vec;

use super::*;
use crate::bits;

#[test]
fn the_densest_region_is_within_an_eighth() {
    let (order, number) = (9, 50u64);
    let mut dense = vec![0; usize::try_from(bits::words(0, number)).unwrap()];
    let dense = Bits::new(&mut dense, 0, number).unwrap();
    let mut words = vec![0; usize::try_from(number * WORDS).unwrap()];
    let mut regions = Regions::new(&mut words, dense, 0, order);
    let mut model = vec![0u64; usize::try_from(number).unwrap()];
    let mut seed = 99u64;
    for step in 0..if cfg!(miri) { 500 } else { 50_000 } {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let region = seed % number;
        let count = &mut model[usize::try_from(region).unwrap()];
        let amount = (seed >> 20) % 60;
        // Phases of mostly growing and mostly shrinking.
        if (seed >> 40).is_multiple_of(4) == (step / 5000 % 2 == 0) {
            let amount = amount.min(*count);
            *count -= amount;
            regions.taken(region, amount, amount);
        } else {
            let amount = amount.min(512 - *count);
            *count += amount;
            regions.freed(region, amount, amount);
        }
        let best = *model.iter().max().unwrap();
        match regions.densest() {
            None => assert_eq!(best, 0),
            Some(found) => {
                let found = model[usize::try_from(found).unwrap()];
                assert!(found > 0 && found + 64 >= best, "{found} against {best}");
            }
        }
        let first = model
            .iter()
            .position(|&count| count > 0)
            .map(|place| place as u64);
        assert_eq!(regions.next_dense(0), first);
    }
}
