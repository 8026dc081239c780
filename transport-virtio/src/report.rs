//! Free page reporting: the host may discard what is free and populated.
//!
//! Frames stay the guest's. For the time a report is with the device they are
//! taken out of the allocator; afterwards they are free again and known to be
//! unpopulated, so that each is reported once until it was used. Independent of
//! the balloon's size and of its engine.

use balloon_core::{
    Ask, Backing, FrameCount, FrameSource, GivePath, InFlight, Kind, Limits, Nanos, Order,
    RangeSink, Run, Slots, Transport,
};

use crate::balloon::{VirtioBalloon, VirtioError};
use crate::protocol::{ConfigIo, QueueId};
use crate::queues::Queues;

/// Ranges of one report at most, whatever the queue could hold.
const RUNS: usize = 32;

/// Between two looks for what no interrupt tells of.
const POLL: Nanos = Nanos::from_millis(10);

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
    pub keep: FrameCount,
}

impl ReportPace {
    /// 2 MiB blocks, no pause while there is something to report, two seconds
    /// of rest.
    pub const DEFAULT: Self = Self {
        order: Order::SUPERPAGE,
        rest: Nanos::from_secs(2),
        gap: Nanos::ZERO,
        keep: FrameCount::ZERO,
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

#[derive(Debug)]
struct Report {
    /// `None` once answered: the frames are on their way home.
    with_device: Option<InFlight<'static>>,
    runs: [Run; RUNS],
    len: usize,
    backing: Backing,
    /// Taken, but not worth a report.
    rest: Option<Run>,
}

impl Report {
    /// Takes free ranges for one report, as long as they are populated.
    fn take(source: &mut impl FrameSource, limits: Limits, pace: ReportPace) -> Self {
        let mut report = Self {
            with_device: None,
            runs: [Run::default(); RUNS],
            len: 0,
            backing: Backing::Unpopulated,
            rest: None,
        };
        let ask = Ask {
            order: pace.order,
            below: limits.below,
            keep: pace.keep,
        };
        // A source hands out populated ranges first, so one that is not ends
        // the search. To see each, take one at a time.
        for _ in 0..limits.runs.min(RUNS) {
            let taken = report.runs.iter().take(report.len).map(|run| run.count());
            let taken = taken.fold(FrameCount::ZERO, FrameCount::saturating_add);
            let room = limits.frames.saturating_sub(taken).min(limits.run);
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
                report.rest = Some(run);
                break;
            }
            report.add(run, limits.run);
        }
        report
    }

    /// Adds a range, as part of the last one if it is its neighbour.
    fn add(&mut self, run: Run, longest: FrameCount) {
        let last = self.len.checked_sub(1);
        if let Some(last) = last.and_then(|last| self.runs.get_mut(last)) {
            let (before, range) = (last.range(), run.range());
            let both = before.joined(range).or_else(|| range.joined(before));
            let both = both.filter(|both| both.count() <= longest);
            if let Some(both) = both.and_then(Run::new) {
                *last = both;
                return;
            }
        }
        if let Some(place) = self.runs.get_mut(self.len) {
            *place = run;
            self.len += 1;
        }
    }
}

/// Reports free memory through up to `N` requests.
#[derive(Debug)]
pub struct Reporting<const N: usize = 2> {
    pace: ReportPace,
    reports: [Option<Report>; N],
    next: Nanos,
    /// Nothing was found; what is freed changes that.
    at_rest: bool,
    reported: FrameCount,
}

impl<const N: usize> Reporting<N> {
    /// Reporting at this pace, starting with the first step.
    #[must_use]
    pub const fn new(pace: ReportPace) -> Self {
        Self {
            pace,
            reports: [const { None }; N],
            next: Nanos::ZERO,
            at_rest: false,
            reported: FrameCount::ZERO,
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
        let reports = self.reports.iter().flatten();
        let runs =
            reports.flat_map(|report| report.runs.iter().take(report.len).chain(&report.rest));
        runs.fold(FrameCount::ZERO, |sum, run| sum.saturating_add(run.count()))
    }

    /// Much was freed: the next step looks for something to report, however long
    /// the rest was to take. A kernel that sleeps when nothing asks it not to has
    /// to call this, and to step.
    pub const fn look_again(&mut self) {
        self.next = Nanos::ZERO;
        self.at_rest = false;
    }

    /// Whether no frame is out of the allocator.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reports.iter().all(Option::is_none)
    }

