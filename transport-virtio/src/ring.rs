//! One split virtqueue (virtio 1.2 section 2.7), driver side.
//!
//! Who may believe what: the device reads descriptors and the available ring,
//! and may scribble over all of the shared memory. So everything the driver
//! needs to know about a request it keeps in private [`Shadow`] entries; from
//! shared memory it reads only the used ring and the device's notification
//! wishes, and takes each value as a claim to be checked.

mod memory;

pub(crate) use memory::{Access, Areas, DESCRIPTOR, Segment, store_bytes};

use crate::dma::Dma;
use crate::queues::{QueueCounters, QueueError, RequestId};
use crate::sync::{Ordering, Site, fence};
use memory::write_descriptor;

/// In the available ring: no interrupt, please. In the used ring: no kick.
const FLAG_SILENT: u16 = 1;

/// So many entries ahead of the last answer taken as no queue is long: no interrupt.
const NEVER: u16 = 1 << 15;

/// What the driver knows of a descriptor.
#[derive(Clone, Copy, Debug)]
struct Shadow {
    /// The next of the chain, or of the free list.
    next: u16,
    role: Role,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Free,
    /// First of a chain of `len` that carries a request.
    Head {
        request: RequestId,
        len: u16,
    },
    /// Further along a chain.
    Linked,
}

/// What [`Ring::kick`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kick {
    /// There are new requests.
    pub(crate) fresh: bool,
    /// The device wants to be notified of them.
    pub(crate) notify: bool,
    /// As many answers as asked for are there already.
    pub(crate) answered: bool,
}

/// What [`Ring::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) request: RequestId,
    /// Bytes the device claims to have written.
    pub(crate) written: u32,
}

/// The driver's half of a queue of at most `S` descriptors.
#[derive(Debug)]
pub(crate) struct Ring<const S: usize> {
    areas: Areas,
    size: u16,
    event_idx: bool,
    interrupts: bool,
    broken: bool,
    free_head: u16,
    free: u16,
    /// Requests the device has not answered.
    in_flight: u16,
    /// The available index as published.
    published: u16,
    /// The available index of the last kick.
    kicked: u16,
    /// The used index up to which answers were taken.
    taken: u16,
    /// The used entry an interrupt was asked for at.
    event: u16,
    shadow: [Shadow; S],
}

impl<const S: usize> Ring<S> {
    /// A queue that does not exist.
    pub(crate) const ABSENT: Self = Self {
        areas: Areas {
            descriptors: 0,
            available: 0,
            used: 0,
        },
        size: 0,
        event_idx: false,
        interrupts: false,
        broken: false,
        free_head: 0,
        free: 0,
        in_flight: 0,
        published: 0,
        kicked: 0,
        taken: 0,
        event: 0,
        shadow: [Shadow {
            next: 0,
            role: Role::Free,
        }; S],
    };

