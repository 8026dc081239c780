//! Commands for benches: what hypercalls cost without any driver, migrations against
//! copies, memory in pieces.

use balloon_core::{FrameCount, FrameRange, Nanos, Order, Pfn};
use buddy_alloc::{Frame, Preference};
use guest_rt::{PhysAddr, println, ram};
use heapless::Vec;
use qemu_guest::{Ram as _, word_of};
use transport_xen::hypercall::gate::Instruction;
use transport_xen::hypercall::{Domain as _, Guest, Memory as _};
use transport_xen::{FrameMap, Gmfn};

use super::balloon::{some_held, time};
use super::{Kernel, must};

/// 1 GiB in one hypercall: the least there can be.
const SUPERPAGES: usize = 512;
/// Frames of one hypercall of a copy at most, as many as a migration takes.
const PAIRS: usize = 64;

/// Superpages given to the host past the balloon.
pub(super) type Bare = Vec<Gmfn, SUPERPAGES>;

impl<F: FrameMap> Kernel<F> {
    /// Obeys a command that the other guests do not know.
    pub(super) fn obey_bench(&mut self, line: &str) {
        let pace = line.strip_prefix("pace ").map(str::parse);
        match line {
            "move" => self.move_holes(false),
            "move pairs" => self.move_holes(true),
            "scatter" => self.scatter(),
            "compact" => self.balloon.compact(),
            "ask" => self.balloon.ask_again(),
            "vmcall" => tell_version(Instruction::Vmcall),
            "vmmcall" => tell_version(Instruction::Vmmcall),
            // These name frames past the frame map.
            "starve" if F::TRANSLATED => self.starve(),
            "copy" if F::TRANSLATED => self.copy_holes(PAIRS),
            "copy pairs" if F::TRANSLATED => self.copy_holes(1),
            "bare decrease" if F::TRANSLATED => self.bare_decrease(false),
            "bare scrub" if F::TRANSLATED => self.bare_decrease(true),
            "bare populate" if F::TRANSLATED => self.bare_populate(),
            _ => match pace {
                Some(Ok(millis)) => {
                    self.balloon.set_pace(Nanos::from_millis(millis));
                    println!("@pace millis={millis}");
                }
                _ => println!("unknown command `{line}`"),
            },
        }
    }

    /// As many free frames as balloon frames, both in one piece, the free ones
    /// with their pattern.
    fn pair(&mut self) -> Option<(FrameRange, FrameRange)> {
        let holes = some_held(&mut self.zone)?;
        let order = buddy_alloc::Order::MIB_2;
        let start = self.zone.allocate(order, Preference::Any).ok()?;
        let ours = FrameRange::new(Pfn::new(start.get()), holes.count())?;
        self.fill_as(ours, ours);
        Some((holes, ours))
    }

    /// Whether `at` holds what `of` was filled with, or the same backwards.
    fn is_content(&self, at: FrameRange, of: FrameRange, backwards: bool) -> bool {
        let last = at.count().get().saturating_sub(1);
        at.frames().zip(0..).all(|(at, n)| {
            let n = if backwards { last - n } else { n };
            let of = Frame::new(of.start().get() + n);
            self.ram.holds(frame_of(at), word_of(of))
        })
    }

    /// Fills `at` with the pattern of `of`.
    fn fill_as(&mut self, at: FrameRange, of: FrameRange) {
        for (at, of) in at.frames().zip(of.frames()) {
            self.ram.fill(frame_of(at), word_of(frame_of(of)));
        }
    }

