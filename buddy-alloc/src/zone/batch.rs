//! Thousands of frames per call: blocks are taken and freed whole where that makes no difference to
//! who is next.

use core::fmt;

use super::alloc::Preference;
use super::balloon::Shortage;
use super::sink::RangeSink;
use super::{FRAGMENTABLE, Zone};
use crate::error::FreeError;
use crate::frame::{FrameCount, FrameRange, Order};
use crate::node::Kind;

/// Why [`Zone::free_batch`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FreeBatchError {
    /// How many ranges, counted from the first, are free now. The one after them is as it was, and
    /// so are all others.
    pub freed: usize,
    /// What is wrong with that one.
    pub reason: FreeError,
}

impl fmt::Display for FreeBatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range {} of the batch: {}", self.freed, self.reason)
    }
}

impl core::error::Error for FreeBatchError {}

/// Neighbouring blocks on their way to a sink.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    start: u64,
    end: u64,
    populated: u64,
}

impl Zone<'_> {
    /// Allocates frames for use, as ranges, until the sink has what it wants.
    ///
    /// The frames are those that [`allocate`](Self::allocate) would find one after the other, in
    /// blocks of order `unit`; neighbours are merged. Each range is held as one that
    /// [`allocate_range`](Self::allocate_range) found: it goes back in whole or in parts by
    /// [`free_batch`](Self::free_batch) and [`free_range`](Self::free_range). `populated` in a push
    /// counts frames that the host backed before.
    ///
    /// Costs a few nodes per block taken; a block of which only some frames are populated counts as
    /// so many of order `unit`.
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(4096));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// # zone.add_range(span, Backing::Unpopulated)?;
    /// let mut places = [FrameRange::block(Frame::new(0), Order::FRAME); 64];
    /// let mut sink = RangeBuf::new(&mut places, FrameCount::new(3000));
    /// let stop = zone.allocate_batch(Order::FRAME, Preference::Populated, &mut sink);
    /// assert_eq!(stop, Shortage::None);
    /// assert_eq!(zone.stats().used, FrameCount::new(3000));
    /// zone.free_batch(sink.ranges())?;
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    pub fn allocate_batch<S: RangeSink>(
        &mut self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
    ) -> Shortage {
        self.batch(unit, preference, sink, |_| true)
    }

    /// As above, for as long as `more` says so of the zone.
    pub(crate) fn batch<S: RangeSink>(
        &mut self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
        more: impl Fn(&Self) -> bool,
    ) -> Shortage {
        let unit = u32::from(unit.get());
        let mut run = Run::default();
        loop {
            let wanted = sink.wanted().get().saturating_sub(run.end - run.start);
            let piece = match (wanted >> unit).checked_ilog2() {
                Some(left) if more(self) => self.whole_piece(unit, preference, unit + left),
                _ => break,
            };
            let Some((frame, populated)) = self.allocate_block(piece, preference) else {
                break;
            };
            if frame != run.end {
                self.hand_over(&mut run, sink);
                if sink.wanted().get() < 1 << piece {
                    self.release(frame, piece, populated);
                    break;
                }
                (run.start, run.end) = (frame, frame);
            }
            run.end += 1 << piece;
            run.populated += populated;
        }
        self.hand_over(&mut run, sink);
        if sink.wanted() == FrameCount::ZERO {
            Shortage::None
        } else if self.free == 0 {
            Shortage::Empty
        } else {
            Shortage::Fragmented
        }
    }

    /// Marks a run of frames as used and lays it into the sink.
    fn hand_over<S: RangeSink>(&mut self, run: &mut Run, sink: &mut S) {
        let Run {
            start,
            end,
            populated,
        } = core::mem::take(run);
        if start == end {
            return;
        }
        self.mark_range(start, end, Kind::Used);
        if populated != end - start {
            for (frame, order) in self.blocks_of(start, end) {
                self.populated.fill(frame, order, true);
            }
        }
        sink.push(FrameRange::raw(start, end), FrameCount::new(populated));
    }

    /// Frees ranges one after the other, each as [`free_range`](Self::free_range) does.
    ///
    /// # Errors
    /// Stops at the first range that cannot be freed and says which it is. The ranges before it are
    /// free, it and those behind it unchanged; the call can go on behind it.
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(64));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// # zone.add_range(span, Backing::Unpopulated)?;
    /// let one = |number| FrameRange::block(Frame::new(number), Order::FRAME);
    /// zone.allocate_range_at(FrameRange::new(Frame::new(0), FrameCount::new(8)))?;
    /// let error = zone.free_batch(&[one(3), one(9), one(5)]).unwrap_err();
    /// assert_eq!((error.freed, error.reason), (1, FreeError::DoubleFree));
    /// assert_eq!(zone.stats().used, FrameCount::new(7));
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    pub fn free_batch(&mut self, ranges: &[FrameRange]) -> Result<(), FreeBatchError> {
        for (freed, &range) in ranges.iter().enumerate() {
            self.free_range(range)
                .map_err(|reason| FreeBatchError { freed, reason })?;
        }
        Ok(())
    }

    /// As many blocks of one order as `found` has places, as if allocated one after the other, for a
    /// cache: their bits are set.
    ///
    /// Where a larger block has to be broken anyway, its pieces are marked without being listed.
    pub(crate) fn fill_cache(
        &mut self,
        order: Order,
        preference: Preference,
        found: &mut [u64],
    ) -> usize {
        let order = u32::from(order.get());
        let mut done = 0;
        while let Some(left) = found.len().checked_sub(done).and_then(usize::checked_ilog2) {
            let larger = self.whole_piece(order, preference, order + left);
            let Some((frame, populated)) = self.allocate_block(larger, preference) else {
                break;
            };
            if populated != 1 << larger {
                self.populated.fill(frame, larger, true);
            }
            self.add_held(Kind::Used, 1 << larger);
            self.cached.put_pieces(frame, larger, order);
            for piece in 0..1 << (larger - order) {
                let frame = frame + (piece << order);
                self.mark(frame, order, Kind::Used);
                if let Some(place) = found.get_mut(done) {
                    *place = frame;
                    done += 1;
                }
            }
        }
        done
    }

    /// The largest piece up to `most` that the next demands of `order` would all be cut from, one
    /// after the other.
    fn whole_piece(&self, order: u32, preference: Preference, most: u32) -> u32 {
        let found = self.find(FRAGMENTABLE, order, preference).or_else(|| {
            self.find(0, order, preference)
                .filter(|_| self.breakable_limit == 0)
        });
        let Some((set, at, class)) = found else {
            return order;
        };
        let piece = at.min(most).min(self.max_order);
        let Some(bin) = self.bin(set, at).filter(|_| piece > order) else {
            return order;
        };
        let pair = match class {
            Some(any_populated) => bin.list.first_of(&self.nodes, any_populated),
            None => bin.list.first(),
        };
        if !self.nodes.get(pair).is_populated() {
            return piece;
        }
        // Some frames populated and others not: the populated ones come first.
        let frame = self.frame_of(pair, at, false);
        if self.populated.count(frame, piece) == 1 << piece {
            piece
        } else {
            order
        }
    }
}
