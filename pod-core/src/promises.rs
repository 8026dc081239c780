//! The promises as ranges, for save, migration, snapshots and dumps: nothing gets populated.

use crate::{Entry, FrameCount, Gfn, Host, Pattern, Pod};

/// A run of promises with one pattern, as long as possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromiseRange {
    /// First frame.
    pub gfn: Gfn,
    /// Length.
    pub count: FrameCount,
    /// What the pages would hold.
    pub pattern: Pattern,
}

/// Iterator over the promises of a guest. Made by [`Pod::promises`].
#[derive(Debug)]
pub struct Promises<'a, 's, H: ?Sized> {
    pod: &'a Pod<'s>,
    host: &'a H,
    at: u64,
}

impl<'s> Pod<'s> {
    /// All promises in order of frame number. Reads the table, changes nothing.
    #[must_use]
    pub const fn promises<'a, H: Host + ?Sized>(&'a self, host: &'a H) -> Promises<'a, 's, H> {
        Promises {
            pod: self,
            host,
            at: 0,
        }
    }
}

impl<H: Host + ?Sized> Iterator for Promises<'_, '_, H> {
    type Item = PromiseRange;

    fn next(&mut self) -> Option<PromiseRange> {
        let (max, size) = (self.pod.st.cfg.max.get(), self.pod.st.cfg.geometry.size());
        let mut found: Option<PromiseRange> = None;
        while self.at < max {
            let index = u32::try_from(self.at / size).unwrap_or(u32::MAX);
            if found.is_none() && self.pod.region(index).promises == 0 {
                self.at = (self.at / size + 1) * size;
                continue;
            }
            let gfn = Gfn::new(self.at);
            let leaf = self.host.lookup(gfn);
            let room = leaf.room_from(gfn).min(max - self.at).max(1);
            match (leaf.entry, &mut found) {
                (Entry::Promise(pattern), None) => {
                    found = Some(PromiseRange {
                        gfn,
                        count: FrameCount::new(room),
                        pattern,
                    });
                }
                (Entry::Promise(pattern), Some(range)) if range.pattern == pattern => {
                    range.count = FrameCount::new(range.count.get() + room);
                }
                (_, Some(_)) => break,
                (_, None) => {}
            }
            self.at += room;
        }
        found
    }
}
