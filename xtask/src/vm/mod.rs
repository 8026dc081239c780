//! A virtual machine under our hands: started, watched, spoken to, judged.
//!
//! The protocol with the guest is in `examples/qemu-guest/README.md`. Nothing here outlives its [`Vm`]:
//! dropping one kills QEMU.

mod board;
mod console;
mod frames;
mod machine;
mod process;
mod qmp;
mod usage;

pub(crate) use board::{Architecture, Board};
pub(crate) use console::{Console, Event};
pub(crate) use machine::{Accelerator, Machine};
pub(crate) use process::{Failure, SocketFolder, Vm};
pub(crate) use usage::{Usage, resident};
