//! Debian's side: packages.

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use super::apt;
use crate::exec::Runner;
use crate::workspace::Workspace;

/// Backports in a file of its own, so that nobody's settings are edited.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/balloon-backports.list";
const BACKPORTS: &str = "bookworm-backports";

/// Where packages are to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// Whatever the machine follows.
    Default,
    /// On bookworm its backports; on later releases the same as `Default`.
    Backports,
}

/// Makes sure that packages are installed: installs them as root, otherwise says what to type.
pub(super) fn packages(
    workspace: &Workspace,
    runner: &mut Runner,
    suite: Suite,
    names: &[&str],
) -> Result<()> {
    let shell = workspace.shell()?;
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !is_installed(&shell, name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if cmd!(shell, "apt-get --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_err()
    {
        bail!(
            "missing: {}. This machine has no apt-get: install them by its own means",
            missing.join(", ")
        );
    }
    let backports = suite == Suite::Backports && is_bookworm();
    let enable = backports && !has_backports(&shell);
    if !rustix::process::geteuid().is_root() {
        bail!(
            "missing Debian packages. Type this, then try again:\n  {}",
            command_for(&missing, backports, enable)
        );
    }
    runner.say(&format!("apt-get: installing {}", missing.join(", ")))?;
    if enable {
        enable_backports(&shell, runner)?;
    }
    let from: &[&str] = if backports { &["-t", BACKPORTS] } else { &[] };
    shell.set_var("DEBIAN_FRONTEND", "noninteractive");
    runner.run(cmd!(shell, "apt-get update"))?;
    runner.run(cmd!(
        shell,
        "apt-get install -y --no-install-recommends {from...} {missing...}"
    ))?;
    Ok(())
}

/// Makes sure that apt knows bookworm's backports; the suite's name, or `None` on a newer release.
pub(crate) fn backports(
    workspace: &Workspace,
    runner: &mut Runner,
) -> Result<Option<&'static str>> {
    if !is_bookworm() {
        return Ok(None);
    }
    let shell = workspace.shell()?;
    if !has_backports(&shell) {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "apt does not know {BACKPORTS}. Type this, then try again:\n  sudo sh -c \"{} && \
                 apt-get update\"",
                enabling()
            );
        }
        enable_backports(&shell, runner)?;
        runner.run(cmd!(shell, "apt-get update"))?;
    }
    Ok(Some(BACKPORTS))
}

/// Makes sure that libvirt is there: its daemon and its shell, without what would start them with the machine.
pub(crate) fn libvirt(workspace: &Workspace, runner: &mut Runner) -> Result<()> {
    let names = [
        "libvirt-daemon",
        "libvirt-daemon-driver-qemu",
        "libvirt-clients",
    ];
    packages(workspace, runner, Suite::Default, &names)
}

fn enable_backports(shell: &Shell, runner: &mut Runner) -> Result<()> {
    runner.say(&format!(
        "apt-get: enabling {BACKPORTS} in {BACKPORTS_FILE}"
    ))?;
    let mirror = apt::mirror(shell, runner)?;
    std::fs::write(BACKPORTS_FILE, format!("deb {mirror} {BACKPORTS} main\n"))
        .with_context(|| format!("writing {BACKPORTS_FILE}"))
}

/// The command that does the same: backports lie where the release itself does.
fn enabling() -> String {
    let archive = format!("$({} | sed -n 's/ [a-z]*$//p' | head -n 1)", apt::ARCHIVES);
    format!("echo deb {archive} {BACKPORTS} main > {BACKPORTS_FILE}")
}

/// Makes sure that there is valgrind, whose callgrind counts instructions.
pub(crate) fn valgrind(workspace: &Workspace, runner: &mut Runner) -> Result<()> {
    packages(workspace, runner, Suite::Default, &["valgrind"])
}

/// Makes sure that there is a C++ compiler, which libFuzzer is built with.
pub(crate) fn cxx(workspace: &Workspace, runner: &mut Runner) -> Result<()> {
    let shell = workspace.shell()?;
    if cmd!(shell, "c++ --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok()
    {
        return Ok(());
    }
    packages(workspace, runner, Suite::Default, &["g++"])
}

/// The one command that does by hand what [`packages`] does as root.
fn command_for(missing: &[&str], backports: bool, enable: bool) -> String {
    let enabling = if enable {
        format!("{} && ", enabling())
    } else {
        String::new()
    };
    let from = if backports {
        format!("-t {BACKPORTS} ")
    } else {
        String::new()
    };
    let names = missing.join(" ");
    format!(
        "sudo sh -c \"{enabling}apt-get update && apt-get install -y --no-install-recommends {from}{names}\""
    )
}

/// Whether dpkg has the package, configured.
pub(super) fn is_installed(shell: &Shell, name: &str) -> bool {
    cmd!(shell, "dpkg-query -W -f '${Status}' {name}")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok_and(|status| status.contains("ok installed"))
}

fn is_bookworm() -> bool {
    std::fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.contains("VERSION_CODENAME=bookworm"))
}

fn has_backports(shell: &Shell) -> bool {
    cmd!(shell, "apt-cache policy")
        .quiet()
        .read()
        .is_ok_and(|text| text.contains(BACKPORTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_is_understood() {
        let shell = Shell::new().unwrap();
        let has_dpkg = cmd!(shell, "dpkg --version")
            .quiet()
            .ignore_stderr()
            .read()
            .is_ok();
        assert_eq!(is_installed(&shell, "dpkg"), has_dpkg);
        assert!(!is_installed(&shell, "no-such-package"));
    }

    #[test]
    fn one_command_to_type() {
        assert_eq!(
            command_for(&["g++"], false, false),
            "sudo sh -c \"apt-get update && apt-get install -y --no-install-recommends g++\""
        );
        let command = command_for(&["qemu-system-x86"], true, true);
        let (enabling, rest) = command.split_once(" && ").unwrap();
        assert!(
            enabling.starts_with("sudo sh -c \"echo deb $(apt-get indextargets ")
                && enabling.ends_with(
                    ") bookworm-backports main > /etc/apt/sources.list.d/balloon-backports.list"
                ),
            "{enabling}"
        );
        assert_eq!(
            rest,
            "apt-get update && \
             apt-get install -y --no-install-recommends -t bookworm-backports qemu-system-x86\""
        );
    }
}
