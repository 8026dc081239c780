//! What a machine consists of, as QEMU's arguments.

use std::path::{Path, PathBuf};

/// The two PC boards QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Board {
    /// The i440FX board with plain PCI.
    Pc,
    /// The Q35 board with PCI Express.
    Q35,
}

impl Board {
    /// QEMU's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// Software emulation: the one to be had everywhere.
    Tcg,
    /// The processor itself, where the host lets QEMU have it.
    Kvm,
}

impl Accelerator {
    /// QEMU's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// A machine that was not started yet.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    board: Board,
    accelerator: Accelerator,
    cpu: &'static str,
    mem_mib: u64,
    kernel: PathBuf,
    /// Options of the balloon device; `None` for a machine without one.
    balloon: Option<Vec<&'static str>>,
    objects: Vec<&'static str>,
    incoming: Option<String>,
    reboots: bool,
    command_line: Vec<String>,
    initrd: Option<PathBuf>,
    traces: Vec<&'static str>,
}

impl Machine {
    /// The balloon device in QEMU's object tree.
    pub(crate) const BALLOON_PATH: &str = "/machine/peripheral/balloon";

    /// A machine with a plain balloon device, in software emulation.
    pub(crate) fn new(board: Board, mem_mib: u64, kernel: &Path) -> Self {
        Self {
            board,
            accelerator: Accelerator::Tcg,
            cpu: "max",
            mem_mib,
            kernel: kernel.to_path_buf(),
            balloon: Some(Vec::new()),
            objects: Vec::new(),
            incoming: None,
            reboots: false,
            command_line: Vec::new(),
            initrd: None,
            traces: vec!["virtio_queue_notify"],
        }
    }

    /// On another accelerator.
    pub(crate) fn on(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// With another processor than the one that can everything.
    pub(crate) fn cpu(mut self, model: &'static str) -> Self {
        self.cpu = model;
        self
    }

    /// With or without free page reporting, and so the bulk path.
    pub(crate) fn reporting(self, on: bool) -> Self {
        if on {
            self.balloon_option("free-page-reporting=on")
        } else {
            self
        }
    }

    /// With free page hints for a live migration.
    pub(crate) fn hinting(mut self) -> Self {
        self.objects.push("iothread,id=hints");
        self.balloon_option("free-page-hint=on,iothread=hints")
    }

    /// With this option of the balloon device.
    pub(crate) fn balloon_option(mut self, option: &'static str) -> Self {
        self.balloon.get_or_insert_default().push(option);
        self
    }

    /// No balloon device at all.
    pub(crate) fn without_balloon(mut self) -> Self {
        self.balloon = None;
        self
    }

    /// Waits for a guest to arrive from there, instead of booting one.
    pub(crate) fn incoming(mut self, from: &str) -> Self {
        self.incoming = Some(from.to_owned());
        self
    }

    /// A reset starts it anew, instead of ending QEMU.
    pub(crate) fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    /// Adds a word to the guest's command line.
    pub(crate) fn append(mut self, word: &str) -> Self {
        self.command_line.push(word.to_owned());
        self
    }

    /// With a first file system for the kernel.
    pub(crate) fn initrd(mut self, file: &Path) -> Self {
        self.initrd = Some(file.to_path_buf());
        self
    }

    /// Lets QEMU write a line for each of these events; those of [`Vm::kicks`](super::Vm::kicks) are
    /// always written.
    pub(crate) fn trace(mut self, event: &'static str) -> Self {
        self.traces.push(event);
        self
    }

    /// What QEMU is to trace.
    pub(super) fn traces(&self) -> &[&'static str] {
        &self.traces
    }

    /// The kernel's ELF.
    pub(crate) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// QEMU's arguments, all but the serial ports and QMP.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut option =
            |name: &str, value: &str| words.extend([format!("-{name}"), value.to_owned()]);
        option("machine", self.board.name());
        option("cpu", self.cpu);
        option("accel", self.accelerator.name());
        option("m", &self.mem_mib.to_string());
        option("kernel", &self.kernel.to_string_lossy());
        option("append", &self.command_line.join(" "));
        if let Some(file) = &self.initrd {
            option("initrd", &file.to_string_lossy());
        }
        option("display", "none");
        option("device", "isa-debug-exit,iobase=0xf4,iosize=4");
        for object in &self.objects {
            option("object", object);
        }
        if let Some(options) = &self.balloon {
            let device = [&["virtio-balloon-pci", "id=balloon"], &options[..]].concat();
            option("device", &device.join(","));
        }
        if let Some(from) = &self.incoming {
            option("incoming", from);
        }
        words.push("-nodefaults".to_owned());
        if !self.reboots {
            words.push("-no-reboot".to_owned());
        }
        words
    }
}
