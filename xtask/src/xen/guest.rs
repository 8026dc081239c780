//! Domains to create: configuration files and what their guests are told.

use std::fmt::Write as _;

/// A domain of ours.
#[derive(Debug, Clone)]
pub(super) struct Domain {
    pub(super) name: String,
    /// `pvh` or `pv`.
    pub(super) kind: &'static str,
    pub(super) memory_mib: u64,
    pub(super) max_mib: u64,
    pub(super) vcpus: u32,
    /// The kernel, as a path in the first domain.
    pub(super) kernel: &'static str,
    pub(super) ramdisk: Option<&'static str>,
    pub(super) arguments: String,
}

/// Our guest in the first domain's file system.
pub(super) const KERNEL: &str = "/guests/xen-guest";

/// The configuration file that a user of the guest gets, and what it calls its
/// domain.
pub(super) const SHIPPED: &[u8] = include_bytes!("../../../examples/xen-guest/xen-guest.cfg");
pub(super) const SHIPPED_NAME: &str = "balloon";

/// Tells a guest, ours and Linux, to give memory as it is.
pub(super) const UNCLEARED: &str = "xen_scrub_pages=0";

/// Linux as a domain, and what it starts.
pub(super) const LINUX: &str = "/guests/linux";
pub(super) const LINUX_INIT: &str = "/guests/linux.cpio";

impl Domain {
    /// A PVH domain of ours that starts full.
    pub(super) fn pvh(name: &str, mib: u64) -> Self {
        Self {
            name: name.to_owned(),
            kind: "pvh",
            memory_mib: mib,
            max_mib: mib,
            vcpus: 1,
            kernel: KERNEL,
            ramdisk: None,
            arguments: format!("token={name}"),
        }
    }

    /// The same as a PV domain.
    pub(super) fn pv(name: &str, mib: u64) -> Self {
        Self {
            kind: "pv",
            ..Self::pvh(name, mib)
        }
    }

    /// Adds an argument.
    pub(super) fn with(mut self, argument: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(self.arguments, " {argument}");
        self
    }

    /// The file `xl create` reads.
    pub(super) fn config(&self) -> String {
        let mut text = format!(
            "name=\"{}\"\ntype=\"{}\"\nkernel=\"{}\"\nmemory={}\nmaxmem={}\nvcpus={}\n\
             extra=\"{}\"\non_poweroff=\"destroy\"\non_reboot=\"destroy\"\non_crash=\"preserve\"\n",
            self.name,
            self.kind,
            self.kernel,
            self.memory_mib,
            self.max_mib,
            self.vcpus,
            self.arguments
        );
        if let Some(ramdisk) = self.ramdisk {
            let _ = writeln!(text, "ramdisk=\"{ramdisk}\"");
        }
        if self.kind == "pvh" {
            // QEMU 7.2 gets an emulated RDTSCP wrong.
            text.push_str("tsc_mode=\"native\"\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_complete() {
        let text = Domain::pvh("a", 32).with("fill=all").config();
        for line in [
            "name=\"a\"",
            "type=\"pvh\"",
            "memory=32",
            "vcpus=1",
            "maxmem=32",
            "extra=\"token=a fill=all\"",
            "tsc_mode=\"native\"",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
