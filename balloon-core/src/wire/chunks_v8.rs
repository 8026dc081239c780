//! Chunks of the proposed `VIRTIO_BALLOON_F_CHUNK_TRANSFER`, version 8.
//!
//! Source: the patch series "virtio-balloon: extensions for fast (de)inflating
//! & fast live migration", version 8, March 2017, which was never merged. All
//! fields are little-endian. A response is one buffer, header and chunks
//! without a gap:
//!
//! ```text
//!  offset 0        1       2       4          8              16             24
//!        ┌────────┬───────┬───────┬──────────┬──────────────┬──────────────┬──
//!        │command │ flag  │  id   │ data len │ base of #0   │ size of #0   │ …
//!        └────────┴───────┴───────┴──────────┴──────────────┴──────────────┴──
//!                  1: last         bytes behind the header
//! ```
//!
//! Base and size count frames of 4 KiB in the upper 52 bits; the 12 bits below
//! are reserved and zero. Which command and id mean what is between the two
//! ends.
//!
//! ```
//! use balloon_core::wire::chunks_v8::{Label, Responses, decode_strict};
//! use balloon_core::{FrameCount, FrameRange, Pfn};
//!
//! let unused = [FrameRange::new(Pfn::new(0x8_0000), FrameCount::new(512)).unwrap()];
//! let mut responses = Responses::new(Label { command: 1, id: 7 }, unused);
//! let mut buffer = [0; 64];
//! let len = responses.fill(&mut buffer)?;
//! assert_eq!(len, 8 + 16);
//! let response = decode_strict(&buffer[..len]).unwrap();
//! assert!(response.is_last());
//! assert!(response.chunks().eq(unused));
//! # Ok::<(), balloon_core::wire::chunks_v8::TooSmall>(())
//! ```

use core::fmt;

use super::Pieces;
use crate::units::{FRAME_SHIFT, FrameCount, FrameRange, Pfn};

/// Bytes of the header.
pub const HEADER_SIZE: usize = 8;

/// Bytes of one chunk.
#[doc(alias = "balloon_page_chunk")]
pub const CHUNK_SIZE: usize = CHUNK_LEN as usize;

const CHUNK_LEN: u32 = 16;

/// Every bit of the flag byte that says something.
const LAST: u8 = 1;
const RESERVED: u64 = (1 << FRAME_SHIFT) - 1;

/// What a response is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Label {
    /// The kind of response.
    pub command: u8,
    /// Which request it answers.
    pub id: u16,
}

/// The buffer has no room for a header and one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooSmall;

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the buffer has no room for a header and one chunk")
    }
}

impl core::error::Error for TooSmall {}

/// Frames as a sequence of responses.
#[derive(Clone, Debug)]
pub struct Responses<I> {
    label: Label,
    pieces: Pieces<I>,
    done: bool,
}

impl<I: Iterator<Item: Into<FrameRange>>> Responses<I> {
    /// The frames of these ranges, one chunk for each.
    pub fn new(label: Label, ranges: impl IntoIterator<IntoIter = I>) -> Self {
        Self {
            label,
            pieces: Pieces::new(ranges.into_iter()),
            done: false,
        }
    }

    /// Writes the next response; how many bytes, zero after the last.
    ///
    /// No frames at all make one response without chunks.
    ///
    /// # Errors
    /// [`TooSmall`]; nothing was written.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TooSmall> {
        if self.done {
            return Ok(0);
        }
        let (header, data) = buffer
            .split_first_chunk_mut::<HEADER_SIZE>()
            .ok_or(TooSmall)?;
        let (chunks, _) = data.as_chunks_mut::<CHUNK_SIZE>();
        if chunks.is_empty() && self.pieces.peek().is_some() {
            return Err(TooSmall);
        }
        let mut len = 0u32;
        for chunk in chunks {
            let Some(longer) = len.checked_add(CHUNK_LEN) else {
                break;
            };
            let Some(range) = self.pieces.take(FrameCount::MAX) else {
                break;
            };
            *chunk = encode(range);
            len = longer;
        }
        self.done = self.pieces.peek().is_none();
        let Label { command, id } = self.label;
        let flag = if self.done { LAST } else { 0 };
        let [id_low, id_high] = id.to_le_bytes();
        let [a, b, c, d] = len.to_le_bytes();
        *header = [command, flag, id_low, id_high, a, b, c, d];
        Ok(HEADER_SIZE + len as usize)
    }
}

