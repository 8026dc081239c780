//! Free page reporting: the host may discard what is free and populated.
//!
//! Frames stay the guest's. For the time a report is with the device they are
//! taken out of the allocator; afterwards they are free again and known to be
//! unpopulated, so that each is reported once until it was used; an allocator that
//! forgets is gone through once, and again after a rest. No more than a share of what
//! is free is out at a time. Independent of the balloon's size and of its engine.

use balloon_core::{
    Backing, FrameCount, FrameSource, Kind, Limits, Nanos, Order, RangeSink, Relieved, Run, Shared,
    TakeRequest, Transport, Via, is_to_come,
};

use crate::balloon::{POLL, VirtioBalloon, VirtioError};
use crate::lent::{Lent, Runs};
use crate::protocol::config::ConfigIo;
use crate::protocol::numbering::QueueId;
use crate::queues::Queues;

/// Ranges of one report at most, whatever the queue could hold.
const RUNS: usize = 32;

/// How eagerly free memory is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportPace {
    /// Only whole blocks of at least this order: smaller ones split the host's
    /// huge pages.
    pub order: Order,
    /// How long to rest once everything free is reported, at least: nobody is
    /// woken up for the next look.
    pub rest: Nanos,
    /// How long to wait between one step's reports and the next, for a kernel
    /// that would rather reuse what it just freed.
    pub gap: Nanos,
    /// Free frames never reported.
    pub min_free: FrameCount,
    /// Frames of one report at most.
    pub most: FrameCount,
    /// Of what is free no more than one part in so many is out at a time: the rest is there
    /// for an allocation that cannot wait for the device. A kernel with less than so many
    /// blocks reports nothing.
    pub share: u32,
}

impl ReportPace {
    /// 2 MiB blocks, 64 MiB in a report and an eighth of what is free in all, no pause
    /// while there is something to report, two seconds of rest.
    pub const DEFAULT: Self = Self {
        order: Order::SUPERPAGE,
        rest: Nanos::from_secs(2),
        gap: Nanos::ZERO,
        min_free: FrameCount::ZERO,
        most: FrameCount::new(1 << 14),
        share: 8,
    };
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportStep {
    /// There is more to do at once.
    pub more: bool,
    /// When to step again even if nothing happens; `None` at rest, until
    /// [`Reporting::look_again`].
    pub wake_at: Option<Nanos>,
    /// Frames that were found answered.
    pub reported: FrameCount,
}

/// What is free and populated, for one report, and a run beside it that was taken and is not
/// worth reporting.
fn take(
    source: &mut impl FrameSource,
    limits: Limits,
    pace: ReportPace,
) -> (Runs<RUNS>, Option<Run>) {
    let mut runs = Runs::new();
    let ask = TakeRequest {
        order: pace.order,
        below: limits.below,
        min_free: pace.min_free,
        unpopulated_first: false,
    };
    // A source hands out populated ranges first, so one that is not ends
    // the search. To see each, take one at a time.
    for _ in 0..limits.runs.min(RUNS) {
        let room = limits.frames.saturating_sub(runs.frames()).min(limits.run);
        if room < pace.order.frames() {
            break;
        }
        let mut next = [Run::default()];
        let sink = RangeSink::new(&mut next, room.round_down(pace.order));
        let mut sink = sink.with_longest_run(limits.run);
        source.take(ask, &mut sink);
        let populated = !sink.populated().is_zero();
        let Some(&run) = sink.runs().first() else {
            break;
        };
        if !populated {
            return (runs, Some(run));
        }
        add(&mut runs, run, limits.run);
    }
    (runs, None)
}

/// Adds a range, as part of the last one if it is its neighbour.
fn add(runs: &mut Runs<RUNS>, run: Run, longest: FrameCount) {
    if let Some(last) = runs.last_mut() {
        let (before, range) = (last.range(), run.range());
        let both = before.joined(range).or_else(|| range.joined(before));
        let both = both.filter(|both| both.count() <= longest);
        if let Some(both) = both.and_then(Run::new) {
            *last = both;
            return;
        }
    }
    if let Some(place) = runs.spare().first_mut() {
        *place = run;
        runs.extend(1);
    }
}

/// Reports free memory through up to `N` requests.
#[derive(Debug)]
pub struct Reporting<const N: usize = 2> {
    pace: ReportPace,
    reports: Lent<N, RUNS>,
    /// Taken, and not worth a report: on its way home.
    rest: Option<Run>,
    next: Nanos,
    /// Frames that the pass over free memory may still report.
    left: Option<FrameCount>,
    /// As much is out as may be: an answer makes room.
    lent: bool,
    /// Nothing was found; what is freed changes that.
    at_rest: bool,
    reported: FrameCount,
    /// Of the device's starts, the one reports are with.
    start: Option<u32>,
}

impl<const N: usize> Reporting<N> {
    /// Reporting at this pace, starting with the first step.
    #[must_use]
    pub const fn new(pace: ReportPace) -> Self {
        Self {
            pace,
            reports: Lent::new(),
            rest: None,
            next: Nanos::ZERO,
            left: None,
            lent: false,
            at_rest: false,
            reported: FrameCount::ZERO,
            start: None,
        }
    }

