//! Interrupt handlers that raise a flag against the step that takes it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{Content, UNORDERED, explore, failure};
use crate::signal::Signal;
use crate::sync::Site;

/// What the model needs of a flag.
trait Flag: Default + Send + Sync + 'static {
    fn raise(&self);
    fn take(&self) -> bool;
    fn is_set(&self) -> bool;
}

impl Flag for Signal {
    fn raise(&self) {
        self.config_changed();
    }

    fn take(&self) -> bool {
        self.take_config()
    }

    fn is_set(&self) -> bool {
        self.is_config_set()
    }
}

/// A flag raised by a store: the second handler cuts the first one off.
#[derive(Default)]
struct Stored(AtomicBool);

impl Flag for Stored {
    fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

const LOST: &str = "news that nobody looks at";

/// Two handlers have news each and raise the same flag; a step takes it.
///
/// Either the step sees the news or the flag is up afterwards.
fn no_wake_up_is_lost<F: Flag>() {
    struct Rig<F> {
        flag: F,
        /// Written by a handler before it raises; the ordering is the flag's.
        to: [loom::sync::atomic::AtomicU32; 2],
    }
    let rig = Arc::new(Rig {
        flag: F::default(),
        to: [0, 0].map(loom::sync::atomic::AtomicU32::new),
    });
    let handlers = [0, 1].map(|index: usize| {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            rig.to[index].store(1, Ordering::Relaxed);
            rig.flag.raise();
        })
    });
    let step = |rig: &Rig<F>| {
        let taken = rig.flag.take();
        let seen = [0, 1].map(|index: usize| rig.to[index].load(Ordering::Relaxed) == 1);
        taken.then_some(seen).unwrap_or_default()
    };
    let stepper = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            let mut seen = [false; 2];
            for _ in 0..2 {
                let now = step(&rig);
                seen = [seen[0] || now[0], seen[1] || now[1]];
            }
            seen
        })
    };
    for handler in handlers {
        handler.join().unwrap();
    }
    let seen = stepper.join().unwrap();
    assert!(seen == [true; 2] || rig.flag.is_set(), "{LOST}");
}

/// What a handler wrote before it raised the flag is the step's to read.
fn news_come_with_the_flag() {
    struct Rig {
        signal: Signal,
        to: Content,
    }
    let rig = Arc::new(Rig {
        signal: Signal::default(),
        to: Content::new(),
    });
    let handler = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            rig.to.write(1);
            rig.signal.used();
        })
    };
    if rig.signal.take() {
        assert_eq!(rig.to.read(), 1);
        assert!(!rig.signal.is_set(), "taken once");
    }
    handler.join().unwrap();
}

#[test]
fn every_wake_up_is_seen() {
    explore(no_wake_up_is_lost::<Signal>);
}

#[test]
fn a_stored_flag_loses_a_wake_up() {
    let failure = failure(None, || explore(no_wake_up_is_lost::<Stored>));
    assert!(failure.contains(LOST), "{failure:?}");
}

#[test]
fn a_taken_flag_shows_what_it_was_raised_for() {
    explore(news_come_with_the_flag);
}

#[test]
fn every_ordering_is_needed() {
    for site in [Site::Raise, Site::Take] {
        let failure = failure(Some(site), || explore(news_come_with_the_flag));
        assert!(failure.contains(UNORDERED), "{site:?}: {failure:?}");
    }
}
