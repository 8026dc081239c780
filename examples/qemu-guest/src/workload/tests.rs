use super::*;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use buddy_alloc::{Backing, Config, State};

/// Memory as a map; what was never written reads as zero.
#[derive(Default)]
struct Fake(BTreeMap<u64, u64>);

impl Ram for Fake {
    fn fill(&mut self, frame: Frame, word: u64) {
        self.0.insert(frame.get(), word);
    }

    fn holds(&self, frame: Frame, word: u64) -> bool {
        self.0.get(&frame.get()).copied().unwrap_or(0) == word
    }
}

struct Setup {
    span: FrameRange,
    metadata: Vec<u64>,
    bits: Vec<u64>,
}

impl Setup {
    fn new() -> Self {
        let span = FrameRange::between(Frame::new(256), Frame::new(256 + 100 * 512));
        let metadata = vec![0; Config::new().metadata_words(span)];
        let bits = vec![0; usize::try_from(FrameSet::words(span)).unwrap()];
        Self {
            span,
            metadata,
            bits,
        }
    }

    /// Two ranges with a hole between them, a fifth of each to be kept.
    fn start(&mut self) -> (Zone<'_>, Workload<'_>) {
        let mut zone = Zone::new(self.span, Config::new(), &mut self.metadata).unwrap();
        for (start, end) in [(256, 20_000), (20_480, 256 + 100 * 512)] {
            let range = FrameRange::between(Frame::new(start), Frame::new(end));
            zone.add_range(range, Backing::Unpopulated).unwrap();
        }
        let held = FrameSet::new(self.span, &mut self.bits).unwrap();
        (zone, Workload::new(held, Percent::new(20).unwrap()))
    }
}

#[test]
fn words_differ_and_are_not_zero() {
    let words: BTreeMap<u64, u64> = (0..100_000)
        .map(|frame| (word_of(Frame::new(frame)), frame))
        .collect();
    assert_eq!(words.len(), 100_000);
    assert!(!words.contains_key(&0));
}

#[test]
fn fills_everything_keeps_its_share_and_fills_again() {
    let mut setup = Setup::new();
    let (mut zone, mut workload) = setup.start();
    let mut ram = Fake::default();
    let managed = zone.stats().managed;

    assert_eq!(
        workload.fill(&mut zone, &mut ram),
        Ok(Filled { frames: managed })
    );
    assert_eq!(zone.free_frames(), FrameCount::ZERO);
    assert_eq!(workload.verify(&ram), Ok(managed));

    let freed = workload.free(&mut zone).unwrap();
    assert_eq!(freed.frames.get() + freed.kept.get(), managed.get());
    assert_eq!(zone.free_frames(), freed.frames);
    assert_eq!(zone.stats().used, freed.kept);
    let share = freed.kept.get() * 100 / managed.get();
    assert!((18..=22).contains(&share), "{share}");
    // Spread evenly: a fifth of the groups, none beside another.
    let longest = workload.held.runs().map(|run| run.count().get()).max();
    assert_eq!(longest, Some(GROUP.frames()));
    assert_eq!(workload.verify(&ram), Ok(freed.kept));
    // Freeing twice frees nothing more.
    assert_eq!(workload.free(&mut zone).unwrap().frames, FrameCount::ZERO);

    assert_eq!(
        workload.fill(&mut zone, &mut ram),
        Ok(Filled {
            frames: freed.frames
        })
    );
    assert_eq!(workload.verify(&ram), Ok(managed));
}

#[test]
fn scattered_memory_has_no_two_neighbours() {
    let mut setup = Setup::new();
    let (mut zone, mut workload) = setup.start();
    let mut ram = Fake::default();
    let filled = workload.fill(&mut zone, &mut ram).unwrap();
    let freed = workload.scatter(&mut zone).unwrap();
    assert_eq!(freed.frames.get() + freed.kept.get(), filled.frames.get());
    assert_eq!(zone.free_frames(), freed.frames);
    assert!(freed.frames.get() * 100 / filled.frames.get() >= 38);
    let pairs = zone.free_blocks(Order::new(1).unwrap()).count();
    assert_eq!(pairs, 0);
    assert_eq!(workload.verify(&ram), Ok(freed.kept));
    // What is left of the rest goes as ever.
    workload.free(&mut zone).unwrap();
    assert_eq!(zone.stats().used, workload.held());
}

#[test]
fn damage_is_found_and_told() {
    let mut setup = Setup::new();
    let (mut zone, mut workload) = setup.start();
    let mut ram = Fake::default();
    workload.fill(&mut zone, &mut ram).unwrap();
    let of = workload.held().get();
    ram.0.remove(&5000);
    ram.0.insert(30_000, word_of(Frame::new(30_001)));
    let damage = workload.verify(&ram).unwrap_err();
    assert_eq!(
        damage,
        Damage {
            bad: 2,
            of,
            first: Frame::new(5000)
        }
    );
}

#[test]
fn returned_frames_are_tried_unless_in_use() {
    let mut setup = Setup::new();
    let (mut zone, workload) = setup.start();
    let mut ram = Fake::default();
    let used = zone.allocate(Order::FRAME, Preference::Any).unwrap();
    let returned = [used, Frame::new(300), Frame::new(301), Frame::new(20_100)];
    // One is in use, the last was never memory.
    let tried = workload.try_returned(returned, &mut zone, &mut ram);
    assert_eq!(tried, Ok(FrameCount::new(2)));
    assert_eq!(
        zone.state(Frame::new(300)).map(|block| block.state),
        Some(State::Free)
    );
}

/// Memory in which neighbours are one and the same frame.
struct Aliased(Fake);

impl Ram for Aliased {
    fn fill(&mut self, frame: Frame, word: u64) {
        self.0.fill(Frame::new(frame.get() & !1), word);
    }

    fn holds(&self, frame: Frame, word: u64) -> bool {
        self.0.holds(Frame::new(frame.get() & !1), word)
    }
}

#[test]
fn frames_that_are_one_do_not_pass_for_two() {
    let mut setup = Setup::new();
    let (mut zone, workload) = setup.start();
    let mut ram = Aliased(Fake::default());
    let tried = workload.try_returned([300, 301].map(Frame::new), &mut zone, &mut ram);
    assert_eq!(
        tried,
        Err(Damage {
            bad: 1,
            of: 2,
            first: Frame::new(300)
        })
    );
}

#[test]
fn words_of_frames_are_known_from_others() {
    for number in [0, 1, 255, 1 << 20, (1 << 34) - 2] {
        let word = word_of(Frame::new(number));
        assert!(is_word(word), "{number}");
        assert!(!is_word(word ^ 1) && !is_word(!word), "{number}");
    }
    for other in [0, 1, u64::MAX, 0x5555_5555_5555_5555, 4096] {
        assert!(!is_word(other), "{other:#x}");
    }
}
