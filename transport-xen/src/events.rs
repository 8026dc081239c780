//! Pending and masked ports in the shared-info page (two-level ABI).
//!
//! One word of the page says whether anything is pending, a selector says in
//! which words, the words say which ports. Whoever takes a port out clears its
//! bit *before* looking at what it stands for, so that a later event is seen.

use crate::page::SharedPage;
use crate::units::Port;

/// Words of 64 ports each.
const WORDS: usize = 64;
const UPCALL_PENDING: usize = 0;
const SELECTOR: usize = 8;
#[cfg(not(target_arch = "aarch64"))]
const PENDING: usize = 2048;
/// One CPU's information in the page instead of 32.
#[cfg(target_arch = "aarch64")]
const PENDING: usize = 48;
const MASK: usize = PENDING + WORDS * 8;

/// The shared-info page, as far as events go.
#[derive(Debug)]
pub struct EventPage<P> {
    page: P,
}

impl<P: SharedPage> EventPage<P> {
    /// The events of the page that shared-info is mapped at.
    #[must_use]
    pub const fn new(page: P) -> Self {
        Self { page }
    }

    /// Masks every port.
    ///
    /// The first thing to do, also after a restore: ports start unmasked, and
    /// one that nobody handles interrupts for ever.
    pub fn mask_all(&mut self) {
        for at in (MASK..MASK + WORDS * 8).step_by(4) {
            self.page.store(at, u32::MAX);
        }
    }

    /// Masks one port. Unmasking is a hypercall
    /// ([`Events::unmask`](crate::hypercall::Events::unmask)): it delivers what
    /// came meanwhile.
    pub fn mask(&mut self, port: Port) {
        let (at, bit) = place(MASK, port);
        let word = self.page.load(at);
        self.page.store(at, word | bit);
    }

    /// Whether the port is pending.
    #[must_use]
    pub fn is_pending(&self, port: Port) -> bool {
        let (at, bit) = place(PENDING, port);
        self.page.load(at) & bit != 0
    }

    /// Takes every pending port that is not masked and shows it to `handle`.
    ///
    /// For the interrupt handler of the event channel, on the boot CPU.
    pub fn take_pending(&mut self, mut handle: impl FnMut(Port)) {
        self.page.write(UPCALL_PENDING, &[0]);
        for half in 0..2 {
            let words = self.page.fetch_and(SELECTOR + half * 4, 0);
            for word in bits(words).map(|bit| half * 32 + bit) {
                for at in [word * 8, word * 8 + 4] {
                    let ready = self.page.load(PENDING + at) & !self.page.load(MASK + at);
                    let taken = self.page.fetch_and(PENDING + at, !ready) & ready;
                    for bit in bits(taken) {
                        let port = u32::try_from(at * 8 + bit).ok().and_then(Port::new);
                        if let Some(port) = port {
                            handle(port);
                        }
                    }
                }
            }
        }
    }
}

/// The word of a port's bit, and the bit.
const fn place(base: usize, port: Port) -> (usize, u32) {
    let port = port.get();
    (base + (port / 32) as usize * 4, 1 << (port % 32))
}

/// The numbers of the bits set.
fn bits(word: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |bit| word >> bit & 1 != 0)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::testing::FakePage;

    fn port(number: u32) -> Port {
        Port::new(number).unwrap()
    }

    fn raise(page: &mut FakePage, number: u32) {
        let (at, bit) = place(PENDING, port(number));
        let word = page.load(at);
        page.store(at, word | bit);
        let selector = SELECTOR + number as usize / 64 / 32 * 4;
        let word = page.load(selector);
        page.store(selector, word | 1 << (number / 64 % 32));
        page.store(UPCALL_PENDING, 0x0101);
    }

    #[test]
    fn pending_ports_come_out_once_and_masked_ones_stay() {
        let mut page = FakePage::new();
        let mut events = EventPage::new(page.clone());
        for number in [1, 33, 64, 2050, 4095] {
            raise(&mut page, number);
        }
        events.mask(port(33));
        let mut seen = Vec::new();
        events.take_pending(|port| seen.push(port.get()));
        assert_eq!(seen, [1, 64, 2050, 4095]);
        assert!(events.is_pending(port(33)), "left for the unmask");
        assert_eq!(
            page.load(UPCALL_PENDING),
            0x0100,
            "only the flag is cleared"
        );
        events.take_pending(|port| panic!("{port:?} again"));
    }

    #[test]
    fn a_masked_page_is_silent() {
        let mut page = FakePage::new();
        let mut events = EventPage::new(page.clone());
        events.mask_all();
        raise(&mut page, 7);
        events.take_pending(|port| panic!("{port:?} is masked"));
    }
}
