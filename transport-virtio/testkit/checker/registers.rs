//! What the driver does to registers: status, features, configuration, queues.

use super::{Checker, SUSPEND};
use crate::protocol::config::{ACTUAL, HINT_COMMAND, NUM_PAGES, POISON_VALUE};
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::protocol::status::DeviceStatus;

impl Checker {
    pub(in crate::testing) fn status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            // A reset takes every frame back.
            let (violations, memory) = (core::mem::take(&mut self.violations), self.memory.clone());
            *self = Self {
                violations,
                memory,
                superpages: self.superpages,
                translated: self.translated,
                poison: self.poison,
                freed: self.freed,
                ..Self::new(&self.profile)
            };
        }
        let starting = status.contains(DeviceStatus::FEATURES_OK) && !self.features_settled();
        if starting && !self.accepted.contains(Features::VERSION_1) {
            self.note("6", "VERSION_1 declined");
        }
        let declined = self.offered.difference(self.accepted);
        if starting && declined.contains(Features::MUST_TELL_HOST) {
            self.note("3", "MUST_TELL_HOST declined");
        }
        if starting && declined.contains(Features::ACCESS_PLATFORM) {
            self.note("R10", "ACCESS_PLATFORM declined");
        }
        let accepted = self.accepted;
        if starting
            && !self.poison
            && accepted.contains(Features::PAGE_POISON)
            && !self.profile.chunks()
        {
            self.note("4", "PAGE_POISON accepted, but nobody poisons");
        }
        let unsaid = self.poison && !accepted.contains(Features::PAGE_POISON);
        if starting && unsaid && accepted.contains(Features::PAGE_REPORTING) {
            self.note("5", "reports to a device that does not know the value");
        }
        self.status = status;
    }

    const fn features_settled(&self) -> bool {
        self.status.contains(DeviceStatus::FEATURES_OK)
    }

    pub(in crate::testing) fn accepts(&mut self, accepted: Features) {
        self.accepted = accepted;
        if accepted.contains(SUSPEND) {
            self.note("R11", "SUSPEND accepted");
        }
    }

    pub(in crate::testing) fn reads(&mut self, offset: u16, len: usize) {
        if usize::from(offset) + 4 > len {
            self.note("8", "read beyond the configuration space");
        }
        let needs = match offset {
            NUM_PAGES | ACTUAL => Features::empty(),
            HINT_COMMAND => Features::FREE_PAGE_HINT,
            POISON_VALUE => Features::PAGE_POISON,
            _ => return self.note("8", "read of an unknown field"),
        };
        if !self.accepted.contains(needs) {
            self.note("8", "read of a field whose feature was not negotiated");
        }
        // The driver's own does not change under it.
        if offset == ACTUAL {
            return;
        }
        if !self.guarded {
            self.note("6", "a field read without the generation before it");
        }
        self.unguarded = true;
    }

    pub(in crate::testing) const fn looks_at_generation(&mut self) {
        (self.guarded, self.unguarded) = (true, false);
    }

    pub(in crate::testing) fn writes(&mut self, offset: u16) {
        match offset {
            ACTUAL => {}
            POISON_VALUE if self.running() => {
                self.note("10", "poison value written to a running device");
            }
            POISON_VALUE if self.accepted.contains(Features::PAGE_POISON) => {}
            _ => self.note("8", "write of a field that is not the driver's"),
        }
    }

    pub(in crate::testing) fn enables(&mut self, queue: Option<QueueId>) {
        if self.running() {
            self.note("9", "queue enabled on a running device");
        }
        match queue {
            None => self.note("R5", "a queue of a private feature enabled"),
            Some(queue) if !self.accepted.contains(queue.feature()) => {
                self.note("2", "queue enabled without its feature");
            }
            Some(_) => {}
        }
    }

    pub(in crate::testing) fn notifies(&mut self) {
        if !self.running() {
            self.note("9", "notification before DRIVER_OK");
        }
    }
}
