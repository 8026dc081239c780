//! The guest's work: memory full of a pattern that can be checked.
//!
//! Every frame the workload holds contains copies of a word that depends on the
//! frame's number: a frame that was discarded, swapped with another, or given
//! to somebody else does not pass for itself. Kept frames lie in whole 2 MiB
//! groups spread evenly over memory, so that free memory is in many pieces.

use buddy_alloc::{AllocError, Frame, FrameCount, FrameRange, FreeError, Order};
use buddy_alloc::{Preference, Zone};
use thiserror::Error;

use crate::frame_set::FrameSet;
use crate::options::Percent;

/// Access to frames the workload holds.
pub trait Ram {
    /// Fills a frame with copies of `word`.
    fn fill(&mut self, frame: Frame, word: u64);
    /// Whether a frame holds nothing but copies of `word`.
    fn holds(&self, frame: Frame, word: u64) -> bool;
}

/// The word a frame is full of: different for every frame, never zero.
#[must_use]
pub const fn word_of(frame: Frame) -> u64 {
    (frame.get() + 1).wrapping_mul(FACTOR)
}

/// An odd one maps different numbers to different words.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Whether a word is that of some frame, in a machine of less than 64 TiB.
#[must_use]
pub const fn is_word(word: u64) -> bool {
    /// Undoes the multiplication.
    const INVERSE: u64 = {
        let mut inverse = FACTOR;
        // Each round doubles the bits that are right, of which there are 3.
        let mut round = 0;
        while round < 5 {
            inverse = inverse.wrapping_mul(2_u64.wrapping_sub(FACTOR.wrapping_mul(inverse)));
            round += 1;
        }
        inverse
    };
    let frame = word.wrapping_mul(INVERSE);
    frame != 0 && frame < 1 << 34
}

/// What a fill did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Frames newly taken and written.
    pub frames: FrameCount,
}

/// What freeing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Frames given back to the allocator.
    pub frames: FrameCount,
    /// Frames still held.
    pub kept: FrameCount,
}

/// Frames that do not hold what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("bad={bad} of={of} first={}", first.get())]
pub struct Damage {
    /// How many.
    pub bad: u64,
    /// Of how many looked at.
    pub of: u64,
    /// The first of them.
    pub first: Frame,
}

/// Frames that are looked at one after the other.
#[derive(Debug, Default)]
pub(crate) struct Check {
    of: u64,
    bad: u64,
    first: Option<Frame>,
}

impl Check {
    /// One more, intact or not.
    pub(crate) fn add(&mut self, frame: Frame, intact: bool) {
        self.of += 1;
        if !intact {
            self.bad += 1;
            self.first.get_or_insert(frame);
        }
    }

    /// How many there were, or what is wrong with them.
    pub(crate) fn verdict(self) -> Result<FrameCount, Damage> {
        let Self { of, bad, first } = self;
        match first {
            None => Ok(FrameCount::new(of)),
            Some(first) => Err(Damage { bad, of, first }),
        }
    }
}

/// The allocator broke its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// It has free frames and hands none out, or the like.
    #[error("allocation failed: {0}")]
    Allocate(AllocError),
    /// It does not take back what it handed out.
    #[error("freeing failed: {0}")]
    Free(FreeError),
}

/// The frames the workload holds, and how many it means to keep.
#[derive(Debug)]
pub struct Workload<'m> {
    held: FrameSet<'m>,
    keep: Percent,
}

/// Frames of a group that is kept or freed as a whole, as an order.
const GROUP: Order = Order::MIB_2;

impl<'m> Workload<'m> {
    /// A workload that holds nothing; `held` is empty.
    #[must_use]
    pub const fn new(held: FrameSet<'m>, keep: Percent) -> Self {
        Self { held, keep }
    }

    /// Frames held.
    #[must_use]
    pub const fn held(&self) -> FrameCount {
        self.held.count()
    }

    /// Takes every free frame and writes its pattern.
    ///
    /// # Errors
    /// When the allocator has free frames but hands none out.
    pub fn fill(
        &mut self,
        zone: &mut Zone<'_>,
        ram: &mut impl Ram,
    ) -> Result<Filled, WorkloadError> {
        let before = self.held.count().get();
        for order in Order::all().rev() {
            loop {
                match zone.allocate(order, Preference::Any) {
                    Ok(start) => {
                        let block = FrameRange::block(start, order);
                        for number in block.start().get()..block.end().get() {
                            ram.fill(Frame::new(number), word_of(Frame::new(number)));
                        }
                        self.held.insert(block);
                    }
                    Err(AllocError::Exhausted | AllocError::TooLarge) => break,
                    Err(error) => return Err(WorkloadError::Allocate(error)),
                }
            }
        }
        if zone.free_frames() != FrameCount::ZERO {
            return Err(WorkloadError::Allocate(AllocError::Exhausted));
        }
        Ok(Filled {
            frames: FrameCount::new(self.held.count().get() - before),
        })
    }

