//! Looks over the balloon's shoulder: the allocator as frame source and ledger,
//! with an account of what passed through.

use balloon_core::{Backing, FrameCount, FrameRange, FrameSource, Ledger, TakeRequest, Via};
use balloon_core::{Order, RangeSink, Shortage};
use buddy_alloc::Frame;
use heapless::{HistoryBuf, Vec};

use crate::poison::Poison;
use crate::workload::Ram;

/// Frames remembered of those that came back last.
const RETURNED: usize = 8;

/// What passed through a [`Watch`].
#[derive(Debug, Default)]
pub struct WatchLog {
    ranges_given: u64,
    returned: HistoryBuf<Frame, RETURNED>,
}

impl WatchLog {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ranges_given: 0,
            returned: HistoryBuf::new(),
        }
    }

    /// Ranges of contiguous frames that went to the host.
    #[must_use]
    pub const fn ranges_given(&self) -> u64 {
        self.ranges_given
    }

    /// The first frames of the ranges that came back last, each once.
    pub fn take_returned(&mut self) -> impl Iterator<Item = Frame> + use<> {
        let frames: Vec<Frame, RETURNED> = self.returned.oldest_ordered().copied().collect();
        self.returned.clear();
        frames.into_iter()
    }
}

/// A frame source and ledger that keeps a [`WatchLog`].
#[expect(missing_debug_implementations, reason = "memory has none")]
pub struct Watch<'a, S> {
    inner: &'a mut S,
    log: &'a mut WatchLog,
    /// What frames are full of before they are free.
    poison: Option<(Poison, &'a mut dyn Ram)>,
}

impl<'a, S> Watch<'a, S> {
    /// Passes everything on to `inner`.
    pub const fn new(inner: &'a mut S, log: &'a mut WatchLog) -> Self {
        Self {
            inner,
            log,
            poison: None,
        }
    }

    /// Fills what comes back before it is free.
    #[must_use]
    pub fn poisoning(mut self, poison: Option<Poison>, ram: &'a mut dyn Ram) -> Self {
        self.poison = poison.map(|poison| (poison, ram));
        self
    }
}

impl<S: FrameSource> FrameSource for Watch<'_, S> {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        self.inner.take(ask, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        if let Some((poison, ram)) = &mut self.poison {
            let frames = range.start().get()..range.end().get();
            frames.for_each(|frame| poison.fill(Frame::new(frame), &mut **ram));
            self.inner.put(range, Backing::Populated)?;
        } else {
            self.inner.put(range, backing)?;
        }
        if backing == Backing::Unpopulated {
            self.log.returned.write(Frame::new(range.start().get()));
        }
        Ok(())
    }

    fn allocate_taken(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        self.inner.allocate_taken(range)
    }

    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        self.inner.take_at(range)
    }

    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        self.inner.next_free(within)
    }

    fn available(&mut self) -> Option<FrameCount> {
        self.inner.available()
    }
}

impl<S: Ledger> Ledger for Watch<'_, S> {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.inner.store(range, via)?;
        self.log.ranges_given += 1;
        Ok(())
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        self.inner.recall(via, unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        self.inner.held(via)
    }

    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.inner.recall_at(range, via)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        self.inner.next_held(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    type Vec64 = vec::Vec<u64>;

    use balloon_core::Pfn;
    use buddy_alloc::{Config, Zone};

    fn range(start: u64, count: u64) -> FrameRange {
        FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
    }

    #[test]
    fn counts_what_is_given_and_remembers_what_returned_last() {
        let span = buddy_alloc::FrameRange::between(Frame::new(0), Frame::new(1024));
        let mut metadata = vec![0; Config::new().metadata_words(span)];
        let mut zone = Zone::new(span, Config::new(), &mut metadata).unwrap();
        zone.add_range(span, buddy_alloc::Backing::Populated)
            .unwrap();
        let mut log = WatchLog::new();
        let mut watch = Watch::new(&mut zone, &mut log);

        let mut runs = [balloon_core::Run::default(); 4];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(1024));
        assert_eq!(
            watch.take(TakeRequest::any(Pfn::LIMIT), &mut sink),
            Shortage::None
        );
        for start in (0..1024).step_by(64) {
            watch.store(range(start, 64), Via::Bulk).unwrap();
        }
        // Refused: stored already. Not counted.
        assert!(watch.store(range(0, 64), Via::Bulk).is_err());
        assert_eq!(watch.log.ranges_given(), 16);
        assert_eq!(watch.held(Via::Bulk), FrameCount::new(1024));

        let mut runs = [balloon_core::Run::default(); 4];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(1024));
        watch.recall(Via::Bulk, Order::FRAME, &mut sink);
        for start in (64..1024).step_by(64) {
            watch.put(range(start, 64), Backing::Unpopulated).unwrap();
        }
        // One that never left is not among the returned.
        watch.put(range(0, 64), Backing::Unknown).unwrap();
        let returned: Vec64 = log.take_returned().map(Frame::get).collect();
        assert_eq!(returned, (512..1024).step_by(64).collect::<Vec64>());
        assert_eq!(log.take_returned().count(), 0);
    }
}
