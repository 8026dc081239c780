//! A user-space host in small: threads of this process are the virtual CPUs, their memory is a
//! memfd under userfaultfd, and the engine decides what a fault gets.
//!
//! Where the kernel forbids userfaultfd nothing is tested: the test passes, and says so in output
//! that is shown only with `--nocapture`. Set `POD_REQUIRE_USERFAULT` (to anything) wherever a
//! pass is to mean that it ran: then it fails instead. Nothing sets it by itself.
#![cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::std_instead_of_alloc,
    clippy::print_stdout,
    reason = "a test"
)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use pod_core::sim::Memory;
use pod_core::{
    Backing, Budget, Config, Content, Demand, Entry, Frame, FrameCount, FreezeError, Gfn, Host,
    Leaf, Leave, Mfn, Node, Order, Pattern, Pod, SetError, Sizes, Target, Toucher, Users, Vcpu,
    Zeroed, scan,
};
use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags};

const PAGE: u64 = 4096;
const PAGES: u64 = 8192;
const GIVEN: u64 = 4096;

const API: Opcode = 0xc018_aa3f as Opcode;
const REGISTER: Opcode = 0xc020_aa00 as Opcode;
const WAKE: Opcode = 0x8010_aa02 as Opcode;
const COPY: Opcode = 0xc028_aa03 as Opcode;
const ZEROPAGE: Opcode = 0xc020_aa04 as Opcode;
const WRITEPROTECT: Opcode = 0xc018_aa06 as Opcode;

/// The guest's memory: the descriptor pair and the address the threads use.
struct Fault {
    uffd: OwnedFd,
    memory: OwnedFd,
    base: u64,
}

impl Fault {
    fn open() -> Result<Self, rustix::io::Errno> {
        // SAFETY: no flag asks for anything but a new descriptor.
        let uffd = unsafe {
            rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK)
        }?;
        // Missing faults on shared memory, write protection of it, and a flag that tells them apart.
        control::<API, 3>(&uffd, [0xaa, 1 << 5 | 1 << 12 | 1, 0])?;
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, PAGES * PAGE)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let len = (PAGES * PAGE) as usize;
        // SAFETY: a fresh mapping of our own file.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                &memory,
                0,
            )
        }?;
        let base = base.expose_provenance() as u64;
        control::<REGISTER, 4>(&uffd, [base, PAGES * PAGE, 1 | 2, 0])?;
        Ok(Self { uffd, memory, base })
    }

    fn protect(&self, gfn: Gfn, order: Order, on: bool) {
        let start = self.base + gfn.get() * PAGE;
        let range = [start, order.frames().get() * PAGE, u64::from(on)];
        control::<WRITEPROTECT, 3>(&self.uffd, range).unwrap();
    }
}

fn control<const CODE: Opcode, const N: usize>(
    uffd: &OwnedFd,
    mut arguments: [u64; N],
) -> Result<[u64; N], rustix::io::Errno> {
    // SAFETY: the array has the size the opcode says.
    let update = unsafe { Updater::<CODE, [u64; N]>::new(&mut arguments) };
    // SAFETY: the operation touches only our registered mapping.
    unsafe { ioctl(uffd, update) }?;
    Ok(arguments)
}

/// The shadow map is the truth about entries; frames are tokens of a budget.
struct Vmm {
    fault: Arc<Fault>,
    entries: Vec<Entry>,
    home: HashMap<u64, u64>,
    next: u64,
    left: u64,
    reads: u64,
}

impl Vmm {
    fn new(fault: &Arc<Fault>, left: u64) -> Self {
        Self {
            fault: Arc::clone(fault),
            entries: vec![Entry::Hole; PAGES as usize],
            home: HashMap::new(),
            next: 0,
            left,
            reads: 0,
        }
    }

    fn bytes(&self, gfn: u64) -> [u8; PAGE as usize] {
        let mut bytes = [0_u8; PAGE as usize];
        let n = rustix::io::pread(&self.fault.memory, &mut bytes, gfn * PAGE).unwrap();
        assert_eq!(n, bytes.len());
        bytes
    }

    /// Notes what the entries are.
    fn note(&mut self, gfn: Gfn, order: Order, entry: Entry) {
        for i in 0..order.frames().get() {
            let at = gfn.get() + i;
            let now = entry.advanced(i);
            if let Entry::Ram { mfn, .. } = self.entries[at as usize] {
                self.home.remove(&mfn.get());
            }
            if let Entry::Ram { mfn, .. } = now {
                self.home.insert(mfn.get(), at);
            }
            self.entries[at as usize] = now;
        }
    }

    fn page(&mut self, mfn: Mfn) -> scan::Page {
        self.reads += 1;
        let bytes = self.bytes(self.home[&mfn.get()]);
        let mut page = [0; scan::PAGE_WORDS];
        for (word, chunk) in page.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(chunk.try_into().unwrap());
        }
        page
    }
}

