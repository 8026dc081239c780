//! The 8254 timer: a known frequency to measure others by, silent otherwise.

use super::port::Register;

// SAFETY: the timer does not access memory; so for the three below.
const CHANNEL0: Register<u8> = unsafe { Register::new(0x40) };
// SAFETY: as above.
const CHANNEL2: Register<u8> = unsafe { Register::new(0x42) };
// SAFETY: as above.
const CONTROL: Register<u8> = unsafe { Register::new(0x43) };
// SAFETY: gates channel 2 and the speaker.
const GATE: Register<u8> = unsafe { Register::new(0x61) };

/// Ticks per second.
pub(super) const HZ: u64 = 1_193_182;

/// Ends the 18 interrupts a second firmware has set up: masked, they would
/// still wake the host.
pub(super) fn silence() {
    const CHANNEL0_ONE_SHOT: u8 = 0x30;
    CONTROL.write(CHANNEL0_ONE_SHOT);
    // A one-shot of the shortest length ends what is pending.
    CHANNEL0.write(1);
    CHANNEL0.write(0);
}

/// Channel 2 counting down once from the top.
#[derive(Debug)]
pub(super) struct Countdown(());

impl Countdown {
    const TOP: u16 = u16::MAX;

    /// Starts counting; the count is good for 54 ms.
    pub(super) fn start() -> Self {
        const CHANNEL2_ONE_SHOT: u8 = 0xb0;
        let [low, high] = Self::TOP.to_le_bytes();
        // Gate on, speaker off.
        GATE.write(GATE.read() & !0b10 | 0b01);
        CONTROL.write(CHANNEL2_ONE_SHOT);
        CHANNEL2.write(low);
        CHANNEL2.write(high);
        Self(())
    }

    /// Ticks since the start.
    pub(super) fn elapsed(&self) -> u16 {
        const LATCH_CHANNEL2: u8 = 0x80;
        CONTROL.write(LATCH_CHANNEL2);
        let low = CHANNEL2.read();
        let high = CHANNEL2.read();
        Self::TOP.wrapping_sub(u16::from_le_bytes([low, high]))
    }
}
