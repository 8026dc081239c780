//! Minimal bare-metal runtime of the example guests.
#![no_std]
