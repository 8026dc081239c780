use alloc::boxed::Box;

use super::*;
use crate::shared::tests::leaked;
use crate::status::Progress;
use crate::testing::{Answers, FakeHost, FakeSource};
use crate::units::{FrameCount, FrameRange, Pfn};

type Fake = Balloon<FakeHost, FakeSource, 4>;

fn parts(target: u64) -> (FakeHost, FakeSource) {
    let memory = FrameRange::new(Pfn::new(0), FrameCount::new(1000)).expect("frames");
    let mut host = FakeHost::bulk();
    host.target = FrameCount::new(target);
    (host, FakeSource::new(memory))
}

#[test]
fn nothing_happens_before_the_start_and_the_worker_hears_of_it() {
    let mut balloon = Box::new(Fake::new());
    let shared = leaked();
    assert_eq!(balloon.step(Nanos::ZERO, Budget::LARGE), Step::REST);
    assert!(balloon.status().is_none() && balloon.parts().is_none());
    balloon.resume(Resume::Reset);
    balloon.set_policy(Policy::DEFAULT);
    assert!(balloon.is_drained());
    assert_eq!(balloon.retire(Nanos::ZERO, Budget::LARGE), Step::REST);
    let inside = shared.enter().expect("nobody is inside");
    let need = Need::frames(FrameCount::ONE);
    let relieved = balloon.relieve(inside, need, Nanos::ZERO);
    assert_eq!(relieved.wake(|| panic!("nothing to tell")).usable.get(), 0);

    let (host, frames) = parts(300);
    let started = balloon.start(shared, Policy::DEFAULT, host, frames);
    assert!(started.is_ok() && shared.signal().is_set());
    while balloon.step(Nanos::ZERO, Budget::LARGE).more {}
    let status = balloon.status().expect("it runs");
    assert_eq!(
        (status.size.get(), status.progress),
        (300, Progress::Reached)
    );
    assert!(!balloon.take_events().is_empty());
}

#[test]
fn a_balloon_is_started_once() {
    let mut balloon = Box::new(Fake::new());
    let (host, frames) = parts(300);
    assert!(
        balloon
            .start(leaked(), Policy::DEFAULT, host, frames)
            .is_ok()
    );
    let (host, frames) = parts(7);
    let refused = balloon.start(leaked(), Policy::DEFAULT, host, frames);
    let refused = refused.expect_err("it runs");
    assert_eq!(refused.transport.target.get(), 7);
    assert_eq!(refused.frames.free().get(), 1000);
    while balloon.step(Nanos::ZERO, Budget::LARGE).more {}
    assert_eq!(balloon.status().expect("it runs").size.get(), 300);
}

#[test]
fn a_retired_balloon_starts_again_with_another_device() {
    let mut balloon = Box::new(Fake::new());
    let shared = leaked();
    let (mut host, frames) = parts(300);
    host.answers = Answers::WhenTold;
    assert!(balloon.start(shared, Policy::DEFAULT, host, frames).is_ok());
    balloon.step(Nanos::from_secs(100), Budget::LARGE);
    assert!(balloon.stop().is_none(), "requests are in flight");
    while balloon.retire(Nanos::from_secs(100), Budget::LARGE).more {}
    let (_, frames) = balloon.stop().expect("all is home");
    assert_eq!(frames.free().get(), 1000);
    assert!(balloon.stop().is_none() && balloon.status().is_none());
    assert_eq!(balloon.step(Nanos::ZERO, Budget::LARGE), Step::REST);

    let (host, _) = parts(20);
    assert!(balloon.start(shared, Policy::DEFAULT, host, frames).is_ok());
    while balloon.step(Nanos::ZERO, Budget::LARGE).more {}
    let status = balloon.status().expect("it runs");
    assert_eq!(
        (status.size.get(), status.progress),
        (20, Progress::Reached)
    );
    assert_eq!(status.counters.target_changes, 1);
}

#[test]
fn one_is_inside_at_a_time() {
    let mut balloon = Box::new(Fake::new());
    let shared = leaked();
    let (host, frames) = parts(300);
    assert!(balloon.start(shared, Policy::DEFAULT, host, frames).is_ok());
    let inside = shared.enter().expect("nobody is inside");
    assert!(shared.enter().is_none());
    // As on the CPU whose lock could not tell: it is to come again, and nothing moves.
    let busy = balloon.step(Nanos::ZERO, Budget::LARGE);
    assert!(busy.more);
    assert_eq!(balloon.status().expect("it runs").size.get(), 0);
    drop(inside);
    while balloon.step(Nanos::ZERO, Budget::LARGE).more {}
    assert_eq!(balloon.status().expect("it runs").size.get(), 300);

    let inside = shared.enter().expect("the step is over");
    let need = Need::frames(FrameCount::new(10));
    balloon
        .parts()
        .expect("it runs")
        .transport
        .capabilities
        .deflate_on_oom = true;
    let relieved = balloon.relieve(inside, need, Nanos::ZERO).wake(|| {});
    assert_eq!(relieved.usable.get(), 10);
    assert!(shared.enter().is_some(), "relief is over");
}