    /// Frees all but the share to keep.
    ///
    /// # Errors
    /// When the allocator refuses frames it handed out.
    pub fn free(&mut self, zone: &mut Zone<'_>) -> Result<Freed, WorkloadError> {
        let before = self.held.count().get();
        let mut from = Frame::new(0);
        while let Some(run) = self.held.next_run(from) {
            from = run.end();
            let mut at = run.start();
            while at < run.end() {
                let next = self.group_border(at, run.end());
                if !self.keeps(at) {
                    let part = FrameRange::between(at, next);
                    zone.free_range(part).map_err(WorkloadError::Free)?;
                    self.held.remove(part);
                }
                at = next;
            }
        }
        let kept = self.held.count();
        Ok(Freed {
            frames: FrameCount::new(before - kept.get()),
            kept,
        })
    }

    /// Frees every second frame of what it does not mean to keep: free memory
    /// without two neighbours.
    ///
    /// # Errors
    /// When the allocator refuses frames it handed out.
    pub fn scatter(&mut self, zone: &mut Zone<'_>) -> Result<Freed, WorkloadError> {
        let before = self.held.count().get();
        let mut from = Frame::new(0);
        while let Some(run) = self.held.next_run(from) {
            from = run.end();
            let frames = (run.start().get()..run.end().get()).map(Frame::new);
            for frame in frames.filter(|frame| frame.get() % 2 == 0) {
                if !self.keeps(frame) {
                    let part = FrameRange::block(frame, Order::FRAME);
                    zone.free_range(part).map_err(WorkloadError::Free)?;
                    self.held.remove(part);
                }
            }
        }
        let kept = self.held.count();
        Ok(Freed {
            frames: FrameCount::new(before - kept.get()),
            kept,
        })
    }

    /// Checks every frame held; the number of them.
    ///
    /// # Errors
    /// When some do not hold their pattern.
    pub fn verify(&self, ram: &impl Ram) -> Result<FrameCount, Damage> {
        let mut check = Check::default();
        for run in self.held.runs() {
            for frame in (run.start().get()..run.end().get()).map(Frame::new) {
                check.add(frame, ram.holds(frame, word_of(frame)));
            }
        }
        check.verdict()
    }

    /// Uses some of `returned`, frames that came back from the host, as anybody
    /// might: allocates, writes, checks and frees them. The number that could
    /// be; the others are in use already or gone again.
    ///
    /// # Errors
    /// When a frame does not hold what was just written.
    pub fn try_returned(
        &self,
        returned: impl IntoIterator<Item = Frame>,
        zone: &mut Zone<'_>,
        ram: &mut impl Ram,
    ) -> Result<FrameCount, Damage> {
        let mut held = [None; MAX_TRIED];
        for (slot, frame) in held.iter_mut().zip(returned) {
            if zone.allocate_at(frame, Order::FRAME).is_ok() {
                ram.fill(frame, word_of(frame));
                *slot = Some(frame);
            }
        }
        // Only now: two names for one frame would show.
        let mut check = Check::default();
        for frame in held.into_iter().flatten() {
            let intact = ram.holds(frame, word_of(frame));
            let freed = zone.free(frame, Order::FRAME).is_ok();
            check.add(frame, intact && freed);
        }
        check.verdict()
    }

    /// Whether the group of `frame` is among those kept.
    fn keeps(&self, frame: Frame) -> bool {
        let (group, keep) = (frame.get() >> GROUP.get(), u64::from(self.keep.get()));
        group * keep % 100 < keep
    }

    /// Where the next group that is treated differently starts, at most `end`.
    fn group_border(&self, from: Frame, end: Frame) -> Frame {
        let kept = self.keeps(from);
        let mut at = from;
        while at < end && self.keeps(at) == kept {
            at = FrameRange::block(at, GROUP).end();
        }
        at.min(end)
    }
}

/// Most frames [`Workload::try_returned`] uses at once: each may cost the host a
/// huge page.
const MAX_TRIED: usize = 8;

#[cfg(test)]
mod tests;
