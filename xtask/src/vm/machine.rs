//! What a machine consists of, as QEMU's arguments.

use std::path::{Path, PathBuf};

use super::board::Board;

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
    /// Options of the board beside its own.
    board_options: Vec<&'static str>,
    accelerator: Accelerator,
    cpu: &'static str,
    mem_mib: u64,
    kernel: PathBuf,
    /// Devices that the balloon hangs at.
    devices: Vec<&'static str>,
    /// Properties of devices that the board brings.
    globals: Vec<&'static str>,
    /// Options of the balloon device; `None` for a machine without one.
    balloon: Option<Vec<&'static str>>,
    objects: Vec<String>,
    /// The object that is the guest's memory, if not QEMU's own choice.
    memory: Option<&'static str>,
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
            board_options: Vec::new(),
            accelerator: Accelerator::Tcg,
            cpu: board.cpu(),
            mem_mib,
            kernel: kernel.to_path_buf(),
            devices: Vec::new(),
            globals: Vec::new(),
            balloon: Some(Vec::new()),
            objects: Vec::new(),
            memory: None,
            incoming: None,
            reboots: false,
            command_line: Vec::new(),
            initrd: None,
            traces: vec!["virtio_queue_notify"],
        }
    }

    /// With this option of the board, whatever its own are.
    pub(crate) fn board_option(mut self, option: &'static str) -> Self {
        self.board_options.push(option);
        self
    }

    /// With this device, which is there before the balloon.
    pub(crate) fn device(mut self, device: &'static str) -> Self {
        self.devices.push(device);
        self
    }

    /// With this property, `DRIVER.PROPERTY=VALUE`, of a device that the board brings.
    pub(crate) fn global(mut self, property: &'static str) -> Self {
        self.globals.push(property);
        self
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
        self.objects.push("iothread,id=hints".to_owned());
        self.balloon_option("free-page-hint=on,iothread=hints")
    }

    /// With memory in huge pages of 2 MiB, which the host has set aside.
    pub(crate) fn huge_pages(mut self) -> Self {
        self.memory = Some("memory");
        let size = self.mem_mib;
        self.objects.push(format!(
            "memory-backend-memfd,id=memory,size={size}M,hugetlb=on,hugetlbsize=2M"
        ));
        self
    }

    /// With all of its memory in use from the start, whether the guest touches it or not.
    pub(crate) fn populated(mut self) -> Self {
        self.memory = Some("memory");
        let size = self.mem_mib;
        self.objects.push(format!(
            "memory-backend-ram,id=memory,size={size}M,prealloc=on"
        ));
        self
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

    /// QEMU's arguments, all but the guest's console, the channel `defmt` and QMP.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut option =
            |name: &str, value: &str| words.extend([format!("-{name}"), value.to_owned()]);
        let memory = self.memory.map(|id| format!("memory-backend={id}"));
        let board = [&[self.board.machine()], &self.board_options[..]].concat();
        let machine = board.into_iter().chain(memory.as_deref());
        option("machine", &machine.collect::<Vec<_>>().join(","));
        option("cpu", self.cpu);
        option("accel", self.accelerator.name());
        option("m", &self.mem_mib.to_string());
        option("kernel", &self.kernel.to_string_lossy());
        option("append", &self.command_line.join(" "));
        if let Some(file) = &self.initrd {
            option("initrd", &file.to_string_lossy());
        }
        option("display", "none");
        if !self.board.has_pci() {
            // QEMU's default is the interface of before virtio 1.0.
            option("global", "virtio-mmio.force-legacy=false");
        }
        for object in &self.objects {
            option("object", object);
        }
        for property in &self.globals {
            option("global", property);
        }
        for device in &self.devices {
            option("device", device);
        }
        if let Some(options) = &self.balloon {
            let device = [&[self.board.balloon(), "id=balloon"], &options[..]].concat();
            option("device", &device.join(","));
        }
        if let Some(from) = &self.incoming {
            option("incoming", from);
        }
        words.extend(self.board.fittings().iter().map(ToString::to_string));
        words.push("-nodefaults".to_owned());
        if !self.reboots {
            words.push("-no-reboot".to_owned());
        }
        words
    }
}
