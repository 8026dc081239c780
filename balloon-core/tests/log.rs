//! Events as lines of `log`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Mutex;

use balloon_core::testing::{FakeHost, FakeSource};
use balloon_core::{Budget, Engine, FrameCount, FrameRange, Nanos, Need, Pfn, Policy, Shared};
use log::{Level, LevelFilter, Log, Metadata, Record};

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = LINES.lock().unwrap();
        lines.push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

#[test]
fn events_become_lines() {
    static SHARED: Shared = Shared::new();
    log::set_logger(&Lines).unwrap();
    log::set_max_level(LevelFilter::Info);
    let memory = FrameRange::new(Pfn::new(0x100), FrameCount::new(1000)).unwrap();
    let mut source = FakeSource::new(memory);
    let mut host = FakeHost::plain();
    host.capabilities.deflate_on_oom = true;
    host.target = FrameCount::new(500);
    let mut engine = Box::new(Engine::new(&SHARED, Policy::DEFAULT));
    while engine
        .step(&mut host, &mut source, Nanos::ZERO, Budget::LARGE)
        .more
    {}
    assert!(LINES.lock().unwrap().is_empty(), "a step calls nobody");
    engine
        .take_events()
        .iter()
        .for_each(|(event, _)| event.log());
    let need = Need::frames(FrameCount::new(7));
    engine
        .relieve(&mut host, &mut source, need, Nanos::ZERO)
        .wake(|| {});
    engine
        .take_events()
        .iter()
        .for_each(|(event, _)| event.log());
    let lines = LINES.lock().unwrap();
    let lines: Vec<(Level, &str)> = lines.iter().map(|(l, line)| (*l, line.as_str())).collect();
    assert_eq!(
        lines,
        [
            (Level::Info, "the host asks for a balloon of 500 frames"),
            (Level::Info, "balloon on its way"),
            (Level::Info, "balloon at its target"),
            (Level::Warn, "7 frames came back to relieve memory pressure"),
        ]
    );
}
