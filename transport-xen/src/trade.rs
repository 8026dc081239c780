//! Trading frames: moves on translated guests, exchanges on PV ones.

use balloon_core::{FrameCount, Migration, Order, Pfn, Run};

use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::reservation::{Moved, Reservation, Stopped};
use crate::units::Gmfn;

/// Pairs of one hypercall.
const PAIRS: usize = 64;

impl<M: Memory, F: FrameMap> Reservation<M, F> {
    /// Makes the frames of `olds`, which are ballooned, the guest's and gives
    /// those of `news` in their stead, pair by pair.
    ///
    /// By move the old frames get the content of the new ones, too.
    pub fn trade(&mut self, olds: &[Run], news: &[Run]) -> Moved {
        let mut olds = olds.iter().flat_map(|run| run.range().frames());
        let mut news = news.iter().flat_map(|run| run.range().frames());
        let mut done = FrameCount::ZERO;
        loop {
            let mut old = [Pfn::new(0); PAIRS];
            let mut new = [Pfn::new(0); PAIRS];
            let mut pairs = 0;
            for (old, new) in old.iter_mut().zip(&mut new) {
                let (Some(next_old), Some(next_new)) = (olds.next(), news.next()) else {
                    break;
                };
                (*old, *new) = (next_old, next_new);
                pairs += 1;
            }
            let old = old.get(..pairs).unwrap_or_default();
            let new = new.get(..pairs).unwrap_or_default();
            if old.is_empty() {
                return Moved {
                    frames: done,
                    stopped: None,
                };
            }
            let (traded, error) = match F::MIGRATION {
                Migration::Move => self.move_pairs(old, new),
                Migration::Exchange => self.exchange_pairs(old, new),
                _ => (0, Some(Errno::NotSupported)),
            };
            done = done.saturating_add(FrameCount::new(traded as u64));
            let (_, _, counters) = self.parts_mut();
            counters.traded = counters.traded.wrapping_add(traded as u64);
            if traded < old.len() {
                return Moved {
                    frames: done,
                    stopped: Some(error.map_or(Stopped::NotServed, Stopped::Refused)),
                };
            }
        }
    }

    fn move_pairs(&mut self, old: &[Pfn], new: &[Pfn]) -> (usize, Option<Errno>) {
        let (memory, _, counters) = self.parts_mut();
        let mut results = [Ok(()); PAIRS];
        let results = results.get_mut(..old.len()).unwrap_or_default();
        memory.move_frames(new, old, results);
        counters.hypercalls = counters.hypercalls.wrapping_add(1);
        let failed = results.iter().position(Result::is_err);
        let done = failed.unwrap_or(results.len());
        // Xen goes on after a pair it refuses; only the first ones are to count.
        let later = results.iter().zip(old.iter().zip(new)).skip(done);
        for (_, (&old, &new)) in later.filter(|(result, _)| result.is_ok()) {
            counters.hypercalls = counters.hypercalls.wrapping_add(1);
            // `old` is populated and `new` the hole it left: nothing to refuse.
            let undone = memory.move_frame(old, new);
            debug_assert!(undone.is_ok(), "a move just made can be undone");
        }
        let error = failed.and_then(|at| results.get(at)?.err());
        (done, error)
    }

    fn exchange_pairs(&mut self, old: &[Pfn], new: &[Pfn]) -> (usize, Option<Errno>) {
        let (memory, map, counters) = self.parts_mut();
        let mut given = [Gmfn::new(0); PAIRS];
        let mut wanted = [Gmfn::new(0); PAIRS];
        let mut ready = 0;
        for ((given, wanted), (&old, &new)) in
            given.iter_mut().zip(&mut wanted).zip(old.iter().zip(new))
        {
            let Some(gmfn) = map.unmap(new) else { break };
            (*given, *wanted) = (gmfn, Gmfn::of_guest(old));
            ready += 1;
        }
        let given = given.get(..ready).unwrap_or_default();
        let wanted = wanted.get_mut(..ready).unwrap_or_default();
        if given.is_empty() {
            return (0, None);
        }
        counters.hypercalls = counters.hypercalls.wrapping_add(1);
        let exchanged = memory.exchange((given, Order::FRAME), (wanted, Order::FRAME));
        let done = exchanged.done.min(ready);
        for (&gmfn, &old) in wanted.iter().zip(old).take(done) {
            map.map(old, gmfn);
        }
        for (&gmfn, &new) in given.iter().zip(new).skip(done) {
            map.map(new, gmfn);
        }
        (done, exchanged.error)
    }
}

#[cfg(test)]
mod tests;
