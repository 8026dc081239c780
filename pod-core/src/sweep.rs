//! The sweep: the last resort, resumable, superpages first.
//!
//! One pass has two halves. The first looks at whole superpages and leaves each at the first page
//! that is not filled, so a guest full of data costs a few looks per superpage. Only the second
//! looks at single pages. Both skip regions in which every page was seen in use and none was
//! written since; the host is asked about writes once in a pass, by the second half.
//!
//! A guest is out of memory only when a complete pass found nothing, and to know that costs a
//! look, one cache line, at each page: no summary of a superpage says that none of its pages is
//! zero. There is one sweep for all, and whoever needs a frame goes on where the last one stopped.
//! So a pass that is over says nothing to a touch that began in the middle of it: each touch
//! counts for itself which regions were looked at since it began ([`Search`]).

use crate::pod::Dying;
use crate::reclaim::Visit;
use crate::{Budget, DemandError, FrameCount, Gfn, Host, Pod, Vcpu};

/// Where the sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SweepState {
    /// Next region.
    at: u32,
    /// Where the half that looks at pages begins: where that of the last pass ended. Its visits
    /// go round in a circle, so any so many in a row as there are regions saw each of them.
    from: u32,
    /// Regions left in this half; 0 in the second half ends the pass.
    left: u32,
    phase: Phase,
    /// Regions whose pages were looked at, or known to be in use and not written, since ever.
    looked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Superpages,
    Pages,
}

impl SweepState {
    pub(crate) const IDLE: Self = Self {
        at: 0,
        from: 0,
        left: 0,
        phase: Phase::Idle,
        looked: 0,
    };

    /// Next region, where the second half begins, regions left, and the half.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) const fn contents(&self) -> (u32, u32, u32, u8) {
        let from = match self.phase {
            Phase::Superpages => self.from,
            Phase::Idle | Phase::Pages => self.at,
        };
        (self.at, from, self.left, self.phase as u8)
    }

    pub(crate) const fn looked(&self) -> u64 {
        self.looked
    }
}

/// A touch that waits for the sweep, from its first call to its answer.
///
/// Nothing is left for it only if every region was looked at since it began. If that took more
/// than one call, then twice: the guest ran in between, and may have freed pages that were seen
/// in use before. The second time costs one look a region where the host tracks writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    gfn: Gfn,
    /// Nothing is left once the sweep has looked at so many regions.
    until: u64,
    /// The touch has been called again.
    repeated: bool,
    /// How often another touch began in this place before one was answered.
    restarts: u8,
    /// The touch began where another one was given up. Passes that others make between two of its
    /// calls do not end it again: with many virtual CPUs no touch would ever be answered.
    late: bool,
}

impl Search {
    pub(crate) const NONE: Self = Self {
        gfn: Gfn::new(u64::MAX),
        until: 0,
        repeated: false,
        restarts: 0,
        late: false,
    };
    /// Touches that share a place begin the count again, but not for ever.
    const RESTARTS: u8 = 16;
    /// After so many more passes without a call the touch was given up, and a new one begins.
    const STALE: u64 = 8;

    /// Goes on with the touch of this frame, or begins it; when it is over.
    pub(crate) fn resume(&mut self, gfn: Gfn, looked: u64, regions: u64) -> u64 {
        let given_up = self.until.saturating_add(Self::STALE * regions);
        let stale = !self.late && looked > given_up;
        let waiting = *self != Self::NONE && !stale;
        let goes_on = waiting && (self.gfn == gfn || self.restarts >= Self::RESTARTS);
        self.gfn = gfn;
        if !goes_on {
            self.until = looked + regions;
            self.repeated = false;
            self.restarts += u8::from(waiting);
            self.late = stale;
        } else if !self.repeated {
            self.until += regions;
            self.repeated = true;
        }
        self.until
    }

    pub(crate) fn is_for(&self, gfn: Gfn) -> bool {
        self.gfn == gfn
    }

    /// All was looked at: until its answer, nothing more has to be.
    pub(crate) const fn finish(&mut self, looked: u64) {
        self.until = looked;
        self.repeated = true;
    }

    /// The touch, and how many regions are still to be looked at.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) const fn contents(&self, looked: u64) -> Option<(Gfn, u64, [u8; 3])> {
        if self.gfn.get() == u64::MAX {
            return None;
        }
        let left = self.until.saturating_sub(looked);
        let state = [self.repeated as u8, self.restarts, self.late as u8];
        Some((self.gfn, left, state))
    }
}

/// Answer of one step of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    Found(u64),
    More,
    /// The pass, or what the touch asked for, is over, and its last step found nothing.
    Nothing,
}

/// Result of [`Pod::reclaim_step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimStep {
    /// So many frames came back; there may be more.
    Found(FrameCount),
    /// The budget is used up; call again.
    More,
    /// A complete pass is over and its last step found nothing.
    Done,
}

