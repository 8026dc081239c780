//! What the toolstack wants: targets, a stop, a save.

use balloon_core::{Nanos, Progress, Resume};
use buddy_alloc::Zone;
use transport_xen::FrameMap;
use transport_xen::hypercall::{Events as _, Woken};
use transport_xen::store::StoreEvent;
use transport_xen::suspend::{ShutdownRequest, SuspendAction};

use super::{Balloon, Change, SHARED};
use crate::kernel::second;

/// So long the balloon may take to reach its target before a save. The toolstack
/// waits for a minute.
const BEFORE_SAVE: Nanos = Nanos::from_secs(40);

/// The way to a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    Unasked,
    /// The balloon may still reach its target, until then.
    Asked {
        by: Nanos,
        told: bool,
    },
    /// Nothing new starts; frames on their way arrive.
    Settling,
}

impl<F: FrameMap> Balloon<F> {
    /// Hears what the store says, and does what it asks for.
    pub(super) fn read_store(&mut self, now: Nanos, tell: &mut impl FnMut(Change)) {
        /// News of one step: a store that talks for ever is not listened to.
        const EVENTS: usize = 16;
        for _ in 0..EVENTS {
            let Some(nodes) = &mut self.nodes else { return };
            let event = match nodes.step(now) {
                Ok(event) => event,
                Err(_) => {
                    self.nodes = None;
                    tell(Change::StoreGone);
                    return;
                }
            };
            if nodes.take_notify()
                && let Some(store) = self.ties.store()
            {
                // A port that is gone: the client's clock finds out.
                let _ = self
                    .transport
                    .reservation_mut()
                    .memory_mut()
                    .notify(store.port);
            }
            let Some(event) = event else { return };
            if self.transport.handle_event(event) {
                self.heard = now;
                SHARED.signal().config_changed();
            }
            let action = match event {
                StoreEvent::BadTarget => {
                    tell(Change::BadTarget);
                    None
                }
                StoreEvent::Target(_) => {
                    let beyond = self.transport.target().beyond();
                    if !beyond.is_zero() {
                        tell(Change::Beyond(beyond));
                    }
                    None
                }
                // Not offered, and asked for all the same.
                StoreEvent::Shutdown(ShutdownRequest::Suspend) if !F::TRANSLATED => None,
                StoreEvent::Shutdown(_) => self.suspension.asked(),
                StoreEvent::Acknowledged(request)
                    if F::TRANSLATED || request != ShutdownRequest::Suspend =>
                {
                    self.suspension.acknowledged(request)
                }
                StoreEvent::Acknowledged(_) | StoreEvent::Withdrawn => {
                    self.suspension.withdrawn();
                    None
                }
                _ => None,
            };
            match action {
                Some(SuspendAction::Acknowledge) => {
                    if let Some(nodes) = &mut self.nodes {
                        nodes.acknowledge();
                    }
                }
                Some(SuspendAction::Stop(_)) => guest_rt::exit_success(),
                Some(SuspendAction::Suspend) => {
                    let by = now.saturating_add(BEFORE_SAVE);
                    self.save = Save::Asked { by, told: false };
                }
                None => {}
            }
        }
    }

    /// Stops the balloon at its target, or when that takes too long: a domain
    /// that owns more than its target is saved, but `xl` cannot restore it.
    /// Returns when to look again.
    pub(super) fn prepare_save(
        &mut self,
        zone: &Zone<'_>,
        now: Nanos,
        tell: &mut impl FnMut(Change),
    ) -> Option<Nanos> {
        let Save::Asked { by, told } = self.save else {
            return None;
        };
        let status = self.status(zone);
        if !told {
            self.save = Save::Asked { by, told: true };
            tell(Change::Saving {
                actual: status.size,
                target: status.target.unwrap_or(status.size),
            });
            // Before that is said nothing stops.
            return Some(now);
        }
        // A target that the engine has not looked at yet is one to reach, too.
        let read = self.transport.is_target_read() && !SHARED.signal().is_set();
        let rests = status.progress != Progress::Working && read;
        if rests || now >= by {
            self.engine.quiesce();
            self.save = Save::Settling;
        }
        Some(by)
    }

    /// Down and up again. Nothing interrupts while the ties are not rebuilt.
    pub(super) fn suspend(&mut self) -> Option<Woken> {
        self.save = Save::Unasked;
        let woken = critical_section::with(|_| {
            let mut rest = second::rest();
            let xen = self.transport.reservation_mut().memory_mut();
            let woken = self.suspension.suspend(xen);
            // Whether or not there is still a client.
            if woken == Ok(Woken::Restored)
                && let Err(error) = self.ties.rebuild(&mut rest)
            {
                panic!("after a restore: {error}");
            }
            if woken == Ok(Woken::Restored) {
                self.transport.restored();
            }
            match (&mut self.nodes, woken) {
                (Some(nodes), Ok(Woken::Restored)) => nodes.restored(),
                (Some(nodes), Ok(Woken::Cancelled) | Err(_)) => nodes.reread(),
                (None, _) => {}
            }
            woken.ok()
        });
        // Xen remembers what it was given; also if it would not stop.
        self.engine.resume(Resume::Kept);
        woken
    }

    /// Reads the store's nodes again.
    pub(in crate::kernel) fn ask_again(&mut self) {
        if let Some(nodes) = &mut self.nodes {
            nodes.reread();
        }
    }
}
