//! A domain whose hypervisor has no memory left for the tables that map it.

use balloon_core::{FrameCount, FrameRange, Order, Pfn, Run};
use buddy_alloc::Preference;
use guest_rt::println;
use heapless::Vec;
use transport_xen::hypercall::Memory as _;
use transport_xen::{FrameMap, Gmfn, Moved};

use super::Kernel;

/// Beyond all memory of a small domain.
const FAR: u64 = 0x10_0000;
/// Superpages whose frames use up the tables.
const BLOCKS: usize = 6;
/// Frames of a superpage, and so many of a table.
const TABLE: u64 = 512;

/// The place with so many tables before it.
const fn far(table: u64) -> Pfn {
    Pfn::new(FAR + table * TABLE)
}

impl<F: FrameMap> Kernel<F> {
    /// Moves frames to places that need a table each until Xen has none, then
    /// migrates and grows where there is none, and tells what that has cost. In the end
    /// there is memory again behind all frames of the map.
    pub(super) fn starve(&mut self) {
        let order = buddy_alloc::Order::MIB_2;
        let blocks: Vec<u64, BLOCKS> = core::iter::from_fn(|| {
            let start = self.zone.allocate(order, Preference::Any).ok()?;
            Some(start.get())
        })
        .take(BLOCKS)
        .collect();
        let ours = |nth: u64| {
            let block = blocks.get(usize::try_from(nth / TABLE).unwrap_or(BLOCKS))?;
            Some(Pfn::new(block + nth % TABLE))
        };
        let xen = self.balloon.hypercalls();
        let mut moves = 0;
        while let Some(from) = ours(moves)
            && xen.move_frame(from, far(moves)).is_ok()
        {
            moves += 1;
        }
        // The one that was refused; and what is migrated.
        let (Some(refused), Some(migrated)) = (ours(moves), ours(moves + 1)) else {
            println!("@starved moves={moves}");
            return;
        };
        let before = self.balloon.counters().lost;
        let charged = self.charged();
        let reservation = self.balloon.reservation();
        let torn = match (single(far(moves + 2)), single(migrated)) {
            (Some(hole), Some(new)) => stopped(reservation.migrate(&[hole], &[new])),
            _ => "nothing",
        };
        let superpage = far(moves + 6);
        let whole = FrameRange::new(superpage, FrameCount::new(TABLE)).and_then(Run::new);
        // A frame twice, which needs a table, and a superpage, which needs none.
        let grown = [single(far(moves + 4)), single(far(moves + 4)), whole];
        let grown =
            grown.map(|run| run.map_or("nothing", |run| stopped(reservation.deflate(&[run]))));
        let lost = self.balloon.counters().lost - before;
        let more = self.charged() - charged;
        let xen = self.balloon.hypercalls();
        let gone = [refused, migrated].map(|pfn| xen.is_hole(pfn) == Ok(true));
        let mut back = true;
        for nth in 0..moves {
            back &= ours(nth).is_some_and(|to| xen.move_frame(far(nth), to).is_ok());
        }
        for hole in [refused, migrated] {
            let mut list = [Gmfn::of_guest(hole)];
            back &= xen.populate_physmap(&mut list, Order::FRAME) == Ok(1);
        }
        for start in blocks {
            back &= self
                .zone
                .free(buddy_alloc::Frame::new(start), order)
                .is_ok();
        }
        let [first, second, third] = grown;
        println!(
            "@starved moves={moves} torn={torn} gone={} first={first} second={second} \
             third={third} lost={lost} charged={more} back={back}",
            gone == [true; 2],
        );
    }

    fn charged(&mut self) -> u64 {
        let charged = self.balloon.hypercalls().current_reservation();
        charged.map_or(0, FrameCount::get)
    }
}

fn single(pfn: Pfn) -> Option<Run> {
    FrameRange::single(pfn).and_then(Run::new)
}

fn stopped(moved: Moved) -> &'static str {
    use transport_xen::Stopped;
    match moved.stopped {
        None => "done",
        Some(Stopped::Torn) => "torn",
        Some(Stopped::NoTables) => "no-tables",
        Some(_) => "other",
    }
}