    /// Frames reported so far.
    #[must_use]
    pub const fn reported(&self) -> FrameCount {
        self.reported
    }

    /// Frames out of the allocator because of reports.
    #[must_use]
    pub fn held(&self) -> FrameCount {
        let rest = self.rest.map_or(FrameCount::ZERO, |run| run.count());
        self.reports.frames().saturating_add(rest)
    }

    /// Much was freed: the next step looks for something to report, however long
    /// the rest was to take. A kernel that sleeps when nothing asks it not to has
    /// to call this, and to step.
    pub const fn look_again(&mut self) {
        self.next = Nanos::ZERO;
        self.left = None;
        self.at_rest = false;
    }

    /// Whether no frame is out of the allocator.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reports.is_empty() && self.rest.is_none()
    }

    /// Takes up answers and makes at most one report.
    ///
    /// # Errors
    /// If the device does not take reports, broke the queue, or asks for a reset. Frames
    /// on their way stay with the service. [`VirtioError::Gone`] once all are home from
    /// a device that is gone.
    pub fn step<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Result<ReportStep, VirtioError> {
        let limits = balloon.report_limits().ok_or(VirtioError::Unsupported)?;
        if balloon.enter(&mut self.start, shared)? {
            self.reset(source);
        }
        if let Some(lost) = balloon.lost() {
            return self.go_home(lost, source, now);
        }
        let before = self.reported;
        if !self.is_idle() {
            self.drain(balloon, shared, source)?;
        }
        let sent = self.look(limits, balloon, shared, source, now);
        let answered = sent == Ok(true) && balloon.kick_queue(QueueId::Reporting);
        let silence = balloon.watch(QueueId::Reporting, Kind::Report, shared.signal(), now);
        let look = self.wake_at(limits, balloon.capabilities().interrupts, now);
        Ok(ReportStep {
            more: (sent? && self.pace.gap == Nanos::ZERO) || answered,
            wake_at: [look, silence].into_iter().flatten().min(),
            reported: self.reported.saturating_sub(before),
        })
    }

