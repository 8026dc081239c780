//! Which QEMU to run: the machine's own, Debian's newest, and 7.2 unpacked beside it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use super::debian::{self, Suite};
use crate::exec::Runner;
use crate::vm::Architecture;
use crate::workspace::Workspace;

/// Older ones were never tried.
const OLDEST: Release = Release { major: 7, minor: 2 };
/// From here on a QEMU counts as the new one of the pair that the tests run on; what a bench measures on.
const NEW: Release = Release {
    major: 10,
    minor: 0,
};

/// The program that emulates an architecture.
fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86_64",
        Architecture::Aarch64 => "qemu-system-aarch64",
    }
}

/// The Debian package it is in.
fn package(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86",
        Architecture::Aarch64 => "qemu-system-arm",
    }
}

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    version: Version,
    /// What it takes to run from where it was unpacked.
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

/// A QEMU release, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Release {
    major: u32,
    minor: u32,
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A QEMU release with its corrections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    release: Release,
    patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.release, self.patch)
    }
}

/// What is asked of a QEMU.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    AtLeast(Release),
    Exactly(Release),
}

impl Wanted {
    fn fits(self, version: Version) -> bool {
        match self {
            Self::AtLeast(release) => version.release >= release,
            Self::Exactly(release) => version.release == release,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(release) => write!(f, "QEMU {release} or newer"),
            Self::Exactly(release) => write!(f, "QEMU {release}"),
        }
    }
}

impl Qemu {
    /// Whether it is the old one of the pair, which has faults of its own.
    pub(crate) fn is_oldest(&self) -> bool {
        self.version.release == OLDEST
    }

    /// Which one it is.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// A command that starts it, without any machine yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The beginning of a line a person can type.
    pub(crate) fn shown(&self) -> String {
        let mut words: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_string_lossy()))
            .collect();
        words.push(self.program.display().to_string());
        words.extend(
            self.arguments
                .iter()
                .map(|word| word.to_string_lossy().into_owned()),
        );
        words.join(" ")
    }

    fn ask(mut self) -> Result<Self> {
        let output = self.command().arg("--version").output();
        let output = output.with_context(|| format!("starting {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.version = parse_version(&text).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            format!(
                "{} does not tell its version: {text}{complaint}",
                self.program.display()
            )
        })?;
        Ok(self)
    }
}

/// `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_version(text: &str) -> Option<Version> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(['.', ' ', '\n']);
    let mut number = || numbers.next()?.parse().ok();
    Some(Version {
        release: Release {
            major: number()?,
            minor: number()?,
        },
        patch: number()?,
    })
}

/// The QEMU on the path, if there is one.
fn on_path(shell: &Shell, architecture: Architecture) -> Option<Qemu> {
    let path = shell.var_os("PATH")?;
    let program = std::env::split_paths(&path)
        .map(|folder| folder.join(program(architecture)))
        .find(|file| file.is_file())?;
    plain(program).ask().ok()
}

fn plain(program: PathBuf) -> Qemu {
    Qemu {
        program,
        // Until it is asked.
        version: Version {
            release: OLDEST,
            patch: 0,
        },
        arguments: Vec::new(),
        environment: Vec::new(),
    }
}

/// The QEMU on the path if it fits, or else Debian's, if that does.
fn find(
    workspace: &Workspace,
    runner: &mut Runner,
    architecture: Architecture,
    wanted: Wanted,
) -> Result<Qemu> {
    let shell = workspace.shell()?;
    if let Some(found) = on_path(&shell, architecture).filter(|found| wanted.fits(found.version)) {
        return Ok(found);
    }
    let package = package(architecture);
    debian::packages(workspace, runner, Suite::Backports, &[package])?;
    // A QEMU installed from elsewhere may come first on the path.
    let debian = plain(Path::new("/usr/bin").join(program(architecture))).ask()?;
    if !wanted.fits(debian.version) {
        bail!(
            "{wanted} is needed; {} is {}. Put one that fits first on the path: on Debian 12 by\n  \
             apt-get install -t bookworm-backports {package}",
            debian.shown(),
            debian.version
        );
    }
    Ok(debian)
}

/// Any QEMU that is new enough.
pub(crate) fn any(
    workspace: &Workspace,
    runner: &mut Runner,
    architecture: Architecture,
) -> Result<Qemu> {
    find(workspace, runner, architecture, Wanted::AtLeast(OLDEST))
}

/// The one release that figures are measured on, so that they can be compared.
pub(crate) fn measured(
    workspace: &Workspace,
    runner: &mut Runner,
    architecture: Architecture,
) -> Result<Qemu> {
    find(workspace, runner, architecture, Wanted::Exactly(NEW))
}

