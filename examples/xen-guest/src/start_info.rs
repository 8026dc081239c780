//! What the domain builder tells a PV guest: one page, its address in a register.
//!
//! Layout: `struct start_info` of Xen's public header `xen.h`, on x86-64.

use transport_xen::{Gmfn, MachineAddress, Port, SharedPage};

const MAGIC: &[u8] = b"xen-3.";
const FIRST_DOMAIN: u32 = 1 << 1;
const COMMAND_LINE: usize = 128;
const COMMAND_LINE_BYTES: usize = 1024;

/// The page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartInfo {
    /// Frames of the domain, from 0 on.
    pub frames: u64,
    /// Where the shared-info page is.
    pub shared_info: MachineAddress,
    /// The store's ring; the first domain has none.
    pub store: Option<Ring>,
    /// The console's ring; the first domain has none.
    pub console: Option<Ring>,
    /// Linear address of the page tables' root.
    pub root: u64,
    /// Frames of page tables, from the root on.
    pub tables: u64,
    /// Linear address of the list of machine frames.
    pub p2m: u64,
}

/// A ring that the domain shares with the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its page.
    pub frame: Gmfn,
    /// Its port.
    pub port: Port,
}

impl StartInfo {
    /// Reads the page; `None` if it is something else.
    pub fn read(page: &impl SharedPage) -> Option<Self> {
        let mut magic = [0; MAGIC.len()];
        page.read(0, &mut magic);
        if magic != MAGIC {
            return None;
        }
        let first = page.load(48) & FIRST_DOMAIN != 0;
        let ring = |frame, port| {
            let port = Port::new(page.load(port))?;
            (!first).then_some(Ring {
                frame: Gmfn::new(long(page, frame)),
                port,
            })
        };
        Some(Self {
            frames: long(page, 32),
            shared_info: MachineAddress::new(long(page, 40)),
            store: ring(56, 64),
            console: ring(72, 80),
            root: long(page, 88),
            tables: long(page, 96),
            p2m: long(page, 104),
        })
    }

    /// The bytes of the command line.
    pub fn command_line(page: &impl SharedPage) -> impl Iterator<Item = u8> {
        let mut text = [0; COMMAND_LINE_BYTES];
        page.read(COMMAND_LINE, &mut text);
        text.into_iter().take_while(|&byte| byte != 0)
    }
}

fn long(page: &impl SharedPage, at: usize) -> u64 {
    u64::from(page.load(at)) | u64::from(page.load(at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use transport_xen::testing::FakePage;

    fn page(flags: u64) -> FakePage {
        let mut page = FakePage::new();
        page.write(0, b"xen-3.0-x86_64");
        for (at, value) in [
            (32, 0x4000u64),
            (40, 0x1_2345_6000),
            (48, flags),
            (56, 0x777),
            (64, 1),
            (72, 0x778),
            (80, 2),
            (88, 0x30_0000),
            (96, 5),
            (104, 0x20_0000),
        ] {
            page.write(at, &value.to_le_bytes());
        }
        page.write(128, b"token=a\0junk");
        page
    }

    #[test]
    fn everything_is_where_the_builder_puts_it() {
        let page = page(0);
        let ring = |frame, port| Ring {
            frame: Gmfn::new(frame),
            port: Port::new(port).unwrap(),
        };
        let expected = StartInfo {
            frames: 0x4000,
            shared_info: MachineAddress::new(0x1_2345_6000),
            store: Some(ring(0x777, 1)),
            console: Some(ring(0x778, 2)),
            root: 0x30_0000,
            tables: 5,
            p2m: 0x20_0000,
        };
        assert_eq!(StartInfo::read(&page), Some(expected));
        let line: Vec<u8> = StartInfo::command_line(&page).collect();
        assert_eq!(line, b"token=a");
    }

    #[test]
    fn the_first_domain_has_no_rings() {
        // Its console fields mean something else.
        let info = StartInfo::read(&page(0b11)).unwrap();
        assert_eq!((info.store, info.console), (None, None));
    }

    #[test]
    fn another_page_is_told_apart() {
        assert_eq!(StartInfo::read(&FakePage::new()), None);
    }
}
