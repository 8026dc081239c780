#![doc = include_str!("../README.md")]
#![expect(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    reason = "a host program"
)]
// Unsafe code: discards and the driver's view of guest memory in `ram`, nothing else.

pub mod control;
pub mod device;
pub mod front;
pub mod guest;
pub mod pages;
pub mod ram;
pub mod vhost_user;
pub mod worker;
