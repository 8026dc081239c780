//! What must be true after every step.

use anyhow::{Result, bail, ensure};
use balloon_core::{Pfn, Status};
use buddy_alloc::{Frame, State, Via};

use crate::world::{FIRST, FRAMES, World};

impl World<'_> {
    /// What is on its way counts: no step goes beyond what the host wants.
    pub(crate) fn check_overshoot(&self, before: Status) -> Result<()> {
        // Half of a pair counts, too, until the other half is answered.
        if !self.compactor.is_drained() {
            return Ok(());
        }
        let after = self.engine.status(&self.zone);
        let reach = after.size.saturating_add(after.inflating);
        // Frames on their way back stay the host's if it refuses.
        let held = before.size.saturating_add(before.inflating);
        let held = held.saturating_add(before.deflating);
        ensure!(
            reach <= held || after.goal.is_some_and(|goal| reach <= goal),
            "{reach} are given or on their way, the host wants {:?}",
            after.goal
        );
        Ok(())
    }

    /// The balloon rests: what there is to tell the host was told.
    pub(crate) fn check_told(&self) -> Result<()> {
        if self.resetting || !self.engine.is_drained() || !self.compactor.is_drained() {
            return Ok(());
        }
        let status = self.engine.status(&self.zone);
        ensure!(
            self.host.actual == status.size,
            "the host was told {} last: {status:?}",
            self.host.actual
        );
        // A host that knows nothing takes it that there was no downgrade.
        let told = match self.host.unit {
            Some(unit) => unit == status.unit,
            None => status.counters.downgrades == status.counters.upgrades,
        };
        ensure!(
            told,
            "the host was told of units of {:?} last: {status:?}",
            self.host.unit
        );
        Ok(())
    }

    /// Each frame has one owner, and all books agree.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(breach) = self.host.breaches.first() {
            bail!("{breach}");
        }
        self.used.clear();
        for (start, end) in self.guest.used() {
            ensure!(
                self.used.add(start, end),
                "a frame of {start:#x}..{end:#x} is in use twice"
            );
        }
        let (mut counts, mut reserved) = ([0u64; 5], 0);
        let mut frame = FIRST;
        while frame < FIRST + FRAMES {
            let Some(at) = self.zone.state(Frame::new(frame)) else {
                bail!("the allocator does not know frame {frame:#x}");
            };
            let end = at.block.end().get().min(FIRST + FRAMES);
            let place = match at.state {
                State::Free => 0,
                State::Used => 1,
                State::InHand => 2,
                State::Ballooned(_) => 3,
                State::Isolated => 4,
                other => bail!("frame {frame:#x} is {other:?}, which nobody asked for"),
            };
            // Those of the reserve are allocated, and nobody's yet.
            let spare = place == 1 && !self.used.any(frame, end, true);
            reserved += u64::from(spare) * (end - frame);
            ensure!(
                spare || !self.used.any(frame, end, place != 1),
                "the allocator says {:?} of {frame:#x}..{end:#x}",
                at.state
            );
            self.check_host(frame, end, at.state)?;
            if let Some(count) = counts.get_mut(place) {
                *count += end - frame;
            }
            frame = end;
        }
        let [_, _, in_hand, ballooned, isolated] = counts;
        self.check_services(isolated)?;
        let status = self.engine.status(&self.zone);
        ensure!(
            reserved == self.shared.emergency_frames().get(),
            "{reserved} frames are allocated and unused, {} are in the reserve",
            self.shared.emergency_frames()
        );
        let moving = status.inflating.get() + status.deflating.get();
        // The rest is the compactor's: half of a pair counts as ballooned.
        let Some(migrating) = in_hand.checked_sub(moving) else {
            bail!("{moving} frames move, {in_hand} are in hand");
        };
        ensure!(
            migrating == 0 || !self.compactor.is_drained(),
            "{migrating} frames are in nobody's hand"
        );
        ensure!(
            (ballooned..=ballooned + migrating).contains(&status.size.get()),
            "size {}, ballooned {ballooned}, migrating {migrating}",
            status.size
        );
        Ok(())
    }

    /// What the guest has is not the host's, and what it gave is.
    fn check_host(&self, frame: u64, end: u64, state: State) -> Result<()> {
        match state {
            State::Free | State::Used | State::Isolated if self.host.told.any(frame, end, true) => {
                // Told to return, and used before the host acknowledged it.
                let early = |pfn| !self.host.must_tell && self.host.is_returning(pfn);
                let mut told = (frame..end).map(Pfn::new);
                if let Some(pfn) = told.find(|&pfn| self.host.told.contains(pfn) && !early(pfn)) {
                    bail!("frame {:#x} is the host's and {state:?}", pfn.get());
                }
            }
            // A device that was reset has nothing, and the guest takes all back.
            State::Ballooned(via) if !self.resetting => {
                let host = match via {
                    Via::Inflate => &self.host.told,
                    Via::Bulk => &self.host.bulk,
                };
                ensure!(
                    !host.any(frame, end, false),
                    "the host does not have all of {frame:#x}..{end:#x}, which is {state:?}"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// Frames hinted and reported are out of the allocator, and no others.
    fn check_services(&self, isolated: u64) -> Result<()> {
        let mut frames = 0;
        for block in self.services.blocks() {
            frames += block.count().get();
            for pfn in block.frames() {
                let state = self.zone.state(Frame::new(pfn.get())).map(|at| at.state);
                ensure!(
                    state == Some(State::Isolated),
                    "frame {:#x} is hinted or reported and {state:?}",
                    pfn.get()
                );
            }
        }
        ensure!(
            frames == isolated,
            "{isolated} frames are isolated, {frames} are hinted or reported"
        );
        Ok(())
    }
}
