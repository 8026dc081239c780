//! The boards QEMU emulates for us.

/// A processor architecture that guests are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// The target that its guests are built for: without floating point, as interrupt handlers keep none.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-none",
            Self::Aarch64 => "aarch64-unknown-none-softfloat",
        }
    }
}

/// A board, with the bus that its balloon device is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Board {
    /// The i440FX board with plain PCI.
    Pc,
    /// The Q35 board with PCI Express.
    Q35,
    /// The PC that is made of virtio-mmio devices.
    Microvm,
    /// Arm's board with a GIC of version 3 and virtio-mmio.
    VirtMmio,
    /// Arm's board with a GIC of version 2, which takes messages, and PCI Express.
    VirtPci,
}

impl Board {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Pc,
        Self::Q35,
        Self::Microvm,
        Self::VirtMmio,
        Self::VirtPci,
    ];

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
            Self::VirtMmio => "virt-mmio",
            Self::VirtPci => "virt-pci",
        }
    }

    /// What it executes.
    pub(crate) fn architecture(self) -> Architecture {
        match self {
            Self::Pc | Self::Q35 | Self::Microvm => Architecture::X86_64,
            Self::VirtMmio | Self::VirtPci => Architecture::Aarch64,
        }
    }

    /// Whether devices are on a PCI bus.
    pub(crate) fn has_pci(self) -> bool {
        matches!(self, Self::Pc | Self::Q35 | Self::VirtPci)
    }

    /// QEMU's value of `-machine`.
    pub(super) fn machine(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            // Without ACPI the board names its devices on the kernel's command line.
            Self::Microvm => "microvm,acpi=off,pit=on,pic=on,rtc=off",
            Self::VirtMmio => "virt,gic-version=3",
            Self::VirtPci => "virt,gic-version=2",
        }
    }

    /// QEMU's value of `-cpu`.
    pub(super) fn cpu(self) -> &'static str {
        match self.architecture() {
            Architecture::X86_64 => "max",
            Architecture::Aarch64 => "cortex-a57",
        }
    }

    /// What the guest leaves through, and what connects the channel `defmt` to it.
    pub(super) fn fittings(self) -> &'static [&'static str] {
        const EXIT: [&str; 2] = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
        match self {
            Self::Pc | Self::Q35 => &[EXIT[0], EXIT[1], "-serial", "chardev:defmt"],
            // It has one serial port of its own.
            Self::Microvm => &[
                EXIT[0],
                EXIT[1],
                "-device",
                "isa-serial,chardev=defmt,iobase=0x2f8,irq=3",
            ],
            Self::VirtMmio | Self::VirtPci => &[
                "-semihosting-config",
                "enable=on,target=native,chardev=defmt",
            ],
        }
    }

    /// The balloon device, with what else it takes.
    pub(super) fn balloon(self) -> &'static str {
        if self.has_pci() {
            "virtio-balloon-pci"
        } else {
            "virtio-balloon-device"
        }
    }
}
