//! A guest under libvirt, with the domain of the guest's README: `virsh setmem` moves its memory.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::case::{ANSWER, BOOT, MIB, Site, wait_until};
use crate::vm::{Console, SocketFolder};

/// The README, which has the domain in a block of its own.
const README: &str = include_str!("../../../../examples/qemu-guest/README.md");
const DOMAIN: &str = "balloon";
const MEMORY_MIB: u64 = 1024;
const LIMIT: Duration = Duration::from_secs(60);

/// Down and up as `virsh setmem` says, by libvirt's account and the guest's own.
pub(super) fn run(site: &Site<'_>) -> Result<()> {
    std::fs::create_dir_all(&site.folder)?;
    let libvirt = Libvirt::start(&site.folder)?;
    let console = UnixListener::bind(libvirt.sockets.path("console"))?;
    let emulator = site.folder.join("emulator");
    script(&emulator, &format!("exec env {} \"$@\"", site.qemu.shown()))?;
    let xml = domain(&[
        ("KERNEL", &site.elf.to_string_lossy()),
        ("/usr/bin/qemu-system-x86_64", &emulator.to_string_lossy()),
        (
            "<serial type='pty'/>",
            &format!(
                "<serial type='unix'><source mode='connect' path='{}'/></serial>",
                libvirt.sockets.path("console").display()
            ),
        ),
    ])?;
    let file = site.folder.join("domain.xml");
    std::fs::write(&file, xml)?;
    libvirt.virsh(&["create", &file.to_string_lossy()])?;
    let place = libvirt.virsh(&["dumpxml", DOMAIN])?;
    let (_, place) = place
        .split_once("<memballoon")
        .context("no balloon in the domain")?;
    ensure!(
        !place.contains("bus='0x00'"),
        "libvirt puts the balloon on bus 0 now: this case is to show that it is found elsewhere"
    );
    let stream = console.accept().context("QEMU does not connect")?.0;
    let mut console = Console::open(stream, &site.folder.join("console.log"))?;
    console.wait("freed", BOOT)?;
    for mib in [512, 768, 256, MEMORY_MIB] {
        libvirt.virsh(&["setmem", DOMAIN, &format!("{mib}M"), "--live"])?;
        let frames = (MEMORY_MIB - mib) * MIB / 4096;
        console.wait_until("balloon", ANSWER, |event| {
            event.number("actual").ok() == Some(frames)
        })?;
        // Whoever gave or got memory proves that the rest is as it was.
        console.wait("verify", ANSWER)?;
        wait_until(LIMIT, || {
            let told = libvirt.virsh(&["dommemstat", DOMAIN])?;
            let right = figure(&told, "actual") == Some(mib * 1024);
            Ok(right
                .then_some(())
                .ok_or_else(|| format!("{mib} MiB were asked, libvirt knows:\n{told}")))
        })?;
        let told = console.ask("stats")?;
        ensure!(
            told.number("ballooned")? == frames && told.number("lost")? == 0,
            "the guest knows: {}",
            told.text()
        );
    }
    ensure!(console.data_ok(4), "data was damaged\n{}", console.tail());
    Ok(())
}

/// The domain of the README with other words in place of some.
fn domain(words: &[(&str, &str)]) -> Result<String> {
    let (_, block) = README.split_once("```xml\n").context("no domain")?;
    let (domain, _) = block.split_once("```").context("a domain without end")?;
    let mut domain = domain.to_owned();
    for (word, other) in words {
        ensure!(
            domain.matches(word).count() == 1,
            "`{word}` is to stand once in the README's domain"
        );
        domain = domain.replace(word, other);
    }
    Ok(domain)
}

/// A line `name number`.
fn figure(told: &str, name: &str) -> Option<u64> {
    let mut lines = told.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        (words.next()? == name).then_some(())?;
        words.next()?.parse().ok()
    })
}

/// An executable file of one line.
fn script(path: &Path, line: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\n{line}\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A libvirt of our own: a daemon as a user has one, with all that it writes in folders of ours.
struct Libvirt {
    daemon: Child,
    sockets: SocketFolder,
}

impl Libvirt {
    fn start(folder: &Path) -> Result<Self> {
        let sockets = SocketFolder::create()?;
        let log = std::fs::File::create(folder.join("libvirtd.log"))?;
        // In the folder of sockets: its names are short.
        let settings = sockets.path("libvirt");
        std::fs::create_dir_all(&settings)?;
        // The machine has no daemon for logs, nor is one wanted.
        std::fs::write(settings.join("qemu.conf"), "stdio_handler = \"file\"\n")?;
        let daemon = command(&sockets, "libvirtd")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting libvirtd")?;
        let libvirt = Self { daemon, sockets };
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = libvirt.virsh(&["version"]) {
            if Instant::now() > deadline {
                return Err(error.context("libvirtd does not answer"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(libvirt)
    }

    /// Runs a command of `virsh`, and returns what it prints.
    fn virsh(&self, words: &[&str]) -> Result<String> {
        let output = command(&self.sockets, "virsh")
            .args(["--quiet", "--connect", "qemu:///session"])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .context("starting virsh")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("virsh {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // QEMU outlives the daemon. That there is none is what we want.
        let _ = self.virsh(&["destroy", DOMAIN]);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A command that finds all its folders in ours. Root is nobody in it: as root, libvirt would manage the machine.
fn command(sockets: &SocketFolder, program: &str) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-user=65534", "--map-group=65534", program]);
        command
    } else {
        Command::new(program)
    };
    let folder = sockets.path("");
    for variable in [
        "HOME",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
    ] {
        command.env(variable, &folder);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_a_domain() {
        let domain = domain(&[("KERNEL", "k")]).unwrap();
        assert!(domain.starts_with("<domain") && domain.ends_with("</domain>\n"));
        assert!(domain.contains(&format!("<memory unit='MiB'>{MEMORY_MIB}</memory>")));
    }

    #[test]
    fn figures_are_found_by_name() {
        assert_eq!(figure("actual 12\nrss 4\n", "rss"), Some(4));
        assert_eq!(figure("actual\n", "actual"), None);
    }
}
