//! The layouts, read back by a gate that serves them from the fake hypervisor.

use alloc::vec::Vec;

use balloon_core::Nanos;

use super::paravirtual::{EntryUpdate, TrapGate};
use super::vcpu::VcpuStart;
use super::*;
use crate::testing::{FakeXen, Kind};
use crate::units::MachineAddress;

/// Xen's side of the gate: reads the structures as the headers lay them out.
struct Reader(FakeXen);

/// # Safety
/// `at` points at as many bytes as `T` has, readable and aligned.
unsafe fn field<T: Copy>(base: *mut (), offset: usize) -> T {
    // SAFETY: passed on.
    unsafe { base.wrapping_byte_add(offset).cast::<T>().read() }
}

impl Reader {
    /// # Safety
    /// `at` is a reservation of the ABI.
    unsafe fn extents(at: *mut ()) -> (*mut Gmfn, usize, Order) {
        // SAFETY: the layout of xen_memory_reservation.
        let list = unsafe { field::<*mut Gmfn>(at, 0) };
        // SAFETY: as above.
        let count = unsafe { field::<u64>(at, 8) };
        // SAFETY: as above.
        let order = unsafe { field::<u32>(at, 16) };
        // SAFETY: as above.
        let flags = unsafe { field::<u32>(at, 20) };
        // SAFETY: as above.
        let domain = unsafe { field::<u16>(at, 24) };
        assert_eq!((flags, domain), (0, 0x7ff0));
        let order = Order::new(u8::try_from(order).unwrap()).unwrap();
        (list, usize::try_from(count).unwrap(), order)
    }

    /// # Safety
    /// `at` is a reservation of the ABI whose list is read.
    unsafe fn read<'a>(at: *mut ()) -> (&'a [Gmfn], Order) {
        // SAFETY: passed on.
        let (list, count, order) = unsafe { Self::extents(at) };
        // SAFETY: the list is as long as it says.
        (unsafe { core::slice::from_raw_parts(list, count) }, order)
    }

    /// # Safety
    /// `at` is a reservation of the ABI whose list is read and written.
    unsafe fn write<'a>(at: *mut ()) -> (&'a mut [Gmfn], Order) {
        // SAFETY: passed on.
        let (list, count, order) = unsafe { Self::extents(at) };
        // SAFETY: the list is as long as it says.
        (
            unsafe { core::slice::from_raw_parts_mut(list, count) },
            order,
        )
    }
}

fn returned<T: TryInto<isize>>(result: Result<T, Errno>) -> isize {
    match result {
        Ok(value) => value.try_into().unwrap_or(0),
        Err(errno) => -isize::try_from(errno.number()).unwrap(),
    }
}

