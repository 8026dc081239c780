//! The host trait on the simulator, with its checks.

use super::{Content, Sim, UNMAPPED};
use crate::{
    Backing, Dirty, Entry, Event, Frame, FrameCount, FreezeError, Gfn, Host, Leaf, Mfn, Node,
    Order, Policy, SetError, Stats, Users, Zeroed,
};

impl Sim {
    fn called(&self) {
        self.script.calls.set(self.script.calls.get() + 1);
    }

    /// Counts a fallible callback; whether it is to give the adverse answer.
    fn fails(&self) -> bool {
        self.called();
        let n = self.script.fallible.get() + 1;
        self.script.fallible.set(n);
        self.script
            .fail_at
            .is_some_and(|at| n == at || self.script.fail_on && n > at)
    }

    fn assert_unreachable(&self, mfn: u64, count: u64, what: &str) {
        assert!(
            !self.mapped.any(mfn, count),
            "{what}: frame {mfn:#x} is mapped"
        );
        for tlb in &self.tlb {
            for (gfn, (at, _)) in tlb {
                assert!(
                    !(mfn..mfn + count).contains(at),
                    "{what}: {gfn:#x} still reaches frame {at:#x} through a stale translation"
                );
            }
        }
    }

    /// One leaf-sized step of a table write, with its checks.
    fn apply(&mut self, gfn: Gfn, order: Order, entry: Entry) {
        let count = order.frames().get();
        let words = self.config.patterns;
        if let Entry::Ram { mfn, .. } = entry {
            let run = mfn.get()..mfn.get() + count;
            for (g, (x, _)) in self.tlb.iter().flatten() {
                let other = run.contains(x) && *g != gfn.get() + (x - run.start);
                assert!(
                    !other,
                    "{x:#x} is populated while a stale translation reaches it"
                );
            }
        }
        for i in 0..count {
            let at = gfn.plus(i);
            let was = self.table.lookup(at).at(at);
            let now = entry.advanced(i);
            let truth = &mut self.truth[at.get() as usize];
            if let Entry::Ram { mfn, .. } = was {
                self.mapped.put(mfn.get(), 1, false);
            }
            match (was, now) {
                (_, Entry::Ram { mfn, .. }) => {
                    let m = mfn.get();
                    assert!(self.taken.has(m), "{mfn} is mapped but not the guest's");
                    assert!(!self.mapped.has(m), "{mfn} has two homes");
                    self.mapped.put(m, 1, true);
                    let content = self.content[m as usize];
                    match was {
                        Entry::Promise(p) => {
                            let promised = Content::Filled(words[usize::from(p.get())]);
                            assert_eq!(content, promised, "{at} was promised other content");
                        }
                        _ => *truth = Some(content),
                    }
                    if let (true, Some(tlb)) = (self.traits.eager, self.tlb.last_mut()) {
                        tlb.insert(at.get(), (m, true));
                        self.writers
                            .push((self.tlb.len() - 1, at, Content::Data(m)));
                    }
                }
                (Entry::Hole | Entry::Special | Entry::Promise(_), Entry::Promise(p)) => {
                    *truth = Some(Content::Filled(words[usize::from(p.get())]));
                }
                (Entry::Ram { .. }, Entry::Promise(_)) => {}
                (_, Entry::Hole | Entry::Special) => *truth = None,
            }
        }
        self.frozen.put(gfn.get(), count, false);
        self.table.write(gfn, order, entry);
    }

    fn take(&mut self, mfn: u64, order: Order) -> Option<Backing> {
        let count = order.frames().get();
        assert!(
            self.taken.put(mfn, count, true),
            "the heap gave a frame twice"
        );
        self.heap_left -= count;
        let range = mfn as usize..(mfn + count) as usize;
        if self.traits.dirty_heap {
            self.content[range].fill(Content::Data(0xdead));
            Frame::<Dirty>::new(Mfn::new(mfn), order).map(Backing::Dirty)
        } else {
            self.content[range].fill(Content::ZERO);
            Frame::<Zeroed>::new(Mfn::new(mfn), order).map(Backing::Zeroed)
        }
    }
}

