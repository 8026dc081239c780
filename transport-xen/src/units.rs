//! What the hypervisor counts in.

use balloon_core::Pfn;

/// A frame as the hypervisor names it in a frame list.
///
/// For an auto-translated guest (PVH, HVM, Arm) that is its own frame number,
/// for a PV guest the machine frame behind it. Xen's headers call it `gmfn`.
#[doc(alias = "xen_pfn_t")]
#[doc(alias = "mfn")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Gmfn(u64);

impl Gmfn {
    /// The frame with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The name an auto-translated guest uses for one of its own frames.
    #[must_use]
    pub const fn of_guest(pfn: Pfn) -> Self {
        Self(pfn.get())
    }
}

/// An address of the host's memory, as a PV guest's page tables hold it.
#[doc(alias = "maddr")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct MachineAddress(u64);

impl MachineAddress {
    /// This address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// An event channel of this domain.
#[doc(alias = "evtchn_port_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Port(u32);

impl Port {
    /// Ports of the two-level ABI on 64-bit guests.
    pub const COUNT: u32 = 4096;

    /// The port with this number; `None` beyond the two-level ABI.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The port number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A virtual CPU of this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Vcpu(u32);

impl Vcpu {
    /// The boot CPU.
    pub const BOOT: Self = Self(0);

    /// The CPU with this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The CPU's number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Where in a page a CPU's information lies; one page holds that of 64 CPUs.
#[doc(alias = "vcpu_info")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct InfoSlot(u8);

impl InfoSlot {
    /// Slots of a page.
    pub const COUNT: u8 = 64;

    /// The slot with this number; `None` beyond the page.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Bytes from the page's start.
    pub(crate) const fn offset(self) -> usize {
        self.0 as usize * 64
    }
}

/// An interrupt vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Vector(u8);

impl Vector {
    /// This vector; `None` below 16, which Xen refuses.
    #[must_use]
    pub const fn new(vector: u8) -> Option<Self> {
        if vector >= 16 {
            Some(Self(vector))
        } else {
            None
        }
    }

    /// The vector's number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}
