#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod console_ring;
mod start_info;

pub use console_ring::ConsoleRing;
pub use start_info::{Ring, StartInfo};
