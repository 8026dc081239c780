//! No managed frame is ever touched: the frames are the pages of a mapping without any access.

use core::ffi::c_void;

use buddy_alloc::testing::{Program, run_on};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

mod common;
use common::{Random, random_action};

const FRAMES: usize = 1 << 13;

#[test]
#[cfg_attr(miri, ignore = "needs a real mapping")]
fn frames_without_any_access_do() {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let pages: *mut c_void = unsafe {
        mmap_anonymous(
            core::ptr::null_mut(),
            FRAMES << 12,
            ProtFlags::empty(),
            MapFlags::PRIVATE,
        )
    }
    .expect("an address range");
    let span = FrameRange::new(
        Frame::containing(pages.addr() as u64),
        FrameCount::new(FRAMES as u64),
    );
    for seed in 0..8 {
        let mut random = Random::new(seed + 500);
        let actions = (0..2000).map(|_| random_action(&mut random)).collect();
        let config = Config::new();
        let added = Some(if seed % 2 == 0 {
            Backing::Populated
        } else {
            Backing::Unpopulated
        });
        let program = Program {
            span,
            config,
            added,
            actions,
        };
        let mut memory = vec![0; config.metadata_words(span)];
        // One access anywhere in the span would end this process.
        run_on(&program, &mut memory, 1000);
    }
    // SAFETY: the mapping made above, which nothing refers to.
    unsafe { munmap(pages, FRAMES << 12) }.expect("our mapping");
}
