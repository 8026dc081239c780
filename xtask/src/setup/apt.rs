//! Packages of a Debian release that the machine need not follow, by a state of apt's own: the machine's
//! lists and packages stay as they are, and nothing is installed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::exec::Runner;
use crate::workspace::Workspace;

/// Asks apt where it gets Debian's own packages; as a person can type it, too.
pub(super) const ARCHIVES: &str = "apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Origin: Debian'";
/// Debian's keys, those of newer releases among them; of the package `debian-archive-keyring`.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What of a release is followed where the machine follows it of its own.
const POCKETS: [&str; 3] = ["", "-updates", "-security"];

/// Beside the release proper, and in need of it.
const BACKPORTS: &str = "-backports";

/// A Debian release, or its backports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Release {
    /// As in `trixie`.
    pub(crate) codename: &'static str,
    /// As in `amd64`.
    pub(crate) architecture: &'static str,
}

/// apt, for one release.
#[derive(Debug)]
pub(crate) struct Apt {
    shell: Shell,
    options: Vec<String>,
}

impl Apt {
    /// Gets the lists of a release.
    pub(crate) fn of(workspace: &Workspace, runner: &mut Runner, release: Release) -> Result<Self> {
        let Release {
            codename,
            architecture,
        } = release;
        let default = if codename.ends_with(BACKPORTS) {
            codename
        } else {
            ""
        };
        let shell = workspace.shell()?;
        let sources = sources(&archives(&shell, runner)?, codename);
        let folder = workspace.output(&format!("apt/{codename}-{architecture}"))?;
        for sub in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(sub))?;
        }
        let at = |name: &str| folder.join(name).display().to_string();
        std::fs::write(at("sources.list"), sources)?;
        std::fs::write(at("status"), "")?;
        let options = [
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures::={architecture}"),
            "APT::Install-Recommends=false".to_owned(),
            // Nothing of backports is installed unasked.
            format!("APT::Default-Release={default}"),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::Status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        ];
        let options = options.map(|option| ["-o".to_owned(), option]).concat();
        let apt = Self { shell, options };
        runner.say(&format!("apt-get: lists of Debian {codename}"))?;
        runner.run(apt.get("update"))?;
        Ok(apt)
    }

    fn get(&self, what: &str) -> Cmd<'_> {
        let options = &self.options;
        cmd!(self.shell, "apt-get {options...} {what}")
    }

    /// The first package that `name` needs: a kernel's meta package needs one with its version.
    pub(crate) fn first_need(&self, name: &str) -> Result<String> {
        let options = &self.options;
        let text = cmd!(self.shell, "apt-cache {options...} depends {name}")
            .quiet()
            .read()?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .with_context(|| format!("{name} needs no package"))
    }

    /// Unpacks packages alone into `root`.
    pub(crate) fn unpack(&self, runner: &mut Runner, names: &[&str], root: &Path) -> Result<()> {
        let debs = debs(root)?;
        let _folder = self.shell.push_dir(&debs);
        runner.run(self.get("download").args(names))?;
        self.unpack_all(runner, &debs, root)
    }

    /// Unpacks packages with all they need, the C library included, into `root`.
    pub(crate) fn unpack_whole(
        &self,
        runner: &mut Runner,
        names: &[&str],
        root: &Path,
    ) -> Result<()> {
        let debs = debs(root)?;
        let archives = format!("Dir::Cache::Archives={}", debs.display());
        let install = self
            .get("install")
            .args(["--download-only", "--yes", "-o", &archives]);
        runner.run(install.args(names))?;
        self.unpack_all(runner, &debs, root)
    }

    fn unpack_all(&self, runner: &mut Runner, debs: &Path, root: &Path) -> Result<()> {
        let files = self.shell.read_dir(debs)?;
        let mut files = files
            .iter()
            .filter(|file| file.extension().is_some_and(|end| end == "deb"))
            .peekable();
        ensure!(files.peek().is_some(), "apt-get downloaded no package");
        for file in files {
            runner.run(cmd!(self.shell, "dpkg-deb -x {file} {root}"))?;
        }
        std::fs::remove_dir_all(debs)?;
        Ok(())
    }
}

/// An empty folder for what is downloaded for `root`.
fn debs(root: &Path) -> Result<PathBuf> {
    let debs = root.with_extension("debs");
    if debs.exists() {
        std::fs::remove_dir_all(&debs)?;
    }
    std::fs::create_dir_all(debs.join("partial"))?;
    Ok(debs)
}

