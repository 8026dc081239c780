//! `cargo xtask count`: the size and the shape of the libraries, counted the same way each time.
//!
//! `xtask/counts.json` holds the figures that later work is held against.

mod fields;
mod imports;
mod lines;
mod source;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::ui::Table;
use crate::workspace::Workspace;
use source::Room;

/// Count lines of code, imports that run back up, circles, and the state of the engine.
///
/// Prints each figure beside the one of `xtask/counts.json`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List the imports, circles and flags behind the figures.
    #[arg(long)]
    list: bool,
    /// Make today's figures the ones that later work is held against.
    #[arg(long)]
    save: bool,
}

/// Counts, prints, and compares.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let file = workspace.root().join("xtask/counts.json");
    let before: BTreeMap<String, usize> = match std::fs::read(&file) {
        Ok(json) => {
            serde_json::from_slice(&json).with_context(|| format!("reading {}", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display()))?,
    };
    let now = figures(workspace, args.list)?;
    let mut table = Table::new(["figure", "saved", "now"]);
    for (name, count) in &now {
        let saved = before.get(name).map_or_else(String::new, usize::to_string);
        table.row(vec![name.clone(), saved, count.to_string()]);
    }
    println!("{}", table.render());
    if args.save {
        let json = serde_json::to_string_pretty(&now)?;
        std::fs::write(&file, json + "\n")
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn figures(workspace: &Workspace, list: bool) -> Result<BTreeMap<String, usize>> {
    let mut figures = BTreeMap::new();
    for package in workspace.libraries() {
        let folder = package.folder().join("src");
        let modules = source::modules(&folder.join("lib.rs"))?;
        for module in &modules {
            for (room, lines) in lines::count(module)? {
                let what = match room {
                    Room::Library => "library",
                    Room::Kit if module.file.starts_with(&folder) => "kit in src",
                    Room::Kit => "kit beside src",
                    Room::Test => continue,
                };
                for whose in [package.name.as_str(), "all"] {
                    *figures
                        .entry(format!("lines: {what}, {whose}"))
                        .or_default() += lines;
                }
            }
        }
        let imports = imports::follow(&modules);
        for whose in [package.name.as_str(), "all"] {
            for (what, count) in [
                ("imports back up", imports.back_up.len()),
                ("circles", imports.circles.len()),
            ] {
                *figures.entry(format!("{what}, {whose}")).or_default() += count;
            }
        }
        if list {
            for (from, to) in &imports.back_up {
                println!("back up: {} -> {}", from.display(), to.display());
            }
            for files in &imports.circles {
                println!("circle: {files:?}");
            }
        }
        if package.name == "balloon-core" {
            let state = fields::flatten(&modules, "Engine")?;
            figures.insert("engine: fields".to_owned(), state.fields);
            figures.insert("engine: flags".to_owned(), state.flags.len());
            figures.insert("engine: options".to_owned(), state.options.len());
            if list {
                println!("flags: {:?}\noptions: {:?}", state.flags, state.options);
            }
        }
    }
    Ok(figures)
}
