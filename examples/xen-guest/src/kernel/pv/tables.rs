//! Page tables as Xen lets a PV guest have them: readable, and changed by
//! hypercalls alone.

use thiserror::Error;
use transport_xen::hypercall::EntryUpdate;
use transport_xen::{Errno, MachineAddress};
use xen_guest::StartInfo;

use super::pointer;
use crate::kernel::xen::Xen;

const FRAME: u64 = 4096;
/// Entries of a table.
const TABLE: usize = 512;
const ENTRIES: u64 = TABLE as u64;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
/// Present, user (for Xen the kernel is), accessed.
const READABLE: u64 = 0x25;
/// The same, writable and dirty.
pub(super) const MEMORY: u64 = 0x67;

/// Xen's table from machine frames to those of their owners.
const MACHINE_TO_PHYS: u64 = 0xffff_8000_0000_0000;

/// Why memory could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum TablesError {
    /// Xen does not take an entry.
    #[error("refused: {0}")]
    Refused(#[from] Errno),
    /// The builder has mapped less than it promises.
    #[error("no mapped frame is left for a table")]
    NoRoom,
}

/// The builder's page tables, and what was added.
#[derive(Debug)]
pub(super) struct Tables {
    root: u64,
    root_machine: u64,
    xen: Xen,
}

/// The guest's frame of one of its machine frames.
pub(super) fn frame_of_machine(machine: u64) -> u64 {
    let at = pointer::<u64>(MACHINE_TO_PHYS + machine * 8);
    // SAFETY: Xen maps the table there for every PV guest, and it covers every
    // frame that Xen ever named.
    unsafe { at.read_volatile() }
}

fn table_of(entry: u64) -> u64 {
    frame_of_machine((entry & ADDRESS) / FRAME) * FRAME
}

/// The entry that leads to `address` on the way from a table whose entries
/// cover `1 << shift` bytes.
const fn index(address: u64, shift: u32) -> u64 {
    address >> shift & (ENTRIES - 1)
}

fn read(table: u64, index: u64) -> u64 {
    let at = pointer::<u64>(table + index * 8);
    // SAFETY: tables are mapped at their frames' addresses, for reading.
    unsafe { at.read_volatile() }
}

impl Tables {
    /// The tables at work.
    ///
    /// # Safety
    /// `told` is what the builder told, and nobody else changes its tables.
    pub(super) unsafe fn new(told: &StartInfo, xen: Xen) -> Self {
        let entry = pointer::<u64>(told.p2m + told.root / FRAME * 8);
        // SAFETY: of the list of machine frames, which is mapped there.
        let machine = unsafe { entry.read() };
        Self {
            root: told.root,
            root_machine: machine,
            xen,
        }
    }

    /// Where the entry lies that maps a frame's address; `None` where no table
    /// covers it.
    pub(super) fn place(&self, frame: u64) -> Option<MachineAddress> {
        let address = frame * FRAME;
        let mut table = self.root;
        let mut entry = 0;
        for shift in [39, 30, 21] {
            entry = read(table, index(address, shift));
            if entry & PRESENT == 0 {
                return None;
            }
            if shift > 21 {
                table = table_of(entry);
            }
        }
        Some(MachineAddress::new(
            (entry & ADDRESS) + index(address, 12) * 8,
        ))
    }

    /// Writes the entry that maps a frame's address.
    ///
    /// # Safety
    /// As for [`update_entries`](transport_xen::hypercall::Guest::update_entries).
    pub(super) unsafe fn set(&mut self, frame: u64, entry: u64) -> Result<(), TablesError> {
        let place = self.place(frame).ok_or(TablesError::NoRoom)?;
        // SAFETY: as the caller vouches.
        unsafe { self.xen.update_entries(&[EntryUpdate::new(place, entry)]) }?;
        Ok(self.xen.flush_tlb()?)
    }

    /// Maps every frame at its address, with tables from frame `next` on;
    /// returns the first that is left over.
    pub(super) fn map_all(&mut self, list: &[u64], mut next: u64) -> Result<u64, TablesError> {
        let frames = list.len() as u64;
        for (first, chunk) in (0..frames).step_by(TABLE).zip(list.chunks(TABLE)) {
            let address = first * FRAME;
            let mut table = (self.root, self.root_machine * FRAME);
            for shift in [39, 30, 21] {
                let at = index(address, shift);
                let mut entry = read(table.0, at);
                if entry & PRESENT == 0 {
                    let machine = *usize::try_from(next)
                        .ok()
                        .and_then(|next| list.get(next))
                        .filter(|_| next < first)
                        .ok_or(TablesError::NoRoom)?;
                    fill(next, if shift == 21 { chunk } else { &[] });
                    // SAFETY: a frame nobody uses; it is a table from now on.
                    unsafe { self.set(next, (machine * FRAME) | READABLE) }?;
                    entry = (machine * FRAME) | MEMORY;
                    let place = MachineAddress::new(table.1 + at * 8);
                    // SAFETY: what was not mapped before is mapped one to one.
                    unsafe { self.xen.update_entries(&[EntryUpdate::new(place, entry)]) }?;
                    next += 1;
                }
                table = (table_of(entry), entry & ADDRESS);
            }
        }
        Ok(next)
    }
}

/// Writes a table of the lowest level that maps `machines`, and nothing else.
fn fill(frame: u64, machines: &[u64]) {
    let table = pointer::<u64>(frame * FRAME);
    let entries = machines.iter().map(|machine| (machine * FRAME) | MEMORY);
    let entries = entries.chain(core::iter::repeat(0));
    for (index, entry) in (0..TABLE).zip(entries) {
        // SAFETY: a mapped frame that nobody uses yet.
        unsafe { table.wrapping_add(index).write(entry) };
    }
}