    /// Brings home what a device had that is gone.
    fn go_home(
        &mut self,
        lost: VirtioError,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Result<ReportStep, VirtioError> {
        if lost == VirtioError::Gone {
            self.reset(source);
        }
        if lost != VirtioError::Gone || self.is_idle() {
            return Err(lost);
        }
        // The allocator refused frames: nothing tells when it would take them.
        Ok(ReportStep {
            more: false,
            wake_at: Some(now.saturating_add(POLL)),
            reported: FrameCount::ZERO,
        })
    }

    /// Makes a report, if it is time; whether there was something to report.
    fn look<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        limits: Limits,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Result<bool, VirtioError> {
        if self.pauses(now) || self.rest.is_some() || self.reports.in_flight() >= limits.in_flight {
            return Ok(false);
        }
        self.lent = false;
        let free = source.available();
        let left = *self
            .left
            .get_or_insert_with(|| free.unwrap_or(self.pace.most));
        let held = self.held();
        let share = free.map_or(FrameCount::MAX, |free| self.share(free, held));
        let room = share.min(left).min(self.pace.most).min(limits.frames);
        if room < self.pace.order.frames() {
            if left < self.pace.order.frames() || held.is_zero() {
                self.rest(now);
            } else {
                self.lent = true;
            }
            return Ok(false);
        }
        let limits = Limits {
            frames: room,
            ..limits
        };
        let Some(place) = self.reports.vacant() else {
            return Ok(false);
        };
        let Ok(slot) = shared.slots().claim(Kind::Report) else {
            return Ok(false);
        };
        let (runs, rest) = take(source, limits, self.pace);
        self.rest = rest;
        let frames = runs.frames();
        if frames.is_zero() {
            self.settle(source);
            self.rest(now);
            return Ok(false);
        }
        self.left = Some(left.saturating_sub(frames));
        let sent = place.lend(slot, runs, |slot, runs| {
            let request = slot.request(Via::Inflate, runs);
            balloon.submit(request, shared.slots().completer())
        });
        self.settle(source);
        sent?;
        self.next = now.saturating_add(self.pace.gap);
        self.at_rest = false;
        Ok(true)
    }

    /// Frames that may go out beside those that are.
    fn share(&self, free: FrameCount, held: FrameCount) -> FrameCount {
        let all = free.saturating_add(held).get();
        FrameCount::new(all / u64::from(self.pace.share.max(1))).saturating_sub(held)
    }

    /// The pass is over: whoever forgets what was reported is not asked again at once.
    fn rest(&mut self, now: Nanos) {
        self.next = now.saturating_add(self.pace.rest);
        self.left = None;
        self.at_rest = true;
    }

    /// The next look is still to come.
    fn pauses(&self, now: Nanos) -> bool {
        let pause = if self.at_rest {
            self.pace.rest
        } else {
            self.pace.gap
        };
        is_to_come(self.next, pause, now)
    }

    /// When something is to be done that nothing else tells of.
    fn wake_at(&self, limits: Limits, interrupts: bool, now: Nanos) -> Option<Nanos> {
        let (out, taken) = (self.reports.in_flight(), self.reports.len());
        // An answer makes room, and wakes us if it can.
        let full = taken == N || out >= limits.in_flight || (self.lent && out > 0);
        // If it was time already, there was no slot.
        let next = if self.pauses(now) {
            self.next
        } else {
            now.saturating_add(POLL)
        };
        let look = (!full && !self.at_rest).then_some(next);
        // The allocator refused frames: nothing tells when it would take them.
        let poll = taken > out || self.rest.is_some() || (out > 0 && !interrupts);
        let poll = poll.then(|| now.saturating_add(POLL));
        [look, poll].into_iter().flatten().min()
    }

    /// Takes up answers and makes no report: before a suspend or a reset that is
    /// to lose nothing. Whether all frames are home; asks for no interrupt.
    ///
    /// # Errors
    /// If the device broke the queue.
    pub fn drain<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        if balloon.enter(&mut self.start, shared)? {
            self.reset(source);
        }
        let reaped = balloon.collect(QueueId::Reporting, Kind::Report, shared);
        self.settle(source);
        reaped?;
        Ok(self.is_idle())
    }

    /// Memory is short: brings home what the device has answered.
    ///
    /// What it has not is coming, without being asked for: an answer interrupts. No report
    /// is made before [`ReportPace::rest`] has passed.
    pub fn relieve<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Relieved {
        let before = self.held();
        // One that broke its queue answers nothing: the step says so.
        let _ = self.drain(balloon, shared, source);
        self.rest(now);
        let coming = self.held();
        Relieved {
            usable: before.saturating_sub(coming),
            coming,
        }
    }

    /// Brings the frames of answered reports home.
    fn settle(&mut self, source: &mut impl FrameSource) {
        self.rest = self
            .rest
            .filter(|run| source.put(run.range(), Backing::Unpopulated).is_err());
        let answered = self.reports.settle(|run, told| {
            // The host may have done anything with what it was told of and did not answer.
            let backing = if told {
                Backing::Unpopulated
            } else {
                Backing::Unknown
            };
            source.put(run.range(), backing).is_ok()
        });
        self.reported = self.reported.saturating_add(answered);
    }

    /// The device was reset: brings all frames home, content unknown, to be reported
    /// again.
    pub fn reset(&mut self, source: &mut impl FrameSource) {
        self.reports.revoke();
        self.settle(source);
        self.look_again();
    }
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests;