impl Host for Sim {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        self.called();
        self.lookups.set(self.lookups.get() + 1);
        self.table.lookup(gfn)
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        assert!(
            gfn.is_aligned(order),
            "{gfn} is not aligned to order {order}"
        );
        if let Entry::Ram { mfn, .. } = entry {
            assert!(
                mfn.is_aligned(order),
                "{mfn} is not aligned to order {order}"
            );
        }
        let count = order.frames().get();
        let (s, g) = (
            self.config.geometry.superpage(),
            self.config.geometry.giga(),
        );
        let stop = self.fails().then(|| self.script.prefix % count);
        // The write of an existing leaf at its own order does not fail.
        let own = !self.traits.own_order_fails && self.table.lookup(gfn).order == order;
        let piece = match entry {
            Entry::Ram { .. } if self.traits.logical => Order::FRAME,
            _ if order >= g => g,
            _ if order >= s => s,
            _ => Order::FRAME,
        };
        if let (Some(stop), false) = (stop, own) {
            // As far as it got, in leaves of a smaller size.
            let mut done = 0;
            while done < stop && self.table.split_to(gfn.plus(done), Order::FRAME) {
                self.apply(gfn.plus(done), Order::FRAME, entry.advanced(done));
                done += 1;
            }
            return Err(SetError {
                applied: FrameCount::new(done),
            });
        }
        let mut done = 0;
        while done < count {
            let at = gfn.plus(done);
            if !self.table.split_to(at, piece) {
                return Err(SetError {
                    applied: FrameCount::new(done),
                });
            }
            self.apply(at, piece, entry.advanced(done));
            done += piece.frames().get();
        }
        Ok(())
    }

    fn freeze(&mut self, gfn: Gfn, order: Order) -> Result<(), FreezeError> {
        if self.fails() || !self.table.split_to(gfn, order) {
            return Err(FreezeError);
        }
        assert!(
            self.frozen.put(gfn.get(), order.frames().get(), true),
            "frozen twice"
        );
        Ok(())
    }

    fn thaw(&mut self, gfn: Gfn, order: Order) {
        self.called();
        assert!(
            self.frozen.put(gfn.get(), order.frames().get(), false),
            "thawed what was not frozen"
        );
    }

    fn flush(&mut self) {
        self.called();
        self.work.flushes += 1;
        // The worst moment: just before the translations go away.
        for (vcpu, gfn, content) in core::mem::take(&mut self.writers) {
            let Some((mfn, true)) = self.tlb[vcpu].get(&gfn.get()).copied() else {
                continue;
            };
            match self.table.lookup(gfn).at(gfn) {
                Entry::Ram { mfn: there, .. } if there.get() == mfn => {
                    assert!(self.guest_write(vcpu, gfn, content).is_ok());
                    self.landed.push((gfn, content));
                }
                // Only the frame changes: the entry is gone, the translation is not.
                _ => self.content[mfn as usize] = content,
            }
        }
        if self.traits.forgets_flush {
            return;
        }
        self.tlb
            .iter_mut()
            .for_each(alloc::collections::BTreeMap::clear);
        self.table.flushed();
        if !self.traits.unmaps {
            // Readers come back at once where they are only write-protected.
            for gfn in self.frozen.ones().into_iter().map(Gfn::new) {
                assert!(self.guest_read(0, gfn).is_ok());
            }
        }
    }

    fn users(&mut self, mfn: Mfn, order: Order) -> Users {
        if self.fails() {
            return Users::Device;
        }
        self.user_of(mfn.get(), order.frames().get())
    }

    fn peek(&mut self, mfn: Mfn) -> Option<u64> {
        self.work.peeks += 1;
        if self.fails() {
            return None;
        }
        match self.content[mfn.get() as usize] {
            Content::Filled(word) => Some(word),
            Content::Late(_) => Some(0),
            Content::Data(_) => None,
        }
    }

    fn is_filled(&mut self, mfn: Mfn, word: u64) -> bool {
        self.work.scans += 1;
        !self.fails() && self.content[mfn.get() as usize] == Content::Filled(word)
    }

    fn fill(&mut self, mfn: Mfn, order: Order, word: u64) {
        self.called();
        let count = order.frames().get();
        self.work.fills += count;
        self.assert_unreachable(mfn.get(), count, "filled");
        let range = mfn.get() as usize..(mfn.get() + count) as usize;
        self.content[range].fill(Content::Filled(word));
    }

    fn alloc(&mut self, order: Order, node: Node) -> Option<Backing> {
        let count = order.frames().get();
        if self.fails() || self.heap_left < count || self.traits.scattered && count > 1 {
            return None;
        }
        if self.traits.scattered {
            // One frame in each superpage, then the next in each.
            let size = self.config.geometry.size() as usize;
            let len = self.content.len();
            let at = (0..len)
                .map(|i| (i * size) % len + i * size / len)
                .find(|i| !self.taken.has(*i as u64))?;
            return self.take(at as u64, order);
        }
        let part = self.content.len() / usize::from(self.traits.nodes);
        let from = match node.get() {
            _ if self.traits.nodes == 1 => self.heap_at,
            n => part * usize::from(n),
        };
        let at = self
            .taken
            .clear_run(count as usize, from)
            .or_else(|| self.taken.clear_run(count as usize, 0))?;
        self.heap_at = at as usize;
        self.take(at, order)
    }

    fn alloc_at(&mut self, mfn: Mfn, order: Order) -> Option<Backing> {
        let count = order.frames().get();
        let retired = self.retired.contains(&mfn.get());
        if self.fails() || self.taken.any(mfn.get(), count) || self.heap_left < count || retired {
            return None;
        }
        self.take(mfn.get(), order)
    }

    fn free(&mut self, frame: Backing) {
        self.called();
        self.work.frees += 1;
        let (mfn, count) = (frame.mfn().get(), frame.order().frames().get());
        self.assert_unreachable(mfn, count, "freed");
        assert!(
            self.taken.put(mfn, count, false),
            "frame {mfn:#x} freed twice"
        );
        if let Backing::Zeroed(_) = frame {
            for m in mfn..mfn + count {
                assert_eq!(
                    self.content[m as usize],
                    Content::ZERO,
                    "{m:#x} is not zero"
                );
            }
        }
        for m in mfn..mfn + count {
            assert!(!self.special.has(m), "a special frame was given away");
            assert_eq!(
                self.reverse[m as usize], UNMAPPED,
                "{m:#x} freed with a reverse map"
            );
        }
        self.heap_left += count;
    }

    fn dying(&self) -> bool {
        self.called();
        self.script
            .die_at
            .is_some_and(|at| self.script.calls.get() >= at)
    }

    fn should_yield(&self) -> bool {
        self.fails() || self.traits.hurried
    }

    fn freeze_stops_reads(&self) -> bool {
        self.traits.unmaps
    }

    fn written(&mut self, gfn: Gfn) -> bool {
        self.called();
        let region = (gfn.get() / self.config.geometry.size()) as usize;
        // A cached dirty translation would not set the bit again.
        let size = self.config.geometry.size();
        for tlb in &mut self.tlb {
            tlb.retain(|g, _| *g / size != gfn.get() / size);
        }
        core::mem::replace(&mut self.written[region], !self.traits.tracks_writes)
    }

    fn max_order(&self, _gfn: Gfn) -> Order {
        self.traits.max_order
    }

    fn home(&self, gfn: Gfn) -> Node {
        let nodes = u64::from(self.traits.nodes);
        Node::new((gfn.get() * nodes / self.config.max.get()) as u8)
    }

    fn node_of(&self, mfn: Mfn) -> Node {
        let nodes = u64::from(self.traits.nodes);
        Node::new((mfn.get() * nodes / self.content.len() as u64) as u8)
    }

    fn retire(&mut self, mfn: Mfn) {
        self.called();
        self.assert_unreachable(mfn.get(), 1, "retired");
        self.taken.put(mfn.get(), 1, false);
        self.special.put(mfn.get(), 1, true);
        self.retired.push(mfn.get());
        // Never given again: it counts as taken by the host itself.
        self.taken.put(mfn.get(), 1, true);
    }

    fn moves_frames(&self) -> bool {
        !self.traits.copies
    }

    fn copy(&mut self, from: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        let Entry::Ram { mfn, .. } = entry else {
            panic!("a copy of {from} is to be {entry:?}");
        };
        if self.fails() {
            return Err(SetError::NOTHING);
        }
        let count = order.frames().get();
        self.work.fills += count;
        self.assert_unreachable(mfn.get(), count, "copied to");
        for i in 0..count {
            let gfn = from.plus(i);
            let Entry::Ram { mfn: source, .. } = self.table.lookup(gfn).at(gfn) else {
                panic!("{gfn} is copied and is not there");
            };
            assert!(self.frozen.has(gfn.get()), "{gfn} is copied while in use");
            let stale = self.tlb.iter().filter_map(|t| t.get(&gfn.get()));
            assert!(stale.clone().all(|(_, w)| !w), "{gfn} can be written");
            self.content[(mfn.get() + i) as usize] = self.content[source.get() as usize];
        }
        self.set(to, order, entry)
    }

    fn pin(&mut self, mfn: Mfn, order: Order) {
        self.called();
        self.pinned.put(mfn.get(), order.frames().get(), true);
    }

    fn event(&mut self, event: Event) {
        self.called();
        match event {
            Event::Populated { gfn, mfn, count } => {
                for i in 0..count.get() {
                    self.reverse[(mfn.get() + i) as usize] = gfn.get() + i;
                    self.log.put(gfn.get() + i, 1, true);
                }
            }
            Event::Unmapped {
                gfn,
                mfn,
                count,
                promised,
            } => {
                for i in 0..count.get() {
                    let back = &mut self.reverse[(mfn.get() + i) as usize];
                    assert_eq!(*back, gfn.get() + i, "unmapped what was not mapped there");
                    *back = UNMAPPED;
                    if promised {
                        self.log.put(gfn.get() + i, 1, false);
                    }
                }
            }
            _ => {}
        }
        if self.recording {
            self.events.push(event);
        }
    }

    fn exhausted(&mut self, _gfn: Gfn, _stats: &Stats) -> Policy {
        self.called();
        self.traits.policy
    }
}
