//! One run through the hypercalls; what is wrong ends it.

use core::arch::global_asm;
use core::fmt::{self, Write as _};
use core::panic::PanicInfo;
use core::ptr::with_exposed_provenance_mut;

use balloon_core::{FrameCount, FrameRange, Order, Pfn, Run};
use transport_xen::hypercall::gate::Hvc;
use transport_xen::hypercall::{Domain as _, Guest, Memory as _, ShutdownReason};
use transport_xen::{Clear, Errno, Gmfn, Reservation, Stopped, Translated};

#[expect(unsafe_code, reason = "the image starts here")]
mod entry {
    use super::{global_asm, start};

    global_asm!(include_str!("start.s"), start = sym start);
}

/// Memory that nothing lies in: 16 MiB in the second 16 MiB of the domain's 64.
const FREE: u64 = 0x4_1000;
const SUPERPAGES: u64 = 8;
const FRAMES: u64 = SUPERPAGES * 512;

/// The register that Xen's emulated PL011 takes characters at.
struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            put(byte);
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "a device's registers")]
fn put(byte: u8) {
    const DATA: usize = 0x2200_0000;
    const FLAGS: usize = DATA + 0x18;
    const FULL: u32 = 1 << 5;
    let register = with_exposed_provenance_mut::<u32>;
    // SAFETY: registers of the console that this domain's node asks for.
    while unsafe { register(FLAGS).read_volatile() } & FULL != 0 {}
    // SAFETY: as above.
    unsafe { register(DATA).write_volatile(byte.into()) }
}

macro_rules! say {
    ($($arg:tt)*) => {
        // The console takes everything.
        let _ = writeln!(Uart, $($arg)*);
    };
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("@panic {info}");
    leave(ShutdownReason::Crash)
}

type Xen = Guest<Hvc>;

#[expect(unsafe_code, reason = "makes hypercalls, and a panic makes the last")]
fn xen() -> Xen {
    // SAFETY: on Xen, with memory mapped one to one, write-back; frames passed
    // on are those of `FREE`.
    unsafe { Guest::new(Hvc) }
}

fn leave(reason: ShutdownReason) -> ! {
    loop {
        // It does not return.
        let _ = xen().shutdown(reason);
    }
}

/// First Rust code.
extern "C" fn start() -> ! {
    let version = expect("version", xen().version());
    say!("@xen {}.{}", version.major, version.minor);
    let owned = owned();
    say!("@owned {}", owned.get());
    fill(free());
    assert!(holds(free()), "memory does not hold what is written");

    let mut memory = Reservation::new(xen(), Translated, Zeros);
    // Whole superpages.
    inflate(&mut memory, free());
    assert_eq!(owned.get() - self::owned().get(), FRAMES, "given");
    deflate(&mut memory, free());
    assert_eq!(self::owned(), owned, "taken back");
    let counters = memory.counters();
    assert_eq!(counters.inflated.superpages, SUPERPAGES);
    assert_eq!(counters.deflated.superpages, SUPERPAGES);
    say!("@superpages hypercalls={}", counters.hypercalls);
    fill(free());
    assert!(holds(free()), "memory that came back does not hold");

    // An extent with a hole: Xen stops inside and does not say so.
    inflate(&mut memory, range(FREE + 7, 1));
    let moved = memory.inflate(&[run(range(FREE, 512))]);
    let expected = (FrameCount::new(512), None);
    assert_eq!((moved.frames, moved.stopped), expected, "with a hole");
    assert_eq!(owned.get() - self::owned().get(), 512, "with a hole");
    let short = memory.counters().short_counts;
    assert!(short > 0, "nothing was short");
    deflate(&mut memory, range(FREE, 512));
    assert_eq!(self::owned(), owned, "taken back beside a hole");
    say!("@hole short={short}");

    // At the limit a populate is not served. Whatever is there to serve it comes
    // from memory that this domain does not have.
    let limit = expect("maximum", xen().maximum_reservation());
    let beyond = limit.saturating_sub(owned).get() + 1;
    let moved = memory.deflate(&[run(range(FREE * 2, beyond))]);
    assert_eq!(moved.stopped, Some(Stopped::AtLimit));
    if let Some(taken) = FrameRange::new(Pfn::new(FREE * 2), moved.frames) {
        inflate(&mut memory, taken);
    }
    say!("@limit owned={} limit={}", owned.get(), limit.get());

    // Neither is to be had on Arm.
    let (one, two) = (Pfn::new(FREE), Pfn::new(FREE * 2));
    say!("@move {:?}", xen().move_frame(one, two));
    assert!(xen().move_frame(one, two).is_err(), "a frame was moved");
    let mut wanted = [Gmfn::of_guest(two)];
    let given = [Gmfn::of_guest(one)];
    let exchanged = xen().exchange((&given, Order::FRAME), (&mut wanted, Order::FRAME));
    assert_eq!(exchanged.error, Some(Errno::NotSupported), "exchange");
    assert!(
        holds(range(FREE + 512, FRAMES - 512)),
        "memory in use was touched"
    );
    say!("@done arm64");
    leave(ShutdownReason::PowerOff)
}

fn expect<T>(what: &str, result: Result<T, Errno>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

fn owned() -> FrameCount {
    expect("current reservation", xen().current_reservation())
}

fn range(start: u64, count: u64) -> FrameRange {
    match FrameRange::new(Pfn::new(start), FrameCount::new(count)) {
        Some(range) => range,
        None => panic!("no such frames"),
    }
}

fn free() -> FrameRange {
    range(FREE, FRAMES)
}

fn run(range: FrameRange) -> Run {
    match Run::new(range) {
        Some(run) => run,
        None => panic!("too long a run"),
    }
}

fn inflate(memory: &mut Reservation<Xen, Translated, Zeros>, range: FrameRange) {
    let moved = memory.inflate(&[run(range)]);
    assert_eq!((moved.frames, moved.stopped), (range.count(), None), "give");
}

fn deflate(memory: &mut Reservation<Xen, Translated, Zeros>, range: FrameRange) {
    let moved = memory.deflate(&[run(range)]);
    assert_eq!((moved.frames, moved.stopped), (range.count(), None), "take");
}

fn word(pfn: Pfn) -> *mut u64 {
    with_exposed_provenance_mut(usize::try_from(pfn.address()).unwrap_or(0))
}

/// Clears what is given.
struct Zeros;

#[expect(unsafe_code, reason = "writes to free memory")]
impl Clear for Zeros {
    fn clear(&mut self, range: FrameRange) {
        let bytes = usize::try_from(range.count().bytes().get()).unwrap_or(0);
        // SAFETY: memory of `FREE`, or as much that was taken beyond; nobody uses it.
        unsafe { word(range.start()).cast::<u8>().write_bytes(0, bytes) };
    }
}

/// Writes every frame's own number to it.
#[expect(unsafe_code, reason = "writes to free memory")]
fn fill(range: FrameRange) {
    for pfn in range.frames() {
        // SAFETY: memory of `FREE`, which nothing else uses.
        unsafe { word(pfn).write_volatile(pfn.get()) };
    }
}

#[expect(unsafe_code, reason = "reads free memory")]
fn holds(range: FrameRange) -> bool {
    range
        .frames()
        // SAFETY: as above.
        .all(|pfn| unsafe { word(pfn).read_volatile() } == pfn.get())
}