/// Where this machine gets Debian's own packages: an address and a suite a line.
fn archives(shell: &Shell, runner: &mut Runner) -> Result<String> {
    let ask = || cmd!(shell, "sh -c {ARCHIVES}").quiet().read();
    let mut known =
        ask().context("starting apt-get: this needs Debian, or what descends from it")?;
    // What apt has never looked at, it does not know to be Debian's.
    if known.is_empty() && rustix::process::geteuid().is_root() {
        runner.run(cmd!(shell, "apt-get update"))?;
        known = ask()?;
    }
    if known.is_empty() {
        bail!("apt knows no archive of Debian's: `apt-get update`, on Debian");
    }
    Ok(known)
}

/// The address of the archive proper, without its security updates.
pub(super) fn mirror(shell: &Shell, runner: &mut Runner) -> Result<String> {
    let known = archives(shell, runner)?;
    let mut known = known.lines().filter_map(|line| line.split_once(' '));
    known
        .find(|(_, suite)| !suite.contains('-'))
        .map(|(address, _)| address.to_owned())
        .context("apt knows updates of Debian's, but no archive")
}

/// The sources of another release, from where the machine gets its own.
fn sources(archives: &str, codename: &str) -> String {
    let (release, is_backports) = match codename.strip_suffix(BACKPORTS) {
        Some(release) => (release, true),
        None => (codename, false),
    };
    let mut lines = BTreeSet::new();
    for (address, suite) in archives.lines().filter_map(|line| line.split_once(' ')) {
        let pocket = suite.find('-').map_or("", |at| suite.split_at(at).1);
        let line = |pocket| format!("deb [signed-by={KEYS}] {address} {release}{pocket} main\n");
        if POCKETS.contains(&pocket) {
            lines.insert(line(pocket));
        }
        if is_backports && pocket.is_empty() {
            lines.insert(line(BACKPORTS));
        }
    }
    lines.into_iter().collect()
}

/// What was unpacked with all it needs: its programs run by their own loader, with their own libraries.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// The packages' files.
    pub(crate) root: PathBuf,
}

impl Unpacked {
    /// Where libraries lie, the loader among them.
    fn libraries(&self) -> [PathBuf; 2] {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| self.root.join(path))
    }

    /// A library, by the name of its file.
    pub(crate) fn library(&self, name: &str) -> Result<PathBuf> {
        let places = self.libraries().map(|folder| folder.join(name));
        let found = places.into_iter().find(|path| path.is_file());
        found.with_context(|| format!("{} holds no {name}", self.root.display()))
    }

    /// The libraries that a program is linked to, without the loader.
    pub(crate) fn linked_to(&self, shell: &Shell, program: &Path) -> Result<Vec<PathBuf>> {
        let (loader, path) = (self.library(LOADER)?, self.libraries());
        let path = path.map(|folder| folder.display().to_string()).join(":");
        let list = cmd!(shell, "{loader} --library-path {path} --list {program}");
        let list = list.quiet().read()?;
        let found = list.lines().filter_map(|line| {
            let (name, found) = line.split_once(" => ")?;
            let file = found.split_whitespace().next()?;
            (!name.contains(LOADER)).then(|| PathBuf::from(file))
        });
        Ok(found.collect())
    }
}

/// The name of the loader.
pub(crate) const LOADER: &str = "ld-linux-x86-64.so.2";

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "http://one/debian/ bookworm\nhttp://one/debian/ bookworm-updates\n\
                         http://two/ bookworm-security\nhttp://one/debian/ bookworm-backports\n";

    fn suites(codename: &str) -> Vec<(String, String)> {
        let text = sources(KNOWN, codename);
        let words = text.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[..2], ["deb", &format!("[signed-by={KEYS}]")]);
            assert_eq!(words[4..], ["main"]);
            (words[2].to_owned(), words[3].to_owned())
        });
        words.collect()
    }

    #[test]
    fn another_release_comes_from_the_same_places() {
        let plain = [
            ("http://one/debian/", "trixie"),
            ("http://one/debian/", "trixie-updates"),
            ("http://two/", "trixie-security"),
        ]
        .map(|(address, suite)| (address.to_owned(), suite.to_owned()));
        assert_eq!(suites("trixie"), plain);
        let with = suites("trixie-backports");
        assert_eq!(with.len(), 4);
        let wanted = ("http://one/debian/", "trixie-backports");
        assert!(with.contains(&(wanted.0.to_owned(), wanted.1.to_owned())));
        assert!(sources("", "trixie").is_empty());
    }
}
