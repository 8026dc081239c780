//! Pending and masked ports in the shared-info page (two-level ABI).
//!
//! One word of the page says whether anything is pending, a selector says in
//! which words, the words say which ports. Whoever takes a port out clears its
//! bit *before* looking at what it stands for, so that a later event is seen.
//! The first two are one CPU's own, the words are every CPU's: each takes the
//! ports that are bound to it and leaves the others.

use crate::page::SharedPage;
use crate::units::{InfoSlot, Port};

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

/// The shared-info page, as far as one CPU's events go.
#[derive(Debug)]
pub struct EventPage<P> {
    page: P,
    /// Where the CPU's own information is, if not at the page's beginning.
    info: Option<(P, InfoSlot)>,
    /// Ports that are this CPU's: another's may be pending in the same word.
    ports: [u32; 2 * WORDS],
}

impl<P: SharedPage> EventPage<P> {
    /// The boot CPU's events, all of them, of the page that shared-info is
    /// mapped at.
    #[must_use]
    pub const fn new(page: P) -> Self {
        Self {
            page,
            info: None,
            ports: [u32::MAX; 2 * WORDS],
        }
    }

    /// The events of a CPU with its information in `slot` of `info`
    /// ([`Platform::connect_vcpu`](crate::platform::Platform::connect_vcpu)):
    /// none, until it [`claim`](Self::claim)s ports.
    #[must_use]
    pub const fn of_vcpu(page: P, info: P, slot: InfoSlot) -> Self {
        Self {
            page,
            info: Some((info, slot)),
            ports: [0; 2 * WORDS],
        }
    }

    /// Takes this port, too, from now on.
    pub fn claim(&mut self, port: Port) {
        let (at, bit) = place(0, port);
        if let Some(word) = self.ports.get_mut(at / 4) {
            *word |= bit;
        }
    }

    /// Leaves this port to another CPU.
    pub fn release(&mut self, port: Port) {
        let (at, bit) = place(0, port);
        if let Some(word) = self.ports.get_mut(at / 4) {
            *word &= !bit;
        }
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
        self.page.set_bits(at, bit);
    }

    /// Whether the port is pending.
    #[must_use]
    pub fn is_pending(&self, port: Port) -> bool {
        let (at, bit) = place(PENDING, port);
        self.page.load(at) & bit != 0
    }

    /// Takes every pending port of this CPU that is not masked and shows it to
    /// `handle`.
    ///
    /// For the interrupt handler of the event channel, on that CPU.
    pub fn take_pending(&mut self, mut handle: impl FnMut(Port)) {
        let (info, base) = self.info();
        info.write(base + UPCALL_PENDING, &[0]);
        for half in 0..2 {
            let (info, base) = self.info();
            let words = info.fetch_and(base + SELECTOR + half * 4, 0);
            for word in bits(words).map(|bit| half * 32 + bit) {
                for at in [word * 8, word * 8 + 4] {
                    let ours = self.ports.get(at / 4).copied().unwrap_or(0);
                    let ready = self.page.load(PENDING + at) & !self.page.load(MASK + at) & ours;
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

    /// The page with this CPU's information, and where in it that is.
    const fn info(&mut self) -> (&mut P, usize) {
        match &mut self.info {
            Some((info, slot)) => (info, slot.offset()),
            None => (&mut self.page, 0),
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
    fn each_cpu_takes_its_own_ports() {
        let (mut page, mut info) = (FakePage::new(), FakePage::new());
        let slot = InfoSlot::new(2).unwrap();
        let mut boot = EventPage::new(page.clone());
        let mut other = EventPage::of_vcpu(page.clone(), info.clone(), slot);
        boot.release(port(5));
        other.claim(port(5));
        // Both are pending in one word, and both CPUs were told so.
        raise(&mut page, 4);
        raise(&mut page, 5);
        info.store(128 + SELECTOR, 1);
        info.store(128 + UPCALL_PENDING, 0x0101);
        let mut seen = Vec::new();
        other.take_pending(|port| seen.push(port.get()));
        assert_eq!(seen, [5]);
        assert_eq!(info.load(128 + UPCALL_PENDING), 0x0100);
        assert_eq!(page.load(UPCALL_PENDING), 0x0101, "not its own");
        boot.take_pending(|port| seen.push(port.get()));
        assert_eq!(seen, [5, 4]);
        assert!(InfoSlot::new(64).is_none(), "beyond the page");
    }

    #[test]
    fn masking_keeps_other_ports_as_they_are() {
        let page = FakePage::new();
        let mut events = EventPage::new(page.clone());
        events.mask(port(0));
        events.mask(port(3));
        assert_eq!(page.load(MASK), 0b1001);
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