// SAFETY: serves the calls from the fake.
unsafe impl Gate for Reader {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        let [operation, at, text, _] = args;
        match (number, operation.addr()) {
            (12, 1) => {
                // SAFETY: a decrease passes a reservation.
                let (list, order) = unsafe { Self::read(at) };
                returned(self.0.decrease_reservation(list, order))
            }
            (12, 6) => {
                // SAFETY: a populate passes a reservation.
                let (list, order) = unsafe { Self::write(at) };
                returned(self.0.populate_physmap(list, order))
            }
            (12, 3) => returned(self.0.current_reservation().map(FrameCount::get)),
            (12, 4) => returned(self.0.maximum_reservation().map(FrameCount::get)),
            (12, 7) => {
                // SAFETY: the layout of xen_add_to_physmap.
                let space = unsafe { field::<u32>(at, 4) };
                // SAFETY: as above.
                let index = unsafe { field::<u64>(at, 8) };
                // SAFETY: as above.
                let gpfn = unsafe { field::<u64>(at, 16) };
                let to = Pfn::new(gpfn);
                returned(match space {
                    0 => self.0.map_shared_info(to).map(|()| 0isize),
                    2 => self.0.move_frame(Pfn::new(index), to).map(|()| 0isize),
                    3 => {
                        // SAFETY: as above.
                        let count = unsafe { field::<u16>(at, 2) };
                        let count = FrameCount::new(count.into());
                        let from = FrameRange::new(Pfn::new(index), count).unwrap();
                        self.0.move_range(from, to).map(|()| 0isize)
                    }
                    _ => Err(Errno::Invalid),
                })
            }
            (12, 11) => {
                // SAFETY: two reservations and a count.
                let given = unsafe { Self::read(at) };
                // SAFETY: as above.
                let wanted = unsafe { Self::write(at.wrapping_byte_add(32)) };
                let exchanged = self.0.exchange(given, wanted);
                // SAFETY: the progress counter behind them.
                unsafe {
                    at.wrapping_byte_add(64)
                        .cast::<u64>()
                        .write(exchanged.done as u64)
                };
                returned(exchanged.error.map_or(Ok(0isize), Err))
            }
            (12, 9) => {
                let mut map = [MapEntry::default(); 4];
                let found = self.0.memory_map(&mut map).unwrap();
                // SAFETY: the layout of xen_memory_map.
                let room = unsafe { field::<u32>(at, 0) };
                // SAFETY: as above.
                let buffer = unsafe { field::<*mut u8>(at, 8) };
                assert!(found <= room as usize);
                for (n, entry) in map.iter().take(found).enumerate() {
                    let mut bytes = Vec::new();
                    bytes.extend(entry.address.to_le_bytes());
                    bytes.extend(entry.bytes.to_le_bytes());
                    bytes.extend(u32::from(entry.ram).to_le_bytes());
                    // SAFETY: entries of 20 bytes, as many as there is room for.
                    unsafe { buffer.wrapping_add(n * 20).copy_from(bytes.as_ptr(), 20) };
                }
                // SAFETY: as above.
                unsafe { at.cast::<u32>().write(u32::try_from(found).unwrap()) };
                0
            }
            (17, 0) => 4 << 16 | 17,
            (18, 0) => {
                let text = text.cast::<u8>().cast_const();
                // SAFETY: the text is as long as the second argument says.
                let text = unsafe { core::slice::from_raw_parts(text, at.addr()) };
                returned(self.0.print(text).map(|()| 0isize))
            }
            (34, 1) => {
                // SAFETY: the layout of xen_hvm_param.
                let index = unsafe { field::<u32>(at, 4) };
                // SAFETY: as above.
                unsafe {
                    at.wrapping_byte_add(8)
                        .cast::<u64>()
                        .write(u64::from(index) * 10)
                };
                0
            }
            (34, 15) => {
                // SAFETY: the layout of xen_hvm_get_mem_type.
                let domain = unsafe { field::<u16>(at, 0) };
                assert_eq!(domain, 0x7ff0);
                // SAFETY: as above.
                let pfn = unsafe { field::<u64>(at, 8) };
                // RAM that is written to, or what a device model would serve.
                let kind = self
                    .0
                    .is_hole(Pfn::new(pfn))
                    .map(|hole| 2 * u16::from(hole));
                if let Ok(kind) = kind {
                    // SAFETY: as above.
                    unsafe { at.wrapping_byte_add(2).cast::<u16>().write(kind) };
                }
                returned(kind.map(|_| 0isize))
            }
            _ => -38,
        }
    }
}

fn guest(kind: Kind) -> Guest<Reader> {
    let memory = FrameRange::new(Pfn::new(512), FrameCount::new(128)).unwrap();
    // SAFETY: the gate reads what it is passed; there is no memory to lose.
    unsafe { Guest::new(Reader(FakeXen::new(kind, memory))) }
}

