//! A small random generator and random actions.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared test support"
)]

use buddy_alloc::testing::Action;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Small numbers more often than large ones.
fn skewed(random: &mut Random, bits: u64) -> u16 {
    let bits = random.below(bits + 1);
    u16::try_from(random.below(1 << bits)).unwrap()
}

pub fn random_action(random: &mut Random) -> Action {
    let at = u32::try_from(random.below(1 << 32)).unwrap();
    let count = skewed(random, 11);
    let order = u8::try_from(random.below(12).saturating_sub(random.below(12))).unwrap();
    let number = u8::try_from(random.below(256)).unwrap();
    let nth = skewed(random, 16);
    let wanted = skewed(random, 13);
    let ranges = u8::try_from(skewed(random, 7)).unwrap();
    match random.below(43) {
        0..=7 => Action::Allocate {
            order,
            preference: number,
        },
        8 | 9 => Action::AllocateRange {
            count,
            align: order,
            preference: number,
        },
        10 => Action::AllocateAt { at, order },
        11 => Action::AllocateRangeAt { at, count },
        12..=17 => Action::Free { nth },
        18 => Action::FreeWild { at, order },
        19 => Action::FreeRange { at, count },
        20 => Action::FreeUnpopulated { at, count },
        21 => Action::Split { nth, into: order },
        22 => Action::Reserve { at, count },
        23 => Action::Unreserve {
            at,
            count,
            backing: number,
        },
        24 | 25 => Action::Add {
            at,
            count,
            backing: number,
        },
        26 | 27 => {
            let below = (number.is_multiple_of(3)).then_some(at);
            Action::Take {
                wanted,
                ranges,
                unit: order,
                preference: number / 3,
                only: nth.is_multiple_of(3),
                below,
            }
        }
        28 => Action::TakeAt { at, count },
        29 | 30 => Action::Put {
            nth,
            backing: number,
        },
        31 => Action::PutUnchanged { nth },
        32 | 33 => Action::Store {
            nth,
            bulk: number.is_multiple_of(2),
        },
        34 | 35 => Action::Recall {
            wanted,
            ranges,
            unit: if number % 3 == 0 { order } else { 0 },
            bulk: number.is_multiple_of(2),
        },
        36 | 37 => Action::Isolate {
            order,
            populated: count,
        },
        38 => Action::IsolateAt { at, order },
        39 | 40 => Action::AllocateBatch {
            wanted,
            ranges,
            unit: order,
            preference: number,
        },
        41 => Action::FreeBatch { nth, ranges, at },
        _ => Action::Unisolate {
            nth,
            backing: number,
        },
    }
}