    /// Migrates free frames for ballooned ones and back again: the content has to
    /// come along both times. In pairs of no neighbours, the last one for the
    /// first, or as they lie.
    pub(super) fn move_holes(&mut self, apart: bool) {
        let Some((holes, ours)) = self.pair() else {
            println!("@moved frames=0");
            return;
        };
        let calls = self.balloon.counters().hypercalls;
        let begun = time();
        let there = self.balloon.migrate(holes, ours, apart);
        let nanos = time().saturating_sub(begun).get();
        let calls = self.balloon.counters().hypercalls - calls;
        // The holes are memory now, and nobody else's until they are holes again.
        // Where no content comes along, at least they can be used.
        let keeps = self.balloon.keeps_content();
        if there && !keeps {
            self.fill_as(holes, ours);
        }
        let came = there && self.is_content(holes, ours, apart && keeps);
        let back = there && self.balloon.migrate(ours, holes, apart);
        if back && !keeps {
            self.fill_as(ours, ours);
        }
        let whole = back && self.is_content(ours, ours, false);
        if !(there && came && back && whole) {
            println!("@verify FAIL moved there={there} came={came} back={back} whole={whole}");
            return;
        }
        let freed = self.free_pair(ours);
        let xen = self.balloon.hypercalls();
        let (owned, limit) = (xen.current_reservation(), xen.maximum_reservation());
        println!(
            "@moved frames={} came={came} freed={freed} nanos={nanos} hypercalls={calls} \
             owned={} limit={}",
            ours.count().get(),
            owned.map_or(0, FrameCount::get),
            limit.map_or(0, FrameCount::get),
        );
    }

    /// The same without the hypervisor's help: memory behind the holes, a copy,
    /// and the old frames to the host; so many frames in one hypercall.
    fn copy_holes(&mut self, at_once: usize) {
        let Some((holes, ours)) = self.pair() else {
            println!("@copied frames=0");
            return;
        };
        let begun = time();
        let there = self.copy(holes, ours, at_once);
        let nanos = time().saturating_sub(begun).get();
        let came = there && self.is_content(holes, ours, false);
        let back = self.copy(ours, holes, at_once);
        if !(came && back && self.is_content(ours, ours, false)) {
            println!("@verify FAIL copied there={there} came={came} back={back}");
            return;
        }
        let freed = self.free_pair(ours);
        println!(
            "@copied frames={} freed={freed} nanos={nanos}",
            ours.count().get()
        );
    }

    fn copy(&mut self, to: FrameRange, from: FrameRange, at_once: usize) -> bool {
        let mut frames = to.frames().zip(from.frames()).peekable();
        while frames.peek().is_some() {
            let (mut holes, mut ours) = (Vec::<Gmfn, PAIRS>::new(), Vec::<Gmfn, PAIRS>::new());
            for (to, from) in frames.by_ref().take(at_once) {
                // As many as there is room for.
                let _ = (
                    holes.push(Gmfn::of_guest(to)),
                    ours.push(Gmfn::of_guest(from)),
                );
            }
            let xen = self.balloon.hypercalls();
            if xen.populate_physmap(&mut holes, Order::FRAME) != Ok(holes.len()) {
                return false;
            }
            for (to, from) in holes.iter().zip(&ours) {
                let at = |gmfn: &Gmfn| PhysAddr::new(Frame::new(gmfn.get()).address());
                // SAFETY: both frames are this bench's alone, and populated.
                unsafe { ram::copy_frame(at(from), at(to)) };
            }
            let xen = self.balloon.hypercalls();
            if xen.decrease_reservation(&ours, Order::FRAME) != Ok(ours.len()) {
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

    /// Superpages straight from the allocator to Xen, in one hypercall, cleared or
    /// not.
    fn bare_decrease(&mut self, clears: bool) {
        while !self.bare.is_full()
            && let Ok(start) = self
                .zone
                .allocate(buddy_alloc::Order::MIB_2, Preference::Any)
        {
            // There is room: it is asked for above.
            let _ = self.bare.push(Gmfn::of_guest(Pfn::new(start.get())));
        }
        let begun = time();
        for start in self.bare.iter().filter(|_| clears) {
            let first = PhysAddr::new(Frame::new(start.get()).address());
            // SAFETY: a superpage that was allocated here.
            unsafe { ram::clear_frames(first, 512) };
        }
        let given = self
            .balloon
            .hypercalls()
            .decrease_reservation(&self.bare, Order::SUPERPAGE);
        let nanos = time().saturating_sub(begun).get();
        println!("@bare extents={} nanos={nanos}", given.unwrap_or(0));
    }

    fn bare_populate(&mut self) {
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

/// Asks Xen for its version by this instruction, the CPU's or not.
fn tell_version(instruction: Instruction) {
    // SAFETY: on Xen; no frame is passed on.
    match unsafe { Guest::new(instruction) }.version() {
        Ok(version) => println!("@version xen={}.{}", version.major, version.minor),
        Err(error) => println!("@version refused: {error}"),
    }
}