impl Host for Vmm {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        let start = gfn.align_down(Order::SUPERPAGE);
        let first = self.entries[start.get() as usize];
        let region = &self.entries[start.get() as usize..][..512];
        if !matches!(first, Entry::Ram { .. }) && region.iter().all(|e| *e == first) {
            return Leaf {
                start,
                order: Order::SUPERPAGE,
                entry: first,
            };
        }
        Leaf {
            start: gfn,
            order: Order::FRAME,
            entry: self.entries[gfn.get() as usize],
        }
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        let count = order.frames().get();
        let (start, len) = (gfn.get() * PAGE, count * PAGE);
        let present = matches!(self.entries[gfn.get() as usize], Entry::Ram { .. });
        self.note(gfn, order, entry);
        match entry {
            Entry::Ram { .. } if present => {}
            Entry::Ram { .. } => {
                let range = [self.fault.base + start, len, 0, 0];
                control::<ZEROPAGE, 4>(&self.fault.uffd, range).unwrap();
            }
            _ if present => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.fault.memory, flags, start, len).unwrap();
                self.fault.protect(gfn, order, false);
            }
            _ => {}
        }
        Ok(())
    }

    fn freeze(&mut self, gfn: Gfn, order: Order) -> Result<(), FreezeError> {
        self.fault.protect(gfn, order, true);
        Ok(())
    }

    fn thaw(&mut self, gfn: Gfn, order: Order) {
        self.fault.protect(gfn, order, false);
    }

    // Every ioctl above returns after the translations are gone.
    fn flush(&mut self) {}

    fn users(&mut self, _: Mfn, _: Order) -> Users {
        Users::None
    }

    fn peek(&mut self, mfn: Mfn) -> Option<u64> {
        scan::peek(&self.page(mfn))
    }

    fn is_filled(&mut self, mfn: Mfn, word: u64) -> bool {
        scan::is_filled(&self.page(mfn), word)
    }

    // A punched page reads as zero when it is populated again.
    fn fill(&mut self, _: Mfn, _: Order, word: u64) {
        assert_eq!(word, 0);
    }

    fn alloc(&mut self, order: Order, _: Node) -> Option<Backing> {
        let count = order.frames().get();
        self.left = self.left.checked_sub(count)?;
        let token = self.next.next_multiple_of(count);
        self.next = token + count;
        Frame::<Zeroed>::new(Mfn::new(token), order).map(Backing::Zeroed)
    }

    fn free(&mut self, frame: Backing) {
        self.left += frame.order().frames().get();
    }

    fn dying(&self) -> bool {
        false
    }

    // One call gives the hole a page and its content.
    fn copy(&mut self, from: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        for i in 0..order.frames().get() {
            let source = self.bytes(from.get() + i);
            let target = self.fault.base + (to.get() + i) * PAGE;
            let source = source.as_ptr().expose_provenance() as u64;
            control::<COPY, 5>(&self.fault.uffd, [target, source, PAGE, 0, 0]).unwrap();
        }
        self.note(to, order, entry);
        Ok(())
    }
}

fn write(base: u64, page: u64, value: u64) {
    let at = core::ptr::with_exposed_provenance_mut::<u64>((base + page * PAGE) as usize);
    // SAFETY: inside the mapping, which outlives the threads; no reference to it exists.
    unsafe { at.write_volatile(value) };
}

fn read(base: u64, page: u64) -> u64 {
    let at = core::ptr::with_exposed_provenance::<u64>((base + page * PAGE) as usize);
    // SAFETY: as for `write`.
    unsafe { at.read_volatile() }
}

