#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod command;
mod frame_set;
mod options;
mod poison;
mod watch;
mod workload;

pub use command::Command;
pub use frame_set::{FrameSet, TooSmall};
pub use options::{Fill, Interrupts, OptionError, Options, Percent, Services};
pub use poison::{Poison, free_frames};
pub use watch::{Watch, WatchLog};
pub use workload::{Damage, Filled, Freed, Ram, Workload, WorkloadError, is_word, word_of};
