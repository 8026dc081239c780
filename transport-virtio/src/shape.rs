//! What one request may hold, and what it looks like.

use balloon_core::wire::chunks_v8::Responses;
use balloon_core::wire::pfn_array::{self, NUMBER_SIZE, PfnArrays};
use balloon_core::{FrameCount, Kind, Limits, Pfn, Run};

use crate::protocol::chunks::{CHUNKS_PER_RESPONSE, Command};
use crate::protocol::options::DriverOptions;
use crate::protocol::wire::BULK_RUN;
use crate::protocol::wire::MAX_BYTES;
use crate::queues::RequestId;

/// Room for the page numbers of one request.
pub(crate) type Encoded = [u8; MAX_BYTES * 2];

/// What one request of page numbers may hold.
pub(crate) fn inflate_limits(requests: usize, options: &DriverOptions) -> Limits {
    // A queue of one descriptor still has to carry something.
    let descriptors = if options.host_superpages() && requests > 1 {
        2
    } else {
        1
    };
    let runs = pfn_array::PER_BUFFER * descriptors;
    let frames = FrameCount::new(runs as u64);
    Limits {
        frames,
        runs,
        run: frames,
        in_flight: requests / descriptors,
        below: pfn_array::LIMIT,
    }
}

/// Whether a request keeps to its limits.
pub(crate) fn fits(runs: &[Run], limits: Limits) -> bool {
    let frames = |sum: FrameCount, run: &Run| sum.saturating_add(run.count());
    (1..=limits.runs).contains(&runs.len())
        && runs.iter().fold(FrameCount::ZERO, frames) <= limits.frames
        && runs
            .iter()
            .all(|run| run.count() <= limits.run && run.range().end() <= limits.below)
}

/// The frames as page numbers, if all of them have one and fit.
pub(crate) fn page_numbers<'a>(runs: &[Run], buffer: &'a mut Encoded) -> Option<&'a [u8]> {
    let mut arrays = PfnArrays::new(runs.iter().copied());
    let count = arrays.fill(buffer).ok()?;
    let whole = arrays.peek().is_none();
    let len = usize::try_from(count.get()).ok()? * NUMBER_SIZE;
    buffer.get(..len).filter(|_| whole)
}

/// What one request of ranges may hold, given so many descriptors, and `ranges`
/// to each if that is not zero.
///
/// Without, two requests share the descriptors, so that the device has one to
/// work on while the other is answered and refilled.
pub(crate) fn range_limits(descriptors: usize, ranges: usize) -> Option<Limits> {
    let (runs, in_flight) = match (descriptors, ranges) {
        (0, _) => return None,
        (1, 0) => (1, 1),
        (_, 0) => (descriptors / 2, 2),
        (_, _) => (ranges, descriptors),
    };
    Some(Limits {
        // No chain may be longer than 4 GiB in all (virtio 1.2, 2.7.5.2).
        frames: BULK_RUN,
        runs,
        run: BULK_RUN,
        in_flight,
        below: Pfn::LIMIT,
    })
}

/// What one hint may hold: QEMU looks at the first range of a request only, and
/// a command must always find room.
pub(crate) fn hint_limits(descriptors: usize) -> Option<Limits> {
    let one = range_limits(1, 0)?;
    let in_flight = descriptors.checked_sub(1).filter(|&left| left > 0)?;
    Some(Limits { in_flight, ..one })
}

/// What one response of `CHUNK_TRANSFER` may hold.
pub(crate) fn chunk_limits(requests: usize) -> Limits {
    Limits {
        frames: FrameCount::new(Run::MAX.get().saturating_mul(CHUNKS_PER_RESPONSE as u64)),
        runs: CHUNKS_PER_RESPONSE,
        run: Run::MAX,
        in_flight: requests,
        below: Pfn::LIMIT,
    }
}

/// The frames as one response, if they fit.
pub(crate) fn response<'a>(
    id: RequestId,
    runs: &[Run],
    buffer: &'a mut Encoded,
) -> Option<&'a [u8]> {
    let command = match id.kind {
        Kind::Deflate => Command::Deflate,
        _ => Command::Inflate,
    };
    let buffer = buffer.get_mut(..MAX_BYTES)?;
    let mut responses = Responses::new(command.label(id.slot.get()), runs.iter().copied());
    let len = responses.fill(buffer).ok()?;
    let whole = responses.fill(&mut []) == Ok(0);
    buffer.get(..len).filter(|_| whole)
}