/// Answers faults until told to stop; how many there were.
fn serve(fault: &Fault, engine: &Mutex<(Pod<'_>, Vmm)>, stop: &AtomicBool) -> u64 {
    let mut faults = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut message = [0_u8; 32];
        match rustix::io::read(fault.uffd.as_fd(), &mut message) {
            Ok(32) => {}
            _ => {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
        }
        assert_eq!(message[0], 0x12, "a page fault");
        let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
        let gfn = Gfn::new((address - fault.base) / PAGE);
        faults += 1;
        loop {
            let (pod, host) = &mut *engine.lock().unwrap();
            let by = Toucher::Vcpu(Vcpu::new((gfn.get() * 2 / PAGES) as u16));
            match pod.demand(host, gfn, by, Order::SUPERPAGE, &mut Budget::default()) {
                Ok(Demand::Retry(_)) => {}
                Ok(Demand::Populated(_)) => break,
                // A write fault that a thaw has settled, or a race with another fault.
                Ok(Demand::Present) => {
                    let page = [fault.base + gfn.get() * PAGE, PAGE];
                    control::<WAKE, 2>(&fault.uffd, page).unwrap();
                    break;
                }
                other => panic!("{gfn}: {other:?}: {}", pod.stats()),
            }
        }
    }
    faults
}

/// The guest's memory, or nothing where the kernel has none to give.
fn open() -> Option<Arc<Fault>> {
    match Fault::open() {
        Ok(fault) => Some(Arc::new(fault)),
        Err(e) => {
            assert!(
                std::env::var_os("POD_REQUIRE_USERFAULT").is_none(),
                "no userfaultfd: {e}"
            );
            println!("SKIPPED: no userfaultfd here ({e}); the user-space host was NOT tested");
            eprintln!("SKIPPED: no userfaultfd here ({e}); the user-space host was NOT tested");
            None
        }
    }
}

#[test]
fn a_page_that_moves_keeps_its_content() {
    let Some(fault) = open() else { return };
    let config = Config::new(FrameCount::new(PAGES));
    let mut memory = Memory::new(&Sizes::for_guest(&config, config.limit, 1));
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Vmm::new(&fault, PAGES);
    let all = FrameCount::new(PAGES);
    let budget = || Budget::new(1 << 20);
    assert_eq!(
        pod.set_target(&mut host, all, &mut budget()),
        Ok(Target::Done)
    );
    let marked = pod.mark(&mut host, Gfn::new(0), all, Pattern::ZERO, &mut budget());
    assert!(marked.unwrap().complete);
    let by = Toucher::Vcpu(Vcpu::new(0));
    let touched = pod.demand(&mut host, Gfn::new(0), by, Order::FRAME, &mut budget());
    assert_eq!(touched, Ok(Demand::Populated(Order::FRAME)));
    write(fault.base, 0, 0xfeed);
    let (hole, one) = (Gfn::new(1024), FrameCount::new(1));
    let given = pod.release(&mut host, hole, one, Leave::Hole, &mut budget());
    assert_eq!(given.unwrap().promises, one);
    for content in [Content::Keep, Content::Discard] {
        let moved = pod.relocate(
            &mut host,
            Gfn::new(0),
            hole,
            Order::FRAME,
            content,
            &mut budget(),
        );
        assert_eq!(moved, Ok(()));
        if content == Content::Keep {
            assert_eq!(read(fault.base, 1024), 0xfeed);
        }
        let back = pod.relocate(
            &mut host,
            hole,
            Gfn::new(0),
            Order::FRAME,
            content,
            &mut budget(),
        );
        assert_eq!(back, Ok(()));
        pod.audit(&host).unwrap();
    }
}

#[test]
fn threads_as_vcpus_boot_ballooned_on_userfaultfd() {
    let Some(fault) = open() else { return };
    let mut config = Config::new(FrameCount::new(PAGES));
    config.slack = FrameCount::ZERO;
    let sizes = Sizes::for_guest(&config, config.limit, 2);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Vmm::new(&fault, GIVEN);
    let target = FrameCount::new(GIVEN);
    while pod
        .set_target(&mut host, target, &mut Budget::default())
        .unwrap()
        == Target::More
    {}
    let all = FrameCount::new(PAGES);
    let marked = pod
        .mark(
            &mut host,
            Gfn::new(0),
            all,
            Pattern::ZERO,
            &mut Budget::default(),
        )
        .unwrap();
    assert!(marked.complete);
    let engine = Mutex::new((pod, host));
    let (stop, wrong) = (AtomicBool::new(false), AtomicU64::new(0));
    let faults = thread::scope(|scope| {
        let server = scope.spawn(|| serve(&fault, &engine, &stop));
        let vcpus: Vec<_> = (0..2)
            .map(|vcpu| {
                let (base, wrong) = (fault.base, &wrong);
                scope.spawn(move || {
                    let (first, last) = (vcpu * PAGES / 2, (vcpu + 1) * PAGES / 2);
                    // Twice what there is gets scrubbed; pages with data follow behind.
                    for page in first..last {
                        write(base, page, 0);
                        if page % 4 == 0 {
                            write(base, page, page + 1);
                        }
                    }
                    // Stamps on pages that reclaims are looking at: none may get lost.
                    for round in 0..20 {
                        for page in (first + 2..last).step_by(64) {
                            write(base, page, round + 7);
                            if read(base, page) != round + 7 {
                                wrong.fetch_add(1, Ordering::Relaxed);
                            }
                            write(base, page, 0);
                        }
                    }
                    for page in first..last {
                        let expected = if page % 4 == 0 { page + 1 } else { 0 };
                        if read(base, page) != expected {
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        vcpus.into_iter().for_each(|v| v.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap()
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "lost or stale content");
    let (mut pod, mut host) = engine.into_inner().unwrap();
    println!(
        "{faults} faults, {} page reads; {}",
        host.reads,
        pod.stats()
    );
    pod.audit(&host).unwrap();
    assert!(pod.stats().totals.reclaimed > 0);
    let blocks = rustix::fs::fstat(&fault.memory).unwrap().st_blocks as u64 / 8;
    assert_eq!(
        blocks,
        pod.stats().populated.get(),
        "the kernel's count of populated pages"
    );
    assert!(blocks <= GIVEN);
    // The balloon: the debt is paid, and the host really has the pages back.
    let mut done = 0;
    let half = PAGES / 2;
    while done < half {
        let left = FrameCount::new(half - done);
        let at = Gfn::new(half + done);
        let step = pod
            .release(&mut host, at, left, Leave::Hole, &mut Budget::default())
            .unwrap();
        done += step.progress.done.get();
    }
    assert_eq!(pod.stats().debt(), FrameCount::ZERO);
    let blocks = rustix::fs::fstat(&fault.memory).unwrap().st_blocks as u64 / 8;
    assert_eq!(blocks, pod.stats().populated.get());
    pod.audit(&host).unwrap();
}
