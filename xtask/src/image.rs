//! `cargo xtask image`: the guest kernels, and how to start them by hand.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use xshell::cmd;

use crate::exec::Runner;
use crate::setup;
use crate::ui;
use crate::vm::{Architecture, Board, Machine};
use crate::workspace::Workspace;

/// The guests there are.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Guest {
    /// The balloon guest for a stock QEMU.
    Qemu,
    /// The same for 64-bit Arm.
    QemuAarch64,
    /// The smallest kernel that follows a target.
    Minimal,
    /// The balloon guest for a Xen domain.
    Xen,
}

impl Guest {
    fn package(self) -> &'static str {
        match self {
            Self::Qemu | Self::QemuAarch64 => "qemu-guest",
            Self::Minimal => "minimal",
            Self::Xen => "xen-guest",
        }
    }

    fn architecture(self) -> Architecture {
        match self {
            Self::Qemu | Self::Minimal | Self::Xen => Architecture::X86_64,
            Self::QemuAarch64 => Architecture::Aarch64,
        }
    }

    /// A board it runs on.
    fn board(self) -> Board {
        match self.architecture() {
            Architecture::X86_64 => Board::Pc,
            Architecture::Aarch64 => Board::VirtMmio,
        }
    }
}

/// Builds the guest's ELF and returns its path.
///
/// The file keeps its symbols: the host needs them to decode the guest's `defmt` records.
pub(crate) fn build(workspace: &Workspace, runner: &mut Runner, guest: Guest) -> Result<PathBuf> {
    let target = guest.architecture().target();
    setup::target(workspace, runner, target)?;
    let package = guest.package();
    let shell = workspace.shell()?;
    runner.run(cmd!(
        shell,
        "cargo build --release --package {package} --target {target}"
    ))?;
    let elf = workspace
        .target()
        .join(target)
        .join("release")
        .join(package);
    if !elf.is_file() {
        bail!("{} was built, but {} is not there", package, elf.display());
    }
    Ok(elf)
}

/// Builds a guest, prints its path and a line that runs it.
pub(crate) fn run(workspace: &Workspace, guest: Guest) -> Result<()> {
    let bar = ui::spinner("guest kernel");
    let mut runner = Runner::new(
        workspace.output("log/image.log")?,
        bar.clone(),
        Duration::from_secs(900),
    )?;
    let elf = build(workspace, &mut runner, guest)?;
    if let Guest::Xen = guest {
        ui::finish(&bar, &format!("guest kernel: {}", elf.display()));
        let config = elf.with_extension("cfg");
        std::fs::copy(
            workspace.root().join("examples/xen-guest/xen-guest.cfg"),
            &config,
        )?;
        println!(
            "\nRun it on a Xen host, with its console on this terminal, in the folder of both:\n"
        );
        println!("cd {}", config.parent().unwrap_or(&config).display());
        println!("xl create -c xen-guest.cfg               # 'type=\"pv\"' for the other kind");
        println!("\nAsk it for memory from a second terminal:\n\nxl mem-set balloon 128m");
        return Ok(());
    }
    let qemu = setup::any(workspace, &mut runner, guest.architecture())?;
    ui::finish(&bar, &format!("guest kernel: {}", elf.display()));

    let machine = Machine::new(guest.board(), 1024, &elf)
        .append("token=by-hand")
        .append("fill=all")
        .reporting(true);
    let frames = elf.with_extension("defmt");
    let commands = match guest {
        Guest::Minimal => "",
        _ => " (type `stats`, `verify`, `quit`)",
    };
    println!("\nRun it, with its console on this terminal{commands}:\n");
    println!("{} \\", qemu.shown());
    println!(
        "  -chardev file,id=defmt,path={} -serial mon:stdio \\",
        frames.display()
    );
    println!("  {} \\", quoted(&machine.arguments()));
    println!("  -qmp unix:/tmp/balloon.qmp,server=on,wait=off");
    println!("\nAsk it for memory from a second terminal (256 MiB are to remain; needs socat):\n");
    println!(
        r#"printf '{{"execute":"qmp_capabilities"}}{{"execute":"balloon","arguments":{{"value":268435456}}}}' \"#
    );
    println!("  | socat -t 1 - UNIX-CONNECT:/tmp/balloon.qmp");
    Ok(())
}

/// Arguments as a person types them, an option and its value on each line.
fn quoted(arguments: &[String]) -> String {
    let mut line = String::new();
    for word in arguments {
        if !line.is_empty() {
            line.push_str(if word.starts_with('-') {
                " \\\n  "
            } else {
                " "
            });
        }
        if word.contains(' ') {
            line.push_str(&format!("'{word}'"))
        } else {
            line.push_str(word)
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_can_be_typed() {
        let words = ["-m", "1024", "-append", "a=1 b=2"].map(str::to_owned);
        assert_eq!(quoted(&words), "-m 1024 \\\n  -append 'a=1 b=2'");
    }
}
