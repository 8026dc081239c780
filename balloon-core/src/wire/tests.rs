use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::chunks_v8::{self, Label, Responses, decode_lenient, decode_strict};
use super::pfn_array::{self, PfnArrays, TooHigh, TornNumber};
use crate::units::{FrameCount, FrameRange, Pfn};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn any_ranges(below: u64, longest: u64) -> impl Strategy<Value = Vec<FrameRange>> {
    let one = (0..below, 1..=longest)
        .prop_map(move |(start, count)| range(start, count.min(below - start)));
    proptest::collection::vec(one, 0..12)
}

#[test]
fn numbers_beyond_32_bits_are_handed_back() {
    let limit = pfn_array::LIMIT.get();
    let mut arrays = PfnArrays::new([
        range(7, 1),
        range(limit - 1, 3),
        range(limit * 2, 5),
        range(9, 1),
    ]);
    let mut buffer = [0; 64];
    assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::new(2)));
    let numbers = pfn_array::decode(&buffer[..8]).unwrap();
    assert!(numbers.map(Pfn::get).eq([7, limit - 1]));
    let before = buffer;
    assert_eq!(arrays.fill(&mut buffer), Err(TooHigh(range(limit, 2))));
    assert_eq!(arrays.fill(&mut buffer), Err(TooHigh(range(limit * 2, 5))));
    assert_eq!(buffer, before, "refused before a byte was written");
    assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::ONE));
    assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::ZERO));
}

#[test]
fn an_array_without_room_takes_nothing() {
    let mut arrays = PfnArrays::new([range(7, 2)]);
    assert_eq!(arrays.fill(&mut [0; 3]), Ok(FrameCount::ZERO));
    assert_eq!(arrays.peek(), Some(range(7, 2)));
    assert_eq!(arrays.fill(&mut [0; 11]), Ok(FrameCount::new(2)));
    assert_eq!(pfn_array::decode(&[0; 6]).err(), Some(TornNumber));
}

#[test]
fn no_frames_make_one_empty_response() {
    let mut responses = Responses::new(Label::default(), [] as [FrameRange; 0]);
    let mut buffer = [0xff; 8];
    assert_eq!(responses.fill(&mut buffer), Ok(8));
    let response = decode_strict(&buffer).unwrap();
    assert!(response.is_last());
    assert_eq!(response.chunks().count(), 0);
    assert_eq!(responses.fill(&mut buffer), Ok(0));
}

#[test]
fn a_response_needs_room_for_a_chunk() {
    let mut responses = Responses::new(Label::default(), [range(1, 2), range(8, 1)]);
    for size in [0, 7, 8, 23] {
        let mut buffer = vec![0xaa; size];
        assert_eq!(responses.fill(&mut buffer), Err(chunks_v8::TooSmall));
        assert!(buffer.iter().all(|&byte| byte == 0xaa));
    }
    let mut buffer = [0; 24];
    for (chunk, last) in [(range(1, 2), false), (range(8, 1), true)] {
        assert_eq!(responses.fill(&mut buffer), Ok(24));
        let response = decode_strict(&buffer).unwrap();
        assert_eq!(response.is_last(), last);
        assert!(response.chunks().eq([chunk]));
    }
}

#[test]
fn the_layout_is_that_of_the_proposal() {
    let label = Label {
        command: 2,
        id: 0x0403,
    };
    let mut buffer = [0xff; 32];
    let written = Responses::new(label, [range(0x1_2345, 0x200)]).fill(&mut buffer);
    assert_eq!(written, Ok(24));
    assert_eq!(
        buffer[..24],
        [
            2, 1, 3, 4, 16, 0, 0, 0, // command, last, id, length
            0, 0x50, 0x34, 0x12, 0, 0, 0, 0, // 0x12345 << 12
            0, 0, 0x20, 0, 0, 0, 0, 0, // 0x200 << 12
        ]
    );
}

#[test]
fn decoders_differ_where_the_layout_is_broken() {
    use chunks_v8::DecodeError::{NoFrames, NoHeader, ReservedBits, UnknownFlag, WrongLength};
    let mut good = [0; 40];
    let ranges = [range(1, 2), range(8, 1)];
    Responses::new(Label::default(), ranges)
        .fill(&mut good)
        .unwrap();
    let broken = |change: fn(&mut [u8; 40])| {
        let mut bytes = good;
        change(&mut bytes);
        let lenient: Vec<_> = decode_lenient(&bytes).unwrap().chunks().collect();
        (decode_strict(&bytes).unwrap_err(), lenient)
    };
    assert_eq!(broken(|b| b[1] = 3), (UnknownFlag, ranges.to_vec()));
    assert_eq!(broken(|b| b[4] = 33), (WrongLength, ranges.to_vec()));
    assert_eq!(broken(|b| b[7] = 255), (WrongLength, ranges.to_vec()));
    assert_eq!(broken(|b| b[4] = 16), (WrongLength, vec![ranges[0]]));
    assert_eq!(broken(|b| b[8] = 1), (ReservedBits, ranges.to_vec()));
    assert_eq!(broken(|b| b[25] |= 8), (ReservedBits, ranges.to_vec()));
    assert_eq!(broken(|b| b[17] = 0), (NoFrames, vec![ranges[1]]));
    assert_eq!(broken(|b| b[15] = 255), (NoFrames, vec![ranges[1]]));
    assert_eq!(decode_strict(&good[..39]).unwrap_err(), WrongLength);
    for decode in [decode_strict, decode_lenient] {
        assert_eq!(decode(&good[..7]).unwrap_err(), NoHeader);
    }
}

proptest! {
    #[test]
    fn pfn_arrays_round_trip(
        ranges in any_ranges(1 << 32, 400),
        size in 4..1100usize,
    ) {
        let mut arrays = PfnArrays::new(ranges.iter().copied());
        let mut buffer = vec![0; size];
        let mut found = Vec::new();
        loop {
            let count = arrays.fill(&mut buffer).unwrap().get();
            let count = usize::try_from(count).unwrap();
            if count == 0 {
                break;
            }
            found.extend(pfn_array::decode(&buffer[..count * 4]).unwrap());
            prop_assert!(count == size / 4 || arrays.peek().is_none(), "a short array");
        }
        let asked: Vec<_> = ranges.iter().flat_map(|range| range.frames()).collect();
        prop_assert_eq!(found, asked);
    }

    #[test]
    fn responses_round_trip(
        ranges in any_ranges(1 << 40, 1 << 40),
        size in 24..400usize,
        command: u8,
        id: u16,
    ) {
        let label = Label { command, id };
        let mut responses = Responses::new(label, ranges.iter().copied());
        let mut found = Vec::new();
        let mut buffer = vec![0; size];
        loop {
            let len = responses.fill(&mut buffer).unwrap();
            let response = decode_strict(&buffer[..len]).unwrap();
            let lenient = decode_lenient(&buffer[..len]).unwrap();
            prop_assert!(response.chunks().eq(lenient.chunks()));
            prop_assert_eq!(response.label(), label);
            found.extend(response.chunks());
            if response.is_last() {
                break;
            }
        }
        prop_assert_eq!(responses.fill(&mut buffer), Ok(0));
        prop_assert_eq!(found, ranges);
    }
}
