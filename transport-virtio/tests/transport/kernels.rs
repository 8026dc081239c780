//! What kernels ask of a driver before they look at it any closer.

use std::sync::Mutex;

use transport_virtio::{OPTIONAL, PciBalloon, REQUIRED, wanted_features};

use super::*;

/// All of it in statics: nameable, `Send`, without a lifetime, made at compile
/// time.
static SHARED: Shared<64> = Shared::new();
static ENGINE: Mutex<Engine<64>> = Mutex::new(Engine::new(&SHARED, Policy::DEFAULT));
static BALLOON: Mutex<Option<PciBalloon>> = Mutex::new(None);

/// For who negotiates before there is a driver.
const WANTED: Features =
    wanted_features(Features::from_bits_retain(u64::MAX), &DriverOptions::new());

#[test]
fn a_balloon_lives_in_statics_and_features_are_constants() {
    const { assert!(WANTED.contains(REQUIRED) && REQUIRED.union(OPTIONAL).contains(WANTED)) };
    assert!(BALLOON.lock().unwrap().is_none());
    assert!(ENGINE.lock().unwrap().is_drained());
    // Interrupt handlers need no lock and have nothing to pass.
    let handlers: [fn(); 2] = [
        || SHARED.signal().config_changed(),
        || SHARED.signal().used(),
    ];
    handlers.iter().for_each(|handler| handler());
    assert!(SHARED.signal().is_set());
}

#[test]
fn no_interrupt_is_needed() {
    for options in [DriverOptions::new(), DriverOptions::new().without_bulk()] {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let profile = Profile::qemu(Features::PAGE_REPORTING);
        let mut balloon = testing::bring_up::<16>(profile, &options.polled()).unwrap();
        let mut engine = Engine::new(shared, Policy::DEFAULT);
        let mut source = FakeSource::new(range(0x100, 2048));
        let mut now = Nanos::ZERO;
        for target in [1000, 0] {
            device(&mut balloon).set_target(target);
            let asked = device(&mut balloon).interrupts();
            let reached = (0..200).any(|_| {
                let step = engine.step(&mut balloon, &mut source, now, Budget::SMALL);
                // Nobody calls the signal; the engine says when to look again.
                now = now.max(step.wake_at.expect("a time"));
                serve(&mut balloon);
                device(&mut balloon).actual() == target
            });
            assert!(reached, "{:?}", engine.status(&source));
            assert_eq!(
                device(&mut balloon).interrupts(),
                asked,
                "none was asked for"
            );
        }
    }
}
