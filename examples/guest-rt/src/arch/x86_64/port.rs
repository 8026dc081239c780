//! Input and output ports with fixed numbers.

use core::marker::PhantomData;

use x86_64::instructions::port::{Port, PortRead, PortWrite};

/// A device register behind a port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Register<T> {
    number: u16,
    word: PhantomData<T>,
}

impl<T: PortRead + PortWrite> Register<T> {
    /// The register at port `number`.
    ///
    /// # Safety
    /// No value read from or written to the port may make a device touch
    /// memory it was not given.
    pub(super) const unsafe fn new(number: u16) -> Self {
        Self {
            number,
            word: PhantomData,
        }
    }

    pub(super) fn read(self) -> T {
        // SAFETY: whoever made the register vouched for the port.
        unsafe { Port::new(self.number).read() }
    }

    pub(super) fn write(self, value: T) {
        // SAFETY: whoever made the register vouched for the port.
        unsafe { Port::new(self.number).write(value) }
    }
}
