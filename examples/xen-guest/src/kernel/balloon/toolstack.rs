//! What the toolstack wants: targets, a stop, a save.

use balloon_core::{Nanos, Progress, Resume};
use buddy_alloc::Zone;
use transport_xen::FrameMap;
use transport_xen::hypercall::{Events as _, Woken};
use transport_xen::store::Notice;
use transport_xen::suspend::{Duty, ShutdownRequest};

use super::{Balloon, News, SHARED};
use crate::kernel::second;

/// So long the balloon may take to reach its target before a save. The toolstack
/// waits for a minute.
const BEFORE_SAVE: Nanos = Nanos::from_secs(5);

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
    pub(super) fn read_store(&mut self, now: Nanos, tell: &mut impl FnMut(News)) {
        /// News of one step: a store that talks for ever is not listened to.
        const NEWS: usize = 16;
        for _ in 0..NEWS {
            let Some(desk) = &mut self.desk else { return };
            let notice = match desk.step(now) {
                Ok(notice) => notice,
                Err(_) => {
                    self.desk = None;
                    tell(News::StoreGone);
                    return;
                }
            };
            if desk.take_notify()
                && let Some(store) = self.ties.store()
            {
                // A port that is gone: the desk's clock finds out.
                let _ = self
                    .transport
                    .reservation_mut()
                    .memory_mut()
                    .notify(store.port);
            }
            let Some(notice) = notice else { return };
            if self.transport.hear(notice) {
                self.heard = now;
                SHARED.signal().config_changed();
            }
            let duty = match notice {
                Notice::BadTarget => {
                    tell(News::BadTarget);
                    None
                }
                // Not offered, and asked for all the same.
                Notice::Shutdown(ShutdownRequest::Suspend) if !F::TRANSLATED => None,
                Notice::Shutdown(_) => self.suspension.asked(),
                Notice::Acknowledged(request)
                    if F::TRANSLATED || request != ShutdownRequest::Suspend =>
                {
                    self.suspension.acknowledged(request)
                }
                Notice::Acknowledged(_) | Notice::Withdrawn => {
                    self.suspension.withdrawn();
                    None
                }
                _ => None,
            };
            match duty {
                Some(Duty::Acknowledge) => {
                    if let Some(desk) = &mut self.desk {
                        desk.acknowledge();
                    }
                }
                Some(Duty::Stop(_)) => guest_rt::exit_success(),
                Some(Duty::Suspend) => {
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
        tell: &mut impl FnMut(News),
    ) -> Option<Nanos> {
        let Save::Asked { by, told } = self.save else {
            return None;
        };
        let status = self.status(zone);
        if !told {
            self.save = Save::Asked { by, told: true };
            tell(News::Saving {
                actual: status.size,
                target: status.target.unwrap_or(status.size),
            });
            // Before that is said nothing stops.
            return Some(now);
        }
        // A target that the engine has not looked at yet is one to reach, too.
        let read = self.transport.is_target_read() && !SHARED.signal().pending();
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
            // Whether or not there is still a desk.
            if woken == Ok(Woken::Restored)
                && let Err(error) = self.ties.rebuild(&mut rest)
            {
                panic!("after a restore: {error}");
            }
            if woken == Ok(Woken::Restored) {
                self.transport.restored();
            }
            match (&mut self.desk, woken) {
                (Some(desk), Ok(Woken::Restored)) => desk.restored(),
                (Some(desk), Ok(Woken::Cancelled) | Err(_)) => desk.reread(),
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
        if let Some(desk) = &mut self.desk {
            desk.reread();
        }
    }
}
