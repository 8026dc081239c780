//! What goes on beside the balloon: hints for a live migration, reports of free
//! memory, statistics. Each has slots of its own and waits for nobody.

use anyhow::{Result, ensure};
use balloon_core::{FrameCount, FrameRange, FrameSource, InFlight, Kind, Pfn, Run, Shared, Via};
use buddy_alloc::{Backing, Frame, IsolateRequest, Isolated, Order, ReportCursor, Zone};

use crate::host::Host;
use crate::rng::Rng;
use crate::world::SLOTS;

/// Hinted or reported: out of the allocator until the host has answered.
#[derive(Debug)]
struct Flight {
    slot: InFlight<'static>,
    blocks: Vec<FrameRange>,
}

/// Requests beside the balloon.
#[derive(Debug)]
pub(crate) struct Services {
    flights: Vec<Flight>,
    cursor: ReportCursor,
    /// Frames hinted, as far as the host has answered.
    pub(crate) hinted: u64,
    /// Frames reported, as far as the host has answered.
    pub(crate) reported: u64,
    /// Statistics that the host has taken.
    pub(crate) statistics: u64,
}

impl Services {
    pub(crate) fn new() -> Self {
        Self {
            flights: Vec::new(),
            cursor: ReportCursor::default(),
            hinted: 0,
            reported: 0,
            statistics: 0,
        }
    }

    /// No request is under way.
    pub(crate) const fn is_drained(&self) -> bool {
        self.flights.is_empty()
    }

    /// The frames that are out of the allocator.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = FrameRange> {
        self.flights
            .iter()
            .flat_map(|flight| flight.blocks.iter().copied())
    }

    /// Sends one request, which must not have to wait for any of another kind.
    pub(crate) fn start(
        &mut self,
        kind: Kind,
        shared: &'static Shared<SLOTS>,
        zone: &mut Zone<'_>,
        host: &mut Host,
        rng: &mut Rng,
    ) -> Result<()> {
        let same = |flight: &&Flight| flight.slot.kind() == kind;
        let own = self.flights.iter().filter(same).count();
        let Ok(claimed) = shared.slots().claim(kind) else {
            ensure!(
                own == SLOTS,
                "a {kind:?} request has to wait for another kind, {own} of its own are in flight"
            );
            return Ok(());
        };
        let blocks = match kind {
            Kind::Hint => free_blocks(zone, rng),
            Kind::Report => self.dense_blocks(zone),
            _ => Vec::new(),
        };
        let runs: Vec<Run> = blocks.iter().copied().filter_map(Run::new).collect();
        let slot = claimed.launch();
        let request = slot.request(Via::Inflate, &runs);
        let submitted = host.submit_service(request, shared.slots().completer());
        if submitted.is_ok() {
            self.flights.push(Flight { slot, blocks });
            return Ok(());
        }
        ensure!(slot.revoke().is_ok(), "a refused {kind:?} is answered");
        go_home(&blocks, Backing::Populated, zone)
    }

    /// Blocks come home once their request is answered.
    pub(crate) fn settle(&mut self, zone: &mut Zone<'_>) -> Result<()> {
        for flight in core::mem::take(&mut self.flights) {
            match flight.slot.answer() {
                Ok((claimed, _)) => {
                    let frames: u64 = flight.blocks.iter().map(|b| b.count().get()).sum();
                    match claimed.kind() {
                        Kind::Hint => self.hinted += frames,
                        Kind::Report => self.reported += frames,
                        _ => self.statistics += 1,
                    }
                    let reported = claimed.kind() == Kind::Report;
                    let backing = if reported {
                        Backing::Unpopulated
                    } else {
                        Backing::Populated
                    };
                    go_home(&flight.blocks, backing, zone)?;
                }
                Err(slot) => self.flights.push(Flight { slot, ..flight }),
            }
        }
        Ok(())
    }

    /// The device was reset: no answer will come.
    pub(crate) fn reset(&mut self, zone: &mut Zone<'_>) -> Result<()> {
        self.settle(zone)?;
        for flight in core::mem::take(&mut self.flights) {
            let kind = flight.slot.kind();
            ensure!(
                flight.slot.revoke().is_ok(),
                "{kind:?} cannot be called back"
            );
            go_home(&flight.blocks, Backing::Unknown, zone)?;
        }
        Ok(())
    }

    /// What the allocator thinks worth a report.
    fn dense_blocks(&mut self, zone: &mut Zone<'_>) -> Vec<FrameRange> {
        let ask = IsolateRequest {
            order: Order::new(4).unwrap_or(Order::FRAME),
            populated: buddy_alloc::FrameCount::new(1),
        };
        let mut blocks = Vec::new();
        while blocks.len() < 8
            && let Isolated::Block(block) = zone.isolate_next(&mut self.cursor, ask)
        {
            let count = FrameCount::new(block.count().get());
            blocks.extend(FrameRange::new(Pfn::new(block.start().get()), count));
        }
        blocks
    }
}

/// Some free blocks, whatever the host has behind them.
fn free_blocks(zone: &mut Zone<'_>, rng: &mut Rng) -> Vec<FrameRange> {
    let mut blocks = Vec::new();
    for _ in 0..4 {
        let (first, frames) = (crate::world::FIRST, crate::world::FRAMES);
        let offset = rng.below(frames);
        let rest = FrameRange::new(Pfn::new(first + offset), FrameCount::new(frames - offset));
        let Some(free) = rest.and_then(|rest| FrameSource::next_free(zone, rest)) else {
            continue;
        };
        let start = free.start().get();
        let order = start.trailing_zeros().min(free.count().get().ilog2());
        let order = u8::try_from(order).ok().and_then(Order::new);
        let order = order.unwrap_or(Order::FRAME);
        let count = FrameCount::new(order.frames());
        if zone.isolate_at(Frame::new(start), order).is_ok() {
            blocks.extend(FrameRange::new(Pfn::new(start), count));
        }
    }
    blocks.sort_unstable_by_key(|block| block.start());
    blocks
}

fn go_home(blocks: &[FrameRange], backing: Backing, zone: &mut Zone<'_>) -> Result<()> {
    for block in blocks {
        let (start, count) = (block.start().get(), block.count().get());
        let range =
            buddy_alloc::FrameRange::new(Frame::new(start), buddy_alloc::FrameCount::new(count));
        ensure!(
            zone.unisolate(range, backing).is_ok(),
            "the allocator does not take {start:#x}+{count} back"
        );
    }
    Ok(())
}