/// Both QEMUs the tests run on: a new one, and 7.2.
pub(crate) fn emulators(
    workspace: &Workspace,
    runner: &mut Runner,
    architecture: Architecture,
) -> Result<[Qemu; 2]> {
    let new = find(workspace, runner, architecture, Wanted::AtLeast(NEW))?;
    let old = match on_path(&workspace.shell()?, architecture) {
        Some(found) if found.is_oldest() => found,
        _ => unpacked(workspace, runner, architecture)?,
    };
    Ok([new, old])
}

/// Debian's 7.2, downloaded and unpacked under `target/xtask`, never installed.
fn unpacked(
    workspace: &Workspace,
    runner: &mut Runner,
    architecture: Architecture,
) -> Result<Qemu> {
    let folder = workspace.output(match architecture {
        Architecture::X86_64 => "qemu72",
        Architecture::Aarch64 => "qemu72-arm",
    })?;
    let root = folder.join("root");
    let ready = folder.join("ready");
    if !ready.exists() {
        download(workspace, runner, package(architecture), &folder, &root)?;
        std::fs::write(&ready, "")?;
    }
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut qemu = plain(root.join("usr/bin").join(program(architecture)));
    qemu.environment = vec![
        ("QEMU_MODULE_DIR", libraries.join("qemu").into()),
        ("LD_LIBRARY_PATH", libraries.into()),
    ];
    for data in [
        root.join("usr/share/qemu"),
        root.join("usr/share/seabios"),
        "/usr/share/seabios".into(),
    ] {
        qemu.arguments.extend(["-L".into(), data.into()]);
    }
    let qemu = qemu.ask()?;
    if !qemu.is_oldest() {
        bail!(
            "{} holds QEMU {}, not {OLDEST}: remove the folder",
            folder.display(),
            qemu.version
        );
    }
    Ok(qemu)
}

fn download(
    workspace: &Workspace,
    runner: &mut Runner,
    package: &str,
    folder: &Path,
    root: &Path,
) -> Result<()> {
    let shell = workspace.shell()?;
    let wanted = OLDEST.to_string();
    if rustix::process::geteuid().is_root() {
        runner.run(cmd!(shell, "apt-get update"))?;
    }
    runner.say(&format!(
        "apt-get: unpacking QEMU {OLDEST} under {}",
        folder.display()
    ))?;
    std::fs::create_dir_all(folder.join("debs"))?;
    shell.change_dir(folder.join("debs"));

    // The release's own packages first, then whatever they need and the machine does not have.
    let mut wait: Vec<String> = Vec::new();
    for name in [package, "qemu-system-common", "qemu-system-data"] {
        let known = cmd!(shell, "apt-cache madison {name}").quiet().read()?;
        let version = known
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim);
        let version = version
            .into_iter()
            .find(|version| version.contains(&format!(":{wanted}")));
        let version = version.with_context(|| {
            format!("apt knows no {name} {wanted}: `apt-get update`, with Debian 12 (bookworm) among the sources")
        })?;
        wait.push(format!("{name}={version}"));
    }
    let mut seen: BTreeSet<String> = [package, "qemu-system-common", "qemu-system-data"]
        .map(str::to_owned)
        .into();
    while let Some(next) = wait.pop() {
        runner.run(cmd!(shell, "apt-get download {next}"))?;
        let options = [
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
        ];
        let depends = cmd!(shell, "apt-cache depends {options...} {next}")
            .quiet()
            .read()?;
        for name in depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
        {
            // Boot ROMs of network cards serve no machine of ours; names in <> are virtual.
            let skip = name == "ipxe-qemu" || name.starts_with('<');
            if !skip && !debian::is_installed(&shell, name) && seen.insert(name.to_owned()) {
                wait.push(name.to_owned());
            }
        }
    }
    for file in shell.read_dir(".")? {
        runner.run(cmd!(shell, "dpkg -x {file} {root}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        let new = parse_version(text).unwrap();
        assert_eq!((new.release, new.patch), (NEW, 2));
        assert_eq!(new.to_string(), "10.0.2");
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n";
        assert_eq!(parse_version(text).map(|old| old.release), Some(OLDEST));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn corrections_do_not_make_a_release() {
        let version = |major, minor, patch| Version {
            release: Release { major, minor },
            patch,
        };
        for (wanted, fit, unfit) in [
            (Wanted::Exactly(NEW), version(10, 0, 7), version(10, 1, 0)),
            (Wanted::Exactly(NEW), version(10, 0, 0), version(9, 2, 4)),
            (Wanted::AtLeast(OLDEST), version(10, 1, 0), version(7, 1, 9)),
        ] {
            assert!(wanted.fits(fit), "{wanted}, {fit}");
            assert!(!wanted.fits(unfit), "{wanted}, {unfit}");
        }
    }
}