#[test]
fn memory_calls_reach_xen_as_laid_out() {
    let mut guest = guest(Kind::Pvh);
    let order = Order::new(4).unwrap();
    let list = [Gmfn::new(512), Gmfn::new(528)];
    assert_eq!(guest.decrease_reservation(&list, order), Ok(2));
    assert_eq!(guest.current_reservation(), Ok(FrameCount::new(96)));
    assert_eq!(guest.maximum_reservation(), Ok(FrameCount::new(384)));
    let mut list = [Gmfn::new(528)];
    assert_eq!(guest.populate_physmap(&mut list, order), Ok(1));
    assert_eq!(guest.move_frame(Pfn::new(528), Pfn::new(512)), Ok(()));
    let hole = guest.move_frame(Pfn::new(528), Pfn::new(513));
    assert_eq!(hole, Err(Errno::Access));
    assert_eq!(guest.is_hole(Pfn::new(528)), Ok(true));
    assert_eq!(guest.is_hole(Pfn::new(512)), Ok(false));
    assert!(guest.gate.0.is_populated(Pfn::new(512)));
    assert_eq!(guest.map_shared_info(Pfn::new(600)), Ok(()));
    assert_eq!(guest.gate.0.shared_info, Some(Pfn::new(600)));
    let mut map = [MapEntry::default(); 3];
    assert_eq!(guest.memory_map(&mut map), Ok(1));
    assert_eq!((map[0].address, map[0].ram), (512 << 12, true));
}

#[test]
fn ranges_go_in_one_call() {
    let mut guest = guest(Kind::Pvh);
    let from = FrameRange::new(Pfn::new(512), FrameCount::new(128)).unwrap();
    assert_eq!(guest.move_range(from, Pfn::new(9000)), Ok(()));
    assert!(guest.gate.0.is_populated(Pfn::new(9127)));
    assert_eq!(guest.gate.0.hypercalls, 1);
    assert_eq!(guest.move_range(from, Pfn::new(9500)), Err(Errno::Access));
}

#[test]
fn exchange_reports_its_progress_and_its_error() {
    let mut pv = guest(Kind::Pv);
    let machine = pv.gate.0.machine(Pfn::new(512)).unwrap();
    let mut wanted = [Gmfn::new(9000)];
    // Still mapped: refused, nothing done.
    let exchanged = pv.exchange((&[machine], Order::FRAME), (&mut wanted, Order::FRAME));
    assert_eq!((exchanged.done, exchanged.error), (0, Some(Errno::Invalid)));
    let mut pvh = guest(Kind::Pvh);
    let exchanged = pvh.exchange((&[machine], Order::FRAME), (&mut wanted, Order::FRAME));
    let expected = (0, Some(Errno::NotSupported));
    assert_eq!((exchanged.done, exchanged.error), expected);
    assert_eq!(pv.is_hole(Pfn::new(512)), Err(Errno::Invalid));
}

#[test]
fn other_calls() {
    let mut guest = guest(Kind::Pvh);
    let version = guest.version().unwrap();
    assert_eq!((version.major, version.minor), (4, 17));
    assert_eq!(guest.param(Param::ConsoleFrame), Ok(170));
    assert_eq!(guest.print(b"words"), Ok(()));
    assert_eq!(guest.gate.0.printed, b"words");
    let port = Port::new(4).unwrap();
    assert_eq!(guest.notify(port), Err(Errno::NotImplemented));
}

/// Xen's side of a PV guest's own calls: notes what it was asked.
#[derive(Default)]
struct Noted(Vec<Vec<u64>>);

// SAFETY: reads what the headers say there is, and nothing else.
unsafe impl Gate for Noted {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        let [first, second, arguments, domain] = args;
        let words = |at: *mut (), count: usize| -> Vec<u64> {
            // SAFETY: the structures of these calls hold as many words.
            (0..count).map(|n| unsafe { field(at, n * 8) }).collect()
        };
        let (first_word, second_word) = (first.addr() as u64, second.addr() as u64);
        let mut asked = match number {
            0 => words(first, 4),
            1 => {
                assert_eq!(domain.addr(), 0x7ff0);
                words(first, second.addr() * 2)
            }
            26 => {
                assert_eq!((second.addr(), domain.addr()), (1, 0x7ff0));
                // SAFETY: the operation is the first word of the structure.
                [unsafe { field::<u32>(first, 0) }.into()].into()
            }
            24 if first.addr() == 10 => [words(arguments, 2), [second_word].into()].concat(),
            24 if first.addr() == 0 => [words(arguments, 16), [second_word].into()].concat(),
            32 => {
                // SAFETY: these structures hold two 32-bit words.
                let words = [0, 4].map(|at| unsafe { field::<u32>(second, at) });
                [&[first_word][..], &words.map(u64::from)].concat()
            }
            34 => {
                // SAFETY: a CPU's number and a vector.
                let vcpu = unsafe { field::<u32>(second, 0) };
                // SAFETY: as above.
                let vector = unsafe { field::<u8>(second, 4) };
                [first_word, vcpu.into(), vector.into()].into()
            }
            15 => [first_word].into(),
            4 | 24 => [first_word, second_word].into(),
            other => panic!("hypercall {other}"),
        };
        asked.insert(0, number.into());
        self.0.push(asked);
        0
    }
}

