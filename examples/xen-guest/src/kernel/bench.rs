//! Commands for benches: what hypercalls cost without any driver, trades against
//! copies, memory in pieces.

use balloon_core::{FrameRange, Order, Pfn};
use buddy_alloc::{Frame, Preference};
use guest_rt::{PhysAddr, println, ram};
use heapless::Vec;
use qemu_guest::{Ram as _, word_of};
use transport_xen::Gmfn;
use transport_xen::hypercall::Memory as _;

use super::balloon::{Balloon, time};
use super::{Kernel, must};

/// 1 GiB in one hypercall: the least there can be.
const SUPERPAGES: usize = 512;
/// Frames of one hypercall of a copy, as many as a trade takes.
const PAIRS: usize = 64;

/// Superpages given to the host past the balloon.
pub(super) type Bare = Vec<Gmfn, SUPERPAGES>;

impl Kernel {
    /// Obeys a command that the other guests do not know.
    pub(super) fn obey_bench(&mut self, line: &str) {
        match line {
            "move" => self.move_holes(),
            "copy" => self.copy_holes(),
            "scatter" => self.scatter(),
            "compact" => self.balloon.compact(),
            "bare give" => self.bare_give(),
            "bare take" => self.bare_take(),
            _ => println!("unknown command `{line}`"),
        }
    }

    /// As many free frames as balloon frames, both in one piece, the free ones
    /// with their pattern.
    fn pair(&mut self) -> Option<(FrameRange, FrameRange)> {
        let holes = Balloon::some_held(&mut self.zone)?;
        let order = buddy_alloc::Order::MIB_2;
        let start = self.zone.allocate(order, Preference::Any).ok()?;
        let ours = FrameRange::new(Pfn::new(start.get()), holes.count())?;
        for frame in ours.frames() {
            self.ram.fill(frame_of(frame), word_of(frame_of(frame)));
        }
        Some((holes, ours))
    }

    /// Whether `at` holds what `of` was filled with.
    fn is_content(&self, at: FrameRange, of: FrameRange) -> bool {
        at.frames()
            .zip(of.frames())
            .all(|(at, of)| self.ram.holds(frame_of(at), word_of(frame_of(of))))
    }

    /// Trades free frames for ballooned ones and back again: the content has to
    /// come along both times.
    pub(super) fn move_holes(&mut self) {
        let Some((holes, ours)) = self.pair() else {
            println!("@moved frames=0");
            return;
        };
        let calls = self.balloon.counters().hypercalls;
        let begun = time();
        let there = self.balloon.trade(holes, ours);
        let nanos = time().saturating_sub(begun).get();
        let calls = self.balloon.counters().hypercalls - calls;
        // The holes are memory now, and nobody else's until they are holes again.
        let came = !self.balloon.keeps_content() || (there && self.is_content(holes, ours));
        let back = self.balloon.trade(ours, holes);
        let whole = !self.balloon.keeps_content() || self.is_content(ours, ours);
        if !(there && came && back && whole) {
            println!("@verify FAIL moved there={there} came={came} back={back} whole={whole}");
            return;
        }
        let freed = self.free_pair(ours);
        println!(
            "@moved frames={} came={came} freed={freed} nanos={nanos} hypercalls={calls}",
            ours.count().get()
        );
    }

    /// The same without the hypervisor's help: memory behind the holes, a copy,
    /// and the old frames to the host.
    fn copy_holes(&mut self) {
        let Some((holes, ours)) = self.pair() else {
            println!("@copied frames=0");
            return;
        };
        let begun = time();
        let there = self.copy(holes, ours);
        let nanos = time().saturating_sub(begun).get();
        let came = there && self.is_content(holes, ours);
        let back = self.copy(ours, holes);
        if !(came && back && self.is_content(ours, ours)) {
            println!("@verify FAIL copied there={there} came={came} back={back}");
            return;
        }
        let freed = self.free_pair(ours);
        println!(
            "@copied frames={} freed={freed} nanos={nanos}",
            ours.count().get()
        );
    }

    fn copy(&mut self, to: FrameRange, from: FrameRange) -> bool {
        let mut frames = to.frames().zip(from.frames()).peekable();
        while frames.peek().is_some() {
            let (mut olds, mut news) = (Vec::<Gmfn, PAIRS>::new(), Vec::<Gmfn, PAIRS>::new());
            for (to, from) in frames.by_ref().take(PAIRS) {
                // As many as there is room for.
                let _ = (
                    olds.push(Gmfn::of_guest(to)),
                    news.push(Gmfn::of_guest(from)),
                );
            }
            let xen = self.balloon.hypercalls();
            if xen.populate_physmap(&mut olds, Order::FRAME) != Ok(olds.len()) {
                return false;
            }
            for (to, from) in olds.iter().zip(&news) {
                let at = |gmfn: &Gmfn| PhysAddr::new(Frame::new(gmfn.get()).address());
                // SAFETY: both frames are this bench's alone, and populated.
                unsafe { ram::copy_frame(at(from), at(to)) };
            }
            let xen = self.balloon.hypercalls();
            if xen.decrease_reservation(&news, Order::FRAME) != Ok(news.len()) {
                return false;
            }
        }
        true
    }

    fn free_pair(&mut self, ours: FrameRange) -> bool {
        let start = frame_of(ours.start());
        self.zone.free(start, buddy_alloc::Order::MIB_2).is_ok()
    }

    fn scatter(&mut self) {
        let freed = must(self.workload.scatter(&mut self.zone));
        println!("@scattered frames={}", freed.frames.get());
    }

    /// Superpages straight from the allocator to Xen, in one hypercall.
    fn bare_give(&mut self) {
        while !self.bare.is_full()
            && let Ok(start) = self
                .zone
                .allocate(buddy_alloc::Order::MIB_2, Preference::Any)
        {
            // There is room: it is asked for above.
            let _ = self.bare.push(Gmfn::of_guest(Pfn::new(start.get())));
        }
        let begun = time();
        let given = self
            .balloon
            .hypercalls()
            .decrease_reservation(&self.bare, Order::SUPERPAGE);
        let nanos = time().saturating_sub(begun).get();
        println!("@bare extents={} nanos={nanos}", given.unwrap_or(0));
    }

    fn bare_take(&mut self) {
        let mut list = self.bare.clone();
        let begun = time();
        let taken = self
            .balloon
            .hypercalls()
            .populate_physmap(&mut list, Order::SUPERPAGE);
        let nanos = time().saturating_sub(begun).get();
        for start in core::mem::take(&mut self.bare) {
            if let Err(error) = self
                .zone
                .free(Frame::new(start.get()), buddy_alloc::Order::MIB_2)
            {
                panic!("freeing: {error}");
            }
        }
        println!("@bare extents={} nanos={nanos}", taken.unwrap_or(0));
    }
}

const fn frame_of(pfn: Pfn) -> Frame {
    Frame::new(pfn.get())
}