/// A buffer is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DecodeError {
    /// It is shorter than a header.
    NoHeader,
    /// A flag that nobody knows.
    UnknownFlag,
    /// The header's length is not that of the chunks that follow.
    WrongLength,
    /// A reserved bit of a chunk is set.
    ReservedBits,
    /// A chunk is empty or ends beyond [`Pfn::LIMIT`].
    NoFrames,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHeader => "the response is shorter than its header",
            Self::UnknownFlag => "the response has an unknown flag",
            Self::WrongLength => "the response has another length than it says",
            Self::ReservedBits => "a chunk has reserved bits set",
            Self::NoFrames => "a chunk is empty or beyond all frames",
        })
    }
}

impl core::error::Error for DecodeError {}

/// A decoded response.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    label: Label,
    last: bool,
    chunks: &'a [[u8; CHUNK_SIZE]],
}

impl<'a> Response<'a> {
    /// What it is about.
    #[must_use]
    pub const fn label(&self) -> Label {
        self.label
    }

    /// Whether no further response follows.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.last
    }

    /// The frames, chunk by chunk.
    pub fn chunks(&self) -> impl Iterator<Item = FrameRange> + use<'a> {
        self.chunks.iter().filter_map(|&chunk| frames(chunk).ok())
    }
}

/// Decodes what [`Responses`] writes and nothing else.
///
/// # Errors
/// Whatever is not exactly as the layout has it.
pub fn decode_strict(buffer: &[u8]) -> Result<Response<'_>, DecodeError> {
    let (response, flag, len) = decode(buffer)?;
    if flag & !LAST != 0 {
        return Err(DecodeError::UnknownFlag);
    }
    let size = HEADER_SIZE + response.chunks.as_flattened().len();
    if buffer.len() != size || Ok(size - HEADER_SIZE) != usize::try_from(len) {
        return Err(DecodeError::WrongLength);
    }
    for &chunk in response.chunks {
        if words(chunk).iter().any(|word| word & RESERVED != 0) {
            return Err(DecodeError::ReservedBits);
        }
        frames(chunk)?;
    }
    Ok(response)
}

/// Decodes as much as makes sense, for peers of another version or bad faith.
///
/// Unknown flags, reserved bits, and trailing bytes are ignored, a length beyond
/// the buffer ends with it, and chunks without frames are left out.
///
/// # Errors
/// [`DecodeError::NoHeader`] alone.
pub fn decode_lenient(buffer: &[u8]) -> Result<Response<'_>, DecodeError> {
    let (mut response, _, len) = decode(buffer)?;
    let most = usize::try_from(len).unwrap_or(usize::MAX) / CHUNK_SIZE;
    response.chunks = response.chunks.get(..most).unwrap_or(response.chunks);
    Ok(response)
}

/// The parts: a response with every whole chunk there is, the flag byte, and
/// the length the header states.
fn decode(buffer: &[u8]) -> Result<(Response<'_>, u8, u32), DecodeError> {
    let (header, data) = buffer
        .split_first_chunk::<HEADER_SIZE>()
        .ok_or(DecodeError::NoHeader)?;
    let &[command, flag, id_low, id_high, a, b, c, d] = header;
    let (chunks, _) = data.as_chunks();
    let response = Response {
        label: Label {
            command,
            id: u16::from_le_bytes([id_low, id_high]),
        },
        last: flag & LAST != 0,
        chunks,
    };
    Ok((response, flag, u32::from_le_bytes([a, b, c, d])))
}

fn encode(range: FrameRange) -> [u8; CHUNK_SIZE] {
    // Both are below 2^40 frames: the shift loses nothing.
    let base = range.start().get() << FRAME_SHIFT;
    let size = range.count().get() << FRAME_SHIFT;
    (u128::from(size) << 64 | u128::from(base)).to_le_bytes()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves of 128 bits"
)]
const fn words(chunk: [u8; CHUNK_SIZE]) -> [u64; 2] {
    let both = u128::from_le_bytes(chunk);
    [both as u64, (both >> 64) as u64]
}

fn frames(chunk: [u8; CHUNK_SIZE]) -> Result<FrameRange, DecodeError> {
    let [base, size] = words(chunk).map(|word| word >> FRAME_SHIFT);
    FrameRange::new(Pfn::new(base), FrameCount::new(size)).ok_or(DecodeError::NoFrames)
}