    /// An empty queue of `size` descriptors, a power of two up to `S`.
    ///
    /// The memory of its areas must be zero.
    pub(crate) fn new(
        memory: &impl Dma,
        areas: Areas,
        size: u16,
        event_idx: bool,
        interrupts: bool,
    ) -> Self {
        debug_assert!(size.is_power_of_two() && usize::from(size) <= S);
        let mut ring = Self {
            areas,
            size,
            event_idx,
            interrupts,
            free: size,
            ..Self::ABSENT
        };
        for (next, shadow) in (1u16..).zip(&mut ring.shadow) {
            shadow.next = next;
        }
        // With event indices the flag has to stay clear, and the index alone counts.
        let silent = !interrupts && !event_idx;
        memory.store16(areas.available, if silent { FLAG_SILENT } else { 0 });
        if event_idx && !interrupts {
            memory.store16(ring.used_event(), NEVER);
        }
        ring
    }

    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    /// Requests the device has not answered.
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight as usize
    }

    /// The descriptors the next chain will be made of, in order.
    pub(crate) fn spare(&self) -> impl Iterator<Item = u16> {
        let next = |&index: &u16| Some(self.shadow.get(usize::from(index))?.next);
        core::iter::successors(Some(self.free_head), next).take(self.free.into())
    }

    /// The length of a chain of `segments`, if the queue may have one now that
    /// costs so many of its descriptors.
    fn admit(&self, segments: usize, descriptors: usize) -> Result<u16, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        // A chain longer than the queue is forbidden in a table too.
        match u16::try_from(segments) {
            Ok(len) if (1..=self.size).contains(&len) => {
                let room = descriptors <= self.free.into();
                room.then_some(len).ok_or(QueueError::Full)
            }
            _ => Err(QueueError::TooLong),
        }
    }

    /// Makes a chain of segments available.
    pub(crate) fn submit(
        &mut self,
        memory: &impl Dma,
        request: RequestId,
        chain: impl ExactSizeIterator<Item = Segment>,
    ) -> Result<(), QueueError> {
        let len = self.admit(chain.len(), chain.len())?;
        let head = self.free_head;
        let mut index = head;
        for (left, segment) in (0..len).rev().zip(chain) {
            let Some(shadow) = self.shadow.get_mut(usize::from(index)) else {
                break;
            };
            shadow.role = Role::Linked;
            let next = shadow.next;
            let place = self.areas.descriptors + DESCRIPTOR * usize::from(index);
            write_descriptor(memory, place, segment, (left > 0).then_some(next));
            index = next;
        }
        self.publish(memory, request, head, len);
        self.free_head = index;
        Ok(())
    }

    /// Makes a chain of segments available that costs one descriptor.
    ///
    /// The chain is written to a table at `table`, which has room for it and
    /// belongs to the first of [`spare`](Self::spare).
    pub(crate) fn submit_indirect(
        &mut self,
        memory: &impl Dma,
        request: RequestId,
        table: usize,
        chain: impl ExactSizeIterator<Item = Segment>,
    ) -> Result<(), QueueError> {
        let len = self.admit(chain.len(), 1)?;
        for (index, segment) in (0..len).zip(chain) {
            let place = table + DESCRIPTOR * usize::from(index);
            let next = index + 1;
            write_descriptor(memory, place, segment, (next < len).then_some(next));
        }
        let whole = Segment {
            address: memory.address().wrapping_add(table as u64),
            len: u32::from(len) * 16,
            access: Access::Table,
        };
        self.submit(memory, request, core::iter::once(whole))
    }

    /// Offers the chain of `len` that starts at `head` to the device.
    fn publish(&mut self, memory: &impl Dma, request: RequestId, head: u16, len: u16) {
        if let Some(shadow) = self.shadow.get_mut(usize::from(head)) {
            shadow.role = Role::Head { request, len };
        }
        self.free -= len;
        self.in_flight += 1;
        let entry = usize::from(self.published & (self.size - 1));
        memory.store16(self.areas.available + 4 + 2 * entry, head);
        self.published = self.published.wrapping_add(1);
        // The device must not see the index before what it stands for.
        fence(Site::Publish, Ordering::Release);
        memory.store16(self.areas.available + 2, self.published);
    }

    /// Asks for an interrupt after `wake_after` answers, and whether to notify.
    pub(crate) fn kick(&mut self, memory: &impl Dma, wake_after: usize) -> Kick {
        let nothing = Kick {
            fresh: false,
            notify: false,
            answered: false,
        };
        if self.broken || self.in_flight == 0 {
            return nothing;
        }
        let wanted = u16::try_from(wake_after)
            .unwrap_or(u16::MAX)
            .clamp(1, self.in_flight);
        if self.event_idx {
            // The interrupt comes when the entry of this index is written.
            let event = if self.interrupts { wanted - 1 } else { NEVER };
            self.event = self.taken.wrapping_add(event);
            memory.store16(self.used_event(), self.event);
        }
        // Between publishing our wishes and reading the device's progress: it
        // does the same in the opposite order, so one of us sees the other.
        fence(Site::Kick, Ordering::SeqCst);
        let fresh = self.published != self.kicked;
        let notify = fresh
            && if self.event_idx {
                passed(
                    memory.load16(self.avail_event()),
                    self.published,
                    self.kicked,
                )
            } else {
                memory.load16(self.areas.used) & FLAG_SILENT == 0
            };
        self.kicked = self.published;
        let answers = memory.load16(self.areas.used + 2).wrapping_sub(self.taken);
        Kick {
            fresh,
            notify,
            answered: answers >= wanted,
        }
    }

    /// The next answer to a request; looks at a bounded number of answers.
    ///
    /// Who asked for an interrupt calls it until there is none, or none in
    /// flight.
    pub(crate) fn pop(
        &mut self,
        memory: &impl Dma,
        counters: &mut QueueCounters,
    ) -> Result<Option<Answer>, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        if self.size == 0 {
            return Ok(None);
        }
        for _ in 0..self.size {
            let answers = memory.load16(self.areas.used + 2).wrapping_sub(self.taken);
            if answers == 0 {
                break;
            }
            if answers > self.size {
                // More than were ever made available: no entry can be trusted.
                self.broken = true;
                counters.broken = counters.broken.wrapping_add(1);
                return Err(QueueError::Broken);
            }
            // The entry must not be read before the index that covers it.
            fence(Site::Take, Ordering::Acquire);
            let entry = usize::from(self.taken & (self.size - 1));
            let place = self.areas.used + 4 + 8 * entry;
            let id = memory.load32(place);
            let written = memory.load32(place + 4);
            self.taken = self.taken.wrapping_add(1);
            let Some(request) = self.release(id) else {
                counters.spurious_answers = counters.spurious_answers.wrapping_add(1);
                self.postpone(memory);
                continue;
            };
            counters.answers = counters.answers.wrapping_add(1);
            return Ok(Some(Answer { request, written }));
        }
        Ok(None)
    }

    /// Asks for the interrupt one entry later, since the one just taken answered
    /// nothing: else it would have used the interrupt up.
    fn postpone(&mut self, memory: &impl Dma) {
        if self.event_idx && self.interrupts {
            self.event = self.event.wrapping_add(1);
            memory.store16(self.used_event(), self.event);
            // As in `kick`: the next look at the used index sees the answers
            // that came too early for this wish.
            fence(Site::Postpone, Ordering::SeqCst);
        }
    }

    /// Frees the chain that starts at `id`, if one does.
    fn release(&mut self, id: u32) -> Option<RequestId> {
        let head = u16::try_from(id).ok().filter(|&head| head < self.size)?;
        let Role::Head { request, len } = self.shadow.get(usize::from(head))?.role else {
            return None;
        };
        let mut tail = head;
        let mut next = head;
        for _ in 0..len {
            tail = next;
            let shadow = self.shadow.get_mut(usize::from(tail))?;
            shadow.role = Role::Free;
            next = shadow.next;
        }
        self.shadow.get_mut(usize::from(tail))?.next = self.free_head;
        self.free_head = head;
        self.free += len;
        self.in_flight -= 1;
        Some(request)
    }

    const fn used_event(&self) -> usize {
        self.areas.available + 4 + 2 * self.size as usize
    }

    const fn avail_event(&self) -> usize {
        self.areas.used + 4 + 8 * self.size as usize
    }
}

/// Whether an index moving from `old` to `new` passed the entry `event`, on the
/// circle of 65,536.
const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[cfg(loom)]
mod loom_models;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
