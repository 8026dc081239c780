//! The wire shapes of `balloon-core`, both ways.
//!
//! The input is read twice: as bytes from a peer, which every decoder must
//! survive, and as frames to encode, which every decoder must give back.

use arbitrary::{Arbitrary, Unstructured};
use balloon_core::wire::chunks_v8::{Label, Responses, decode_lenient, decode_strict};
use balloon_core::wire::pfn_array::{self, PfnArrays, TooHigh};
use balloon_core::{FrameCount, FrameRange, Pfn};

/// Frames to encode and how.
#[derive(Arbitrary, Debug)]
struct Input {
    ranges: Vec<(u64, u64)>,
    buffer: u16,
    command: u8,
    id: u16,
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    decode(data);
    let mut rest = Unstructured::new(data);
    if let Ok(input) = Input::arbitrary(&mut rest) {
        encode(&input);
    }
}

fn decode(data: &[u8]) {
    if let Ok(numbers) = pfn_array::decode(data) {
        let mut copy = vec![0; data.len()];
        let singles = numbers.filter_map(FrameRange::single);
        let count = PfnArrays::new(singles).fill(&mut copy);
        assert_eq!(count, Ok(FrameCount::new(data.len() as u64 / 4)));
        assert_eq!(copy, data);
    }
    let lenient = decode_lenient(data);
    assert_eq!(lenient.is_ok(), data.len() >= 8);
    let Ok(strict) = decode_strict(data) else {
        return;
    };
    let lenient = lenient.expect("the strict decoder took it");
    assert!(lenient.chunks().eq(strict.chunks()));
    assert_eq!(lenient.label(), strict.label());
    let mut copy = vec![0; data.len()];
    let written = Responses::new(strict.label(), strict.chunks()).fill(&mut copy);
    assert_eq!(written, Ok(data.len()));
    // The copy knows of no response that follows.
    copy[1] = u8::from(strict.is_last());
    assert_eq!(copy, data);
}

fn encode(input: &Input) {
    let frames = |&(start, count): &(u64, u64)| {
        // Half of the starts below what 32 bits can name.
        let limit = if start & 1 == 0 {
            pfn_array::LIMIT
        } else {
            Pfn::LIMIT
        };
        let start = (start >> 1) % limit.get();
        let left = Pfn::LIMIT.get() - start;
        FrameRange::new(Pfn::new(start), FrameCount::new(count % left + 1))
    };
    let ranges = input.ranges.iter().take(16).filter_map(frames);
    let ranges: Vec<FrameRange> = ranges.collect();
    let mut buffer = vec![0; usize::from(input.buffer % 2048) + 24];
    pfn_arrays(&ranges, &mut buffer);
    let label = Label {
        command: input.command,
        id: input.id,
    };
    responses(&ranges, label, &mut buffer);
}

/// Frames of long ranges looked at, to keep one input short: two superpages.
const ENOUGH: u64 = 1100;

fn pfn_arrays(ranges: &[FrameRange], buffer: &mut [u8]) {
    let short = |range: &FrameRange| range.split_at(FrameCount::new(ENOUGH)).0;
    let ranges: Vec<FrameRange> = ranges.iter().filter_map(short).collect();
    let mut arrays = PfnArrays::new(ranges.iter().copied());
    let mut found = Vec::new();
    let mut refused = 0;
    while arrays.peek().is_some() {
        match arrays.fill(buffer) {
            Ok(count) => {
                let bytes = usize::try_from(count.get() * 4).expect("they fit the buffer");
                found.extend(pfn_array::decode(&buffer[..bytes]).expect("whole numbers"));
            }
            Err(TooHigh(range)) => {
                assert!(range.start() >= pfn_array::LIMIT);
                refused += range.count().get();
            }
        }
    }
    let all = ranges.iter().flat_map(|range| range.frames());
    let (low, high): (Vec<Pfn>, Vec<Pfn>) = all.partition(|&pfn| pfn < pfn_array::LIMIT);
    assert_eq!(found, low);
    assert_eq!(refused, high.len() as u64);
}

fn responses(ranges: &[FrameRange], label: Label, buffer: &mut [u8]) {
    let mut responses = Responses::new(label, ranges.iter().copied());
    let mut found = Vec::new();
    loop {
        let len = responses.fill(buffer).expect("room for a chunk");
        let response = decode_strict(&buffer[..len]).expect("what we wrote");
        assert_eq!(response.label(), label);
        found.extend(response.chunks());
        if response.is_last() {
            break;
        }
    }
    assert_eq!(responses.fill(buffer), Ok(0));
    assert_eq!(found, ranges);
}