#[test]
fn calls_of_a_pv_kernel_have_their_layout() {
    // SAFETY: nothing is entered.
    let mut guest = unsafe { Guest::new(Noted::default()) };
    let updates = [(0x1000, 0x2067), (0x1008, 0)]
        .map(|(at, to)| EntryUpdate::new(MachineAddress::new(at), to));
    // SAFETY: no page table is behind this gate.
    unsafe { guest.update_entries(&updates) }.unwrap();
    guest.flush_tlb().unwrap();
    // SAFETY: nothing ever enters there; so below.
    unsafe { guest.set_callbacks(0x5000, 0x6000) }.unwrap();
    let traps = [TrapGate {
        vector: 14,
        address: 0x7000,
    }];
    // SAFETY: as above.
    unsafe { guest.set_traps(&traps) }.unwrap();
    guest.set_timer(Some(Nanos::new(77))).unwrap();
    guest.set_timer(Some(Nanos::ZERO)).unwrap();
    guest.set_timer(None).unwrap();
    guest.stop_periodic_timer(Vcpu::BOOT).unwrap();
    let asked: [&[u64]; 8] = [
        &[1, 0x1000, 0x2067, 0x1008, 0],
        &[26, 6],
        &[4, 0x5000, 0x6000],
        // Vector, flag that masks events, code segment; then the table's end.
        &[0, 0xe033_0000 | 4 << 8 | 14, 0x7000, 0, 0],
        &[15, 77],
        &[15, 1],
        &[15, 0],
        &[24, 7, 0],
    ];
    assert_eq!(guest.gate.0, asked);
}

#[test]
fn calls_about_other_cpus_have_their_layout() {
    // SAFETY: nothing is entered.
    let mut guest = unsafe { Guest::new(Noted::default()) };
    let vcpu = Vcpu::new(3);
    let slot = InfoSlot::new(2).unwrap();
    guest
        .register_vcpu_info(vcpu, Gmfn::new(0x77), slot)
        .unwrap();
    let vector = Vector::new(0x32).unwrap();
    guest.set_upcall(vcpu, vector).unwrap();
    guest.bind_vcpu(Port::new(5).unwrap(), vcpu).unwrap();
    // Nobody fills in the port.
    assert_eq!(guest.bind_ipi(vcpu), Ok(Port::new(0).unwrap()));
    let start = VcpuStart {
        entry: 0x1000,
        stack: 0x2000,
        argument: 9,
        page_tables: 0x3000,
    };
    // SAFETY: no CPU is behind this gate.
    unsafe { guest.start_vcpu(vcpu, &start) }.unwrap();
    guest.vcpu_down(vcpu).unwrap();
    let control = [0x8001_0011, 0x3000, 0x20, 0xd00];
    let asked: [&[u64]; 7] = [
        &[24, 0x77, 128, 3],
        &[34, 23, 3, 0x32],
        &[32, 8, 5, 3],
        &[32, 7, 3, 0],
        &[
            24, 1, 0, 0, 0, 0, 0x2000, 0, 0, 9, 0x1000, 2, control[0], control[1], control[2],
            control[3], 0, 3,
        ],
        &[24, 1, 3],
        &[24, 2, 3],
    ];
    assert_eq!(guest.gate.0, asked);
}