    /// Takes up answers and makes at most one report.
    ///
    /// # Errors
    /// If the device does not take reports or broke the queue. Frames on their
    /// way stay with the service.
    pub fn step<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Result<ReportStep, VirtioError> {
        let limits = balloon.report_limits().ok_or(VirtioError::Unsupported)?;
        let before = self.reported;
        if !self.is_idle() {
            self.drain(balloon, slots, source)?;
        }
        let sent = self.look(limits, balloon, slots, source, now);
        // Answers that were taken up have used up the wish for an interrupt, that of
        // the balloon's own requests in this queue as well.
        let waits =
            self.out() > 0 || (self.reported > before && balloon.in_flight(QueueId::Reporting) > 0);
        let answered = waits && balloon.notify(QueueId::Reporting);
        Ok(ReportStep {
            more: (sent? && self.pace.gap == Nanos::ZERO) || answered,
            wake_at: self.wake_at(limits, balloon.capabilities().interrupts, now),
            reported: self.reported.saturating_sub(before),
        })
    }

    /// Makes a report, if it is time; whether there was something to report.
    fn look<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        limits: Limits,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        now: Nanos,
    ) -> Result<bool, VirtioError> {
        if now < self.next || self.out() >= limits.in_flight {
            return Ok(false);
        }
        let Some(place) = self.reports.iter_mut().find(|report| report.is_none()) else {
            return Ok(false);
        };
        let Ok(slot) = slots.claim(Kind::Report) else {
            return Ok(false);
        };
        let mut report = Report::take(source, limits, self.pace);
        if report.len == 0 {
            self.next = now.saturating_add(self.pace.rest);
            self.at_rest = true;
            *place = Some(report);
            self.settle(source);
            return Ok(false);
        }
        let taken = report.runs.get(..report.len).unwrap_or_default();
        let slot = slot.launch();
        let submitted = balloon.submit(slot.request(GivePath::Told, taken), slots.completer());
        if let Err(error) = submitted {
            report.with_device = slot.revoke().err();
            report.backing = Backing::Unknown;
            *place = Some(report);
            self.settle(source);
            return Err(error);
        }
        report.with_device = Some(slot);
        *place = Some(report);
        self.next = now.saturating_add(self.pace.gap);
        self.at_rest = false;
        Ok(true)
    }

    /// When something is to be done that nothing else tells of.
    fn wake_at(&self, limits: Limits, interrupts: bool, now: Nanos) -> Option<Nanos> {
        let out = self.out();
        let taken = self.reports.iter().flatten().count();
        // An answer makes room, and wakes us if it can.
        let full = taken == N || out >= limits.in_flight;
        // If it was time already, there was no slot.
        let next = Some(self.next).filter(|&next| next > now);
        let next = next.unwrap_or(now.saturating_add(POLL));
        let look = (!full && !self.at_rest).then_some(next);
        // The allocator refused frames: nothing tells when it would take them.
        let poll = taken > out || (out > 0 && !interrupts);
        let poll = poll.then(|| now.saturating_add(POLL));
        [look, poll].into_iter().flatten().min()
    }

    /// Reports with the device.
    fn out(&self) -> usize {
        let reports = self.reports.iter().flatten();
        reports
            .filter(|report| report.with_device.is_some())
            .count()
    }

    /// Takes up answers and makes no report: before a suspend or a reset that is
    /// to lose nothing. Whether all frames are home; asks for no interrupt.
    ///
    /// # Errors
    /// If the device broke the queue.
    pub fn drain<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        let reaped = balloon.collect(QueueId::Reporting, slots.completer());
        self.settle(source);
        reaped?;
        Ok(self.is_idle())
    }

    /// Brings the frames of answered reports home.
    fn settle(&mut self, source: &mut impl FrameSource) {
        for place in &mut self.reports {
            let Some(report) = place else { continue };
            report.rest = report
                .rest
                .filter(|run| source.put(run.range(), Backing::Unpopulated).is_err());
            if let Some(slot) = report.with_device.take() {
                match slot.answer() {
                    Ok(_) => {
                        let runs = report.runs.get(..report.len).unwrap_or_default();
                        for run in runs {
                            self.reported = self.reported.saturating_add(run.count());
                        }
                    }
                    Err(waiting) => {
                        report.with_device = Some(waiting);
                        continue;
                    }
                }
            }
            while let Some(last) = report.len.checked_sub(1) {
                let Some(run) = report.runs.get(last) else {
                    break;
                };
                if source.put(run.range(), report.backing).is_err() {
                    break;
                }
                report.len = last;
            }
            if report.len == 0 && report.rest.is_none() {
                *place = None;
            }
        }
    }

    /// The device was reset: brings all frames home, content unknown, to be reported
    /// again.
    pub fn reset(&mut self, source: &mut impl FrameSource) {
        for report in self.reports.iter_mut().flatten() {
            if let Some(slot) = report.with_device.take() {
                report.with_device = slot.revoke().err();
                if report.with_device.is_none() {
                    report.backing = Backing::Unknown;
                }
            }
        }
        self.settle(source);
        self.look_again();
    }
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests;
