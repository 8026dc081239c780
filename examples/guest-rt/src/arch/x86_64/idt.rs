//! Segments, the interrupt descriptor table and the dispatch of interrupts.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::Cr2;
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use super::{apic, pic};
use crate::interrupts;

global_asm!(include_str!("interrupts.s"), dispatch = sym dispatch);

/// Vector of the local APIC's timer.
pub(super) const TIMER: u8 = 0x30;
/// Vector for interrupts that a hypervisor raises without any controller.
pub const EVENT_VECTOR: u8 = 0x31;
/// First of the vectors of messages.
pub(super) const FIRST_MESSAGE: u8 = 0x40;
const LAST_MESSAGE: u8 = 0x4f;
/// Vector of interrupts that turn out to be none.
pub(super) const SPURIOUS: u8 = 0xff;
/// First of the 16 vectors of the interrupt controllers' lines.
pub(super) const LINES: u8 = 0x20;

const PAGE_FAULT: u64 = 14;
const DOUBLE_FAULT: u64 = 8;
const STUB_BYTES: u64 = 16;

unsafe extern "C" {
    static interrupt_stubs: u8;
}

/// What a stub pushed, below what the CPU pushed.
#[repr(C)]
struct Frame {
    scratch: [u64; 9],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A stack of its own for faults that may come with a bad one.
#[repr(align(4096))]
struct Stack(UnsafeCell<[u8; Self::BYTES]>);

// SAFETY: only the CPU uses the memory, when it switches stacks.
unsafe impl Sync for Stack {}

impl Stack {
    const BYTES: usize = 16 * 1024;

    const fn new() -> Self {
        Self(UnsafeCell::new([0; Self::BYTES]))
    }

    fn top(&self) -> VirtAddr {
        VirtAddr::from_ptr(self.0.get()) + Self::BYTES as u64
    }
}

static DOUBLE_FAULT_STACK: Stack = Stack::new();
static NMI_STACK: Stack = Stack::new();
static MACHINE_CHECK_STACK: Stack = Stack::new();

static TSS: Once<TaskStateSegment> = Once::new();
static GDT: Once<(GlobalDescriptorTable, Selectors)> = Once::new();
static IDT: Once<InterruptDescriptorTable> = Once::new();

static TAKEN: AtomicU64 = AtomicU64::new(0);

struct Selectors {
    code: SegmentSelector,
    data: SegmentSelector,
    tss: SegmentSelector,
}

/// Interrupts taken since boot, of all kinds.
pub(crate) fn interrupts_taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Loads the final segments and the interrupt table.
pub(super) fn start() {
    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table[0] = DOUBLE_FAULT_STACK.top();
        tss.interrupt_stack_table[1] = NMI_STACK.top();
        tss.interrupt_stack_table[2] = MACHINE_CHECK_STACK.top();
        tss
    });
    let (gdt, selectors) = GDT.call_once(|| {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        let tss = gdt.append(Descriptor::tss_segment(tss));
        (gdt, Selectors { code, data, tss })
    });
    gdt.load();
    // SAFETY: a 64-bit code segment like the one in force.
    unsafe { CS::set_reg(selectors.code) };
    // SAFETY: a flat data segment; so below.
    unsafe { DS::set_reg(selectors.data) };
    // SAFETY: as above.
    unsafe { ES::set_reg(selectors.data) };
    // SAFETY: as above.
    unsafe { SS::set_reg(selectors.data) };
    // SAFETY: the descriptor of a task state segment that lives forever.
    unsafe { load_tss(selectors.tss) };
    IDT.call_once(table).load();
}

fn table() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    let base = VirtAddr::from_ptr(&raw const interrupt_stubs);
    macro_rules! gate {
        ($entry:expr, $vector:expr) => {
            // SAFETY: the stub of this vector, which knows whether an error
            // code is pushed and never returns from what must not return.
            unsafe { $entry.set_handler_addr(base + STUB_BYTES * u64::from($vector)) }
        };
    }
    for vector in (0..8).chain([9, 16, 19, 20, 28]).chain(32..=255u8) {
        gate!(idt[vector], vector);
    }
    let double_fault = gate!(idt.double_fault, 8u8);
    // SAFETY: entry 0 of the stack table is this fault's alone.
    unsafe { double_fault.set_stack_index(0) };
    gate!(idt.invalid_tss, 10u8);
    gate!(idt.segment_not_present, 11u8);
    gate!(idt.stack_segment_fault, 12u8);
    gate!(idt.general_protection_fault, 13u8);
    gate!(idt.page_fault, 14u8);
    gate!(idt.alignment_check, 17u8);
    let machine_check = gate!(idt.machine_check, 18u8);
    // SAFETY: entry 2 of the stack table is this exception's alone.
    unsafe { machine_check.set_stack_index(2) };
    gate!(idt.cp_protection_exception, 21u8);
    gate!(idt.vmm_communication_exception, 29u8);
    gate!(idt.security_exception, 30u8);
    let nmi = gate!(idt.non_maskable_interrupt, 2u8);
    // SAFETY: entry 1 of the stack table is this interrupt's alone.
    unsafe { nmi.set_stack_index(1) };
    idt
}

/// Called by every stub, with interrupts off.
extern "C" fn dispatch(frame: &Frame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    // A stub pushes nothing beyond 255.
    let vector = u8::try_from(frame.vector).unwrap_or(SPURIOUS);
    match vector {
        LINES..TIMER => pic::handle(vector - LINES),
        TIMER => apic::handle_timer(),
        EVENT_VECTOR => interrupts::handle_event(),
        FIRST_MESSAGE..=LAST_MESSAGE => apic::handle_message(vector - FIRST_MESSAGE),
        SPURIOUS => {}
        _ => fault(frame),
    }
}

/// No exception is expected: this image neither faults pages in nor traps.
fn fault(frame: &Frame) -> ! {
    let [.., rax] = frame.scratch;
    let address = match frame.vector {
        PAGE_FAULT | DOUBLE_FAULT => Cr2::read_raw(),
        _ => 0,
    };
    panic!(
        "exception vector={} error={:#x} rip={:#x} address={address:#x} rsp={:#x} rax={rax:#x} cs={:#x} ss={:#x} rflags={:#x}",
        frame.vector, frame.error, frame.rip, frame.rsp, frame.cs, frame.ss, frame.rflags,
    )
}
