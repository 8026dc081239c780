//! Migrations that the kernel makes by itself, besides the compactor's rounds.

use anyhow::{Result, ensure};
use balloon_core::{FrameCount, FrameRange, FrameSource, TakeRequest};
use balloon_core::{Isolated, Ledger, Migrated, Pfn, RangeSink, Run, Ticket};

use super::{FRAMES, World};

/// What the kernel has in hand.
#[derive(Default)]
pub(super) struct Kernel {
    isolated: Vec<Isolated>,
    /// Under way: the old frame and the new one.
    moving: Vec<(Ticket, Pfn, Pfn)>,
}

impl Kernel {
    /// Nothing is under way.
    pub(super) const fn is_idle(&self) -> bool {
        self.moving.is_empty()
    }
}

impl World<'_> {
    /// One thing that the kernel does about ballooned frames.
    pub(super) fn kernel_moves(&mut self) -> Result<()> {
        match self.rng.below(4) {
            0 => self.isolate(),
            1 => self.migrate(),
            2 => self.finish(),
            _ => self.put_back_one(),
        }
    }

    fn isolate(&mut self) -> Result<()> {
        let from = self.rng.below(FRAMES);
        let rest = FrameRange::new(
            Pfn::new(self.ground.first + from),
            FrameCount::new(FRAMES - from),
        );
        let held = rest.and_then(|rest| Ledger::next_held(&mut self.zones, rest));
        if let Some((range, _)) = held {
            let at = range.start().get() + self.rng.below(range.count().get());
            let pfn = Pfn::new(at);
            let isolated = self
                .compactor
                .isolate(&mut self.engine, &mut self.zones, pfn);
            if let Ok(isolated) = isolated {
                ensure!(isolated.frame() == pfn, "{pfn:?} was asked: {isolated:?}");
                self.kernel.isolated.push(isolated);
            }
        }
        Ok(())
    }

    fn migrate(&mut self) -> Result<()> {
        let Some(isolated) = self.kernel.isolated.pop() else {
            return Ok(());
        };
        let mut runs = [Run::default()];
        let mut sink = RangeSink::new(&mut runs, FrameCount::ONE);
        FrameSource::take(&mut self.zones, TakeRequest::any(Pfn::LIMIT), &mut sink);
        let Some(new) = sink.runs().first().map(|run| run.range().start()) else {
            return self.put_back(isolated);
        };
        ensure!(
            !self.used_map.contains(new),
            "frame {new:?} is taken and in use"
        );
        let old = isolated.frame();
        let Some(balloon) = self.balloon.as_mut() else {
            return Ok(());
        };
        let moved = self.compactor.migrate(
            &mut self.engine,
            balloon,
            &mut self.zones,
            isolated,
            new,
            self.now,
        );
        match moved {
            Ok(ticket) => self.kernel.moving.push((ticket, old, new)),
            Err((_, isolated)) => {
                self.put(new)?;
                self.put_back(isolated)?;
            }
        }
        Ok(())
    }

    /// Takes up what became of migrations.
    pub(super) fn finish(&mut self) -> Result<()> {
        for (ticket, old, new) in core::mem::take(&mut self.kernel.moving) {
            let mine: &[Pfn] = match self.compactor.finish(ticket) {
                Err(ticket) => {
                    self.kernel.moving.push((ticket, old, new));
                    continue;
                }
                Ok(Migrated::Done) => &[old],
                Ok(Migrated::Unchanged) => &[new],
                Ok(Migrated::BothHoles) => &[],
            };
            for &pfn in mine {
                ensure!(
                    !self.device.told.contains(pfn),
                    "frame {pfn:?} is the kernel's, and the device's"
                );
                self.put(pfn)?;
            }
        }
        Ok(())
    }

    /// Puts back what the kernel has in hand.
    pub(super) fn put_back_all(&mut self) -> Result<()> {
        while !self.kernel.isolated.is_empty() {
            self.put_back_one()?;
        }
        Ok(())
    }

    fn put_back_one(&mut self) -> Result<()> {
        match self.kernel.isolated.pop() {
            Some(isolated) => self.put_back(isolated),
            None => Ok(()),
        }
    }

    fn put_back(&mut self, isolated: Isolated) -> Result<()> {
        let frame = isolated.frame();
        let back = self
            .compactor
            .put_back(&mut self.engine, &mut self.zones, isolated);
        ensure!(back.is_ok(), "{frame:?} cannot be put back");
        Ok(())
    }

    fn put(&mut self, pfn: Pfn) -> Result<()> {
        let range = FrameRange::new(pfn, FrameCount::ONE);
        let put = range.map(|range| self.zones_put(range));
        ensure!(
            put == Some(Ok(())),
            "the allocator does not take {pfn:?} back"
        );
        Ok(())
    }
}
