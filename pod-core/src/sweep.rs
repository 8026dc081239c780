//! The sweep: the last resort, resumable, superpages first.
//!
//! One pass has two halves. The first looks at whole superpages and leaves each at the first page
//! that is not filled, so a guest full of data costs a few looks per superpage. Only the second
//! looks at single pages, and skips regions in which every page was seen in use and none was
//! written since. A guest is out of memory only when a complete pass found nothing, and to know
//! that costs a look, one cache line, at each page: no summary of a superpage says that none of
//! its pages is zero.

use crate::pod::Dying;
use crate::reclaim::Visit;
use crate::{Budget, DemandError, FrameCount, Host, Pod, Vcpu};

/// Where the sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SweepState {
    /// Next region.
    at: u32,
    /// Regions left in this half; 0 in the second half ends the pass.
    left: u32,
    phase: Phase,
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
        left: 0,
        phase: Phase::Idle,
    };

    /// Next region, regions left, and the half.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) const fn contents(&self) -> (u32, u32, u8) {
        (self.at, self.left, self.phase as u8)
    }
}

/// Answer of one step of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    Found(u64),
    More,
    /// A complete pass found nothing.
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
        Ok(match self.sweep(host, budget)? {
            Swept::Found(frames) => ReclaimStep::Found(FrameCount::new(frames)),
            Swept::More => ReclaimStep::More,
            Swept::Nothing => ReclaimStep::Done,
        })
    }

    /// Goes on with the pass, or starts one. Visits at least one region.
    pub(crate) fn sweep<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        budget: &mut Budget,
    ) -> Result<Swept, Dying> {
        let regions = self.region_count();
        if self.st.sweep.phase == Phase::Idle {
            let at = self.st.sweep.at.min(regions.saturating_sub(1));
            self.st.sweep = SweepState {
                at,
                left: regions,
                phase: Phase::Superpages,
            };
        }
        let mut visited = false;
        loop {
            if self.st.sweep.left == 0 {
                if self.st.sweep.phase == Phase::Pages {
                    self.st.sweep.phase = Phase::Idle;
                    return Ok(Swept::Nothing);
                }
                self.st.sweep.phase = Phase::Pages;
                self.st.sweep.left = regions;
            }
            if visited && (!budget.covers(self.region_cost()) || host.should_yield()) {
                return Ok(Swept::More);
            }
            visited = true;
            let index = self.st.sweep.at;
            self.st.sweep.at = if index == 0 {
                regions.saturating_sub(1)
            } else {
                index - 1
            };
            self.st.sweep.left -= 1;
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
        if region.resident == 0 {
            return Ok(Visit::Nothing);
        }
        if region.barren {
            let start = self.regions().start(index);
            if !host.written(start) {
                return Ok(Visit::Nothing);
            }
            if let Some(r) = self.regions().get_mut(index) {
                r.barren = false;
            }
        }
        match self.st.sweep.phase {
            Phase::Pages => self.reclaim_pages(host, index, budget),
            Phase::Superpages | Phase::Idle => self.reclaim_super(host, index, budget),
        }
    }

    /// Looks at one recently populated region; `hard` breaks superpages for single pages.
    pub(crate) fn visit_recent<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        vcpu: Vcpu,
        hard: bool,
        budget: &mut Budget,
    ) -> Result<Visit, Dying> {
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
