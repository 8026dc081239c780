//! Guest kernel with a balloon for stock QEMU.
#![no_std]
