//! Debian's side: packages.

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use crate::exec::Runner;
use crate::workspace::Workspace;

/// Backports in a file of its own, so that nobody's settings are edited.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/balloon-backports.list";
const BACKPORTS_LINE: &str = "deb http://deb.debian.org/debian bookworm-backports main";

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
        enable_backports(runner)?;
    }
    let from: &[&str] = if backports {
        &["-t", "bookworm-backports"]
    } else {
        &[]
    };
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
                "apt does not know bookworm-backports. Type this, then try again:\n  sudo sh -c \"echo \
                 '{BACKPORTS_LINE}' > {BACKPORTS_FILE} && apt-get update\""
            );
        }
        enable_backports(runner)?;
        runner.run(cmd!(shell, "apt-get update"))?;
    }
    Ok(Some("bookworm-backports"))
}

fn enable_backports(runner: &mut Runner) -> Result<()> {
    runner.say(&format!(
        "apt-get: enabling bookworm-backports in {BACKPORTS_FILE}"
    ))?;
    std::fs::write(BACKPORTS_FILE, format!("{BACKPORTS_LINE}\n"))
        .with_context(|| format!("writing {BACKPORTS_FILE}"))
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
        format!("echo '{BACKPORTS_LINE}' > {BACKPORTS_FILE} && ")
    } else {
        String::new()
    };
    let from = if backports {
        "-t bookworm-backports "
    } else {
        ""
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
        .is_ok_and(|text| text.contains("bookworm-backports"))
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
        assert_eq!(
            command_for(&["qemu-system-x86"], true, true),
            "sudo sh -c \"echo 'deb http://deb.debian.org/debian bookworm-backports main' > \
             /etc/apt/sources.list.d/balloon-backports.list && apt-get update && \
             apt-get install -y --no-install-recommends -t bookworm-backports qemu-system-x86\""
        );
    }
}
