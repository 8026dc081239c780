//! The small reserve of frames, taken without the engine.

use loom::sync::Arc;
use loom::thread;

use super::{Content, explore};
use crate::shared::Shared;
use crate::units::{FrameRange, Pfn};

/// The engine refills the reserve while two hooks take from it.
fn one_owner_for_each_frame() {
    struct Rig {
        shared: Shared<1>,
        frame: Content,
    }
    let frame = FrameRange::single(Pfn::new(0)).unwrap();
    let rig = Arc::new(Rig {
        shared: Shared::new(),
        frame: Content::new(),
    });
    let take = |rig: &Rig| {
        let got = rig.shared.take_emergency()?;
        assert_eq!(rig.frame.read(), 1, "the frame as it was put");
        rig.frame.write(2);
        Some(got)
    };
    let hooks = [(); 2].map(|()| {
        let rig = Arc::clone(&rig);
        thread::spawn(move || take(&rig))
    });
    rig.frame.write(1);
    rig.shared.keep_place().unwrap().put(frame).unwrap();
    let taken = hooks.map(|hook| hook.join().unwrap());
    let left = rig.shared.take_emergency();
    let owners = taken.into_iter().chain([left]).flatten();
    assert!(owners.eq([frame]), "one owner, and the frame is not lost");
}

#[test]
fn a_reserved_frame_goes_to_one_hook() {
    explore(one_owner_for_each_frame);
}
