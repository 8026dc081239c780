//! What the workspace consists of, and where its outputs go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use xshell::{Shell, cmd};

/// The target that guests and the downstream kernel are linked for.
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-none";

/// The one pinned nightly, for Miri and for fuzzing.
pub(crate) const NIGHTLY: &str = "nightly-2026-06-01";

/// The checkout this program was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    packages: Vec<Package>,
    default_members: Vec<String>,
}

/// One member of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    id: String,
    pub(crate) version: String,
    pub(crate) rust_version: Option<String>,
    features: BTreeMap<String, Vec<String>>,
    targets: Vec<Target>,
    manifest_path: PathBuf,
    metadata: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    workspace_default_members: Vec<String>,
    packages: Vec<Package>,
}

impl Workspace {
    /// Asks cargo about the checkout that holds this program's manifest.
    pub(crate) fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask lies in a folder of the workspace")?
            .to_path_buf();
        let shell = Shell::new()?;
        shell.change_dir(&root);
        let json = cmd!(shell, "cargo metadata --format-version 1 --no-deps")
            .quiet()
            .read()?;
        let metadata: Metadata = serde_json::from_str(&json).context("reading `cargo metadata`")?;
        Ok(Self {
            root,
            target: metadata.target_directory,
            packages: metadata.packages,
            default_members: metadata.workspace_default_members,
        })
    }

    /// The root folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// `target/xtask/NAME` in the checkout, wherever cargo's own target folder is.
    pub(crate) fn output(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("target/xtask");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder.join(name))
    }

    /// A shell in the root folder that finds the tools xtask installs for itself.
    pub(crate) fn shell(&self) -> Result<Shell> {
        let shell = Shell::new()?;
        shell.change_dir(&self.root);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = vec![self.output("tools")?.join("bin")];
        folders.extend(std::env::split_paths(&path));
        shell.set_var("PATH", std::env::join_paths(folders)?);
        Ok(shell)
    }

    /// The libraries: what a kernel author depends on.
    pub(crate) fn libraries(&self) -> impl Iterator<Item = &Package> {
        let examples = self.root.join("examples");
        self.host_packages().filter(move |package| {
            package.name != env!("CARGO_PKG_NAME") && !package.manifest_path.starts_with(&examples)
        })
    }

    /// Everything that builds and tests on the host: the default members.
    pub(crate) fn host_packages(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.default_members.contains(&package.id))
    }

    /// The guests: examples that link for the bare target only, and are therefore no default members.
    pub(crate) fn guests(&self) -> impl Iterator<Item = &Package> {
        let examples = self.root.join("examples");
        self.others()
            .filter(move |package| package.manifest_path.starts_with(&examples))
    }

    /// The benches, whose peers nobody else should have to compile.
    pub(crate) fn benches(&self) -> impl Iterator<Item = &Package> {
        let benches = self.root.join("benches");
        self.others()
            .filter(move |package| package.manifest_path.starts_with(&benches))
    }

    fn others(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| !self.default_members.contains(&package.id))
    }
}

impl Package {
    /// Its name for `--package`, which tells it from a crate of the registry with the same name.
    pub(crate) fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// The folder its manifest lies in.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new(""))
    }

    /// Every feature that works on the host.
    ///
    /// `defmt` is left out: its records need the linker script of a guest, and a host test that enables
    /// it fails to link. So `--all-features` is for bare-metal checks and for documentation alone.
    pub(crate) fn host_features(&self) -> Vec<String> {
        self.features
            .keys()
            .filter(|name| !self.reaches_defmt(name))
            .map(|name| format!("{}/{name}", self.name))
            .collect()
    }

    fn reaches_defmt(&self, feature: &str) -> bool {
        feature == "defmt"
            || self.features.get(feature).is_some_and(|enables| {
                enables.iter().any(|other| {
                    other.ends_with("/defmt")
                        || other == "dep:defmt"
                        || (self.features.contains_key(other) && self.reaches_defmt(other))
                })
            })
    }

    /// Whether it has a library, beside or instead of a program.
    pub(crate) fn has_library(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target.kind.iter().any(|kind| kind == "lib"))
    }

    /// Whether it has loom models: a feature `loom`.
    pub(crate) fn has_loom(&self) -> bool {
        self.features.contains_key("loom")
    }

    /// A list of words under `[package.metadata.xtask]`, if it is there.
    pub(crate) fn note(&self, key: &str) -> Option<Vec<&str>> {
        let words = self.metadata.as_ref()?.pointer(&format!("/xtask/{key}"))?;
        let words = words.as_array()?.iter();
        Some(words.filter_map(serde_json::Value::as_str).collect())
    }
}