impl Pod<'_> {
    /// Sweeps a part of the guest for filled pages, for idle time. Frames the promises do not
    /// need go back to the host first.
    ///
    /// # Errors
    /// [`DemandError::Dying`] once the guest is being torn down.
    pub fn reclaim_step<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        budget: &mut Budget,
    ) -> Result<ReclaimStep, DemandError> {
        self.check_alive(host)?;
        let trimmed = self.trim(host, budget);
        if !trimmed || budget.used() > 0 && !budget.covers(self.region_cost()) {
            return Ok(ReclaimStep::More);
        }
        Ok(match self.sweep(host, None, budget)? {
            Swept::Found(frames) => ReclaimStep::Found(FrameCount::new(frames)),
            Swept::More => ReclaimStep::More,
            Swept::Nothing => ReclaimStep::Done,
        })
    }

    /// Goes on with the pass, or starts one. Visits at least one region.
    ///
    /// Ends with the pass, or as soon as it has looked `until` so many regions.
    pub(crate) fn sweep<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        until: Option<u64>,
        budget: &mut Budget,
    ) -> Result<Swept, Dying> {
        let regions = self.region_count();
        let mut visited = false;
        loop {
            let sweep = &mut self.st.sweep;
            if until.is_some_and(|n| sweep.looked >= n) {
                return Ok(Swept::Nothing);
            }
            match (sweep.phase, sweep.left) {
                (Phase::Idle, _) => {
                    sweep.at = sweep.at.min(regions.saturating_sub(1));
                    sweep.from = sweep.at;
                    sweep.left = regions;
                    sweep.phase = Phase::Superpages;
                    continue;
                }
                (Phase::Superpages, 0) => {
                    sweep.at = sweep.from;
                    sweep.left = regions;
                    sweep.phase = Phase::Pages;
                    continue;
                }
                (Phase::Pages, 0) => {
                    sweep.phase = Phase::Idle;
                    if until.is_none() {
                        return Ok(Swept::Nothing);
                    }
                    continue;
                }
                _ => {}
            }
            if visited && (!budget.covers(self.region_cost()) || host.should_yield()) {
                return Ok(Swept::More);
            }
            visited = true;
            let sweep = &mut self.st.sweep;
            let index = sweep.at;
            sweep.at = match index {
                0 => regions.saturating_sub(1),
                _ => index - 1,
            };
            sweep.left -= 1;
            if sweep.phase == Phase::Pages {
                sweep.looked += 1;
            }
            if let Visit::Got(frames) = self.visit(host, index, budget)? {
                // What was found starts the count again: the pass is complete only when all
                // regions were looked at after the last find.
                self.st.sweep.left = regions;
                return Ok(Swept::Found(frames));
            }
        }
    }

    fn visit<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        budget: &mut Budget,
    ) -> Result<Visit, Dying> {
        let region = self.region(index);
        budget.spend(1);
        let pages = self.st.sweep.phase == Phase::Pages;
        if region.resident == 0 || region.barren && !pages {
            return Ok(Visit::Nothing);
        }
        if !pages {
            return self.reclaim_super(host, index, budget);
        }
        if region.barren {
            let start = self.regions().start(index);
            if !host.written(start) {
                return Ok(Visit::Nothing);
            }
            if let Some(r) = self.regions().get_mut(index) {
                r.barren = false;
            }
            // The first half has left it out.
            let both = self.region_cost() + 3 * self.st.cfg.geometry.size() + 8;
            if budget.covers(both)
                && let Visit::Got(frames) = self.reclaim_super(host, index, budget)?
            {
                return Ok(Visit::Got(frames));
            }
        }
        self.reclaim_pages(host, index, budget)
    }

    /// Looks at one recently populated region; `hard` breaks superpages for single pages.
    ///
    /// Where frames are left, only a region of which half became RAM since it was last looked at
    /// is worth the looks: so they are a few for each touch, however many streams of touches
    /// are under way.
    pub(crate) fn visit_recent<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        vcpu: Vcpu,
        hard: bool,
        budget: &mut Budget,
    ) -> Result<Visit, Dying> {
        budget.spend(1);
        let fresh = u64::from(self.region(index).fresh);
        if fresh == 0 || !hard && 2 * fresh < self.st.cfg.geometry.size() {
            return Ok(Visit::Nothing);
        }
        if let Some(r) = self.regions().get_mut(index) {
            r.fresh = 0;
        }
        let mut visit = self.reclaim_super(host, index, budget)?;
        let scattered = u64::from(self.region(index).in_place) < self.st.cfg.geometry.size();
        let worth = (hard || scattered) && !self.region(index).barren;
        if visit == Visit::Nothing && worth && budget.covers(self.region_cost()) {
            visit = self.reclaim_pages(host, index, budget)?;
        }
        if let Visit::Got(_) = visit {
            if self.st.cfg.rules.ring.is_none()
                && let Some(lane) = self.lane(vcpu)
            {
                lane.reclaimed();
            }
            if let Some(r) = self.regions().get_mut(index) {
                r.recycled = true;
            }
        }
        Ok(visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Full, Memory};
    use crate::{Config, Sizes};

    #[test]
    fn a_pass_reads_each_page_once_and_each_superpage_once_more() {
        const SUPER: u64 = 512;
        let config = Config::new(FrameCount::new(4 * SUPER));
        let mut memory = Memory::new(&Sizes::for_guest(&config, FrameCount::new(1), 1));
        let Ok(mut pod) = Pod::new(config, memory.storage()) else {
            panic!("a legal configuration");
        };
        let mut host = Full::adopted(&mut pod, false);
        let mut steps = 0;
        while pod.reclaim_step(&mut host, &mut Budget::new(600)) != Ok(ReclaimStep::Done) {
            steps += 1;
        }
        // The last superpage is a promise.
        assert_eq!(host.peeks(), 3 * SUPER + 3);
        // Within the budget one region a step, in each half.
        assert_eq!(steps, 7);
    }
}
