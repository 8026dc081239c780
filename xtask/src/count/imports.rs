//! Imports as arrows between the files of a library, by `use` path.
//!
//! An import *runs back up* if it ends at a module that holds the importing one and that, by its own imports,
//! depends on it. What still forms a loop when those are taken away is a *circle*.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use syn::UseTree;
use syn::visit::{self, Visit};

use super::source::{Module, Room, room_of};

/// What the imports of one library show.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// Importing file and imported one.
    pub(super) back_up: Vec<(PathBuf, PathBuf)>,
    /// Files of each circle.
    pub(super) circles: Vec<Vec<PathBuf>>,
}

/// Follows every `use` of the library's own code.
pub(super) fn follow(modules: &[Module]) -> Imports {
    let library: Vec<&Module> = modules
        .iter()
        .filter(|module| module.room == Room::Library)
        .collect();
    let by_path: BTreeMap<&[String], usize> = library
        .iter()
        .enumerate()
        .map(|(index, module)| (module.path.as_slice(), index))
        .collect();
    let mut arrows = BTreeSet::new();
    for (from, module) in library.iter().enumerate() {
        let mut uses = Uses {
            place: module.path.clone(),
            paths: Vec::new(),
        };
        uses.visit_file(&module.syntax);
        for (place, path) in uses.paths {
            let to = resolve(&place, &path, &by_path);
            arrows.extend(to.filter(|&to| to != from).map(|to| (from, to)));
        }
    }
    let loops = circles(&arrows);
    let up: BTreeSet<(usize, usize)> = arrows
        .iter()
        .copied()
        .filter(|&(from, to)| {
            let holds = |index: usize| library.get(index).map(|module| module.path.as_slice());
            let is_above = holds(from)
                .zip(holds(to))
                .is_some_and(|(from, to)| from.starts_with(to));
            is_above
                && loops
                    .iter()
                    .any(|files| files.contains(&from) && files.contains(&to))
        })
        .collect();
    let rest = arrows.difference(&up).copied().collect();
    let file = |&index: &usize| {
        library
            .get(index)
            .map_or_else(PathBuf::new, |module| shortened(&module.file))
    };
    Imports {
        back_up: up.iter().map(|(from, to)| (file(from), file(to))).collect(),
        circles: circles(&rest)
            .iter()
            .map(|files| files.iter().map(file).collect())
            .collect(),
    }
}

/// The file from its package's folder on.
fn shortened(file: &Path) -> PathBuf {
    let parts: Vec<_> = file.iter().collect();
    let at = parts.iter().position(|part| *part == "src").unwrap_or(1);
    parts.iter().skip(at.saturating_sub(1)).collect()
}

fn circles(arrows: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let graph: DiGraphMap<usize, ()> = arrows.iter().copied().collect();
    let mut found = tarjan_scc(&graph);
    found.retain(|files| files.len() > 1);
    for files in &mut found {
        files.sort_unstable();
    }
    found
}

/// The module a path names, or whose item it names; `None` outside the library.
fn resolve(
    place: &[String],
    path: &[String],
    modules: &BTreeMap<&[String], usize>,
) -> Option<usize> {
    let mut at: Vec<String> = place.to_vec();
    let mut rest = path.iter();
    let first = rest.next()?;
    match first.as_str() {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()),
        name => {
            at.push(name.to_owned());
            modules.get(at.as_slice())?;
        }
    }
    for name in rest {
        if name == "super" {
            at.pop();
            continue;
        }
        at.push(name.clone());
        if !modules.contains_key(at.as_slice()) {
            at.pop();
            break;
        }
    }
    // An inline module is part of the file around it.
    while !at.is_empty() && !modules.contains_key(at.as_slice()) {
        at.pop();
    }
    modules.get(at.as_slice()).copied()
}

/// Collects the paths of `use` items, each with the module it stands in.
struct Uses {
    place: Vec<String>,
    paths: Vec<(Vec<String>, Vec<String>)>,
}

impl Uses {
    fn flatten(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.flatten(&path.tree, &with(path.ident.to_string())),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.flatten(tree, before);
                }
            }
            UseTree::Name(name) if name.ident == "self" => self.add(before.to_vec()),
            UseTree::Name(name) => self.add(with(name.ident.to_string())),
            UseTree::Rename(name) => self.add(with(name.ident.to_string())),
            UseTree::Glob(_) => self.add(before.to_vec()),
        }
    }

    fn add(&mut self, path: Vec<String>) {
        self.paths.push((self.place.clone(), path));
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if room_of(&item.attrs) == Room::Library {
            self.flatten(&item.tree, &[]);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() && room_of(&item.attrs) == Room::Library {
            self.place.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.place.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &[&str], text: &str) -> Module {
        Module {
            path: path.iter().map(|&name| name.to_owned()).collect(),
            file: PathBuf::from(format!("x/src/{}.rs", path.join("/"))),
            room: Room::Library,
            text: text.to_owned(),
            syntax: syn::parse_file(text).expect("it parses"),
        }
    }

    #[test]
    fn an_import_of_what_depends_on_it_runs_back_up() {
        let modules = [
            module(&[], "mod a; mod b; pub use a::A;"),
            module(&["a"], "use crate::b::B;"),
            module(&["b"], "use crate::A;"),
        ];
        let imports = follow(&modules);
        assert_eq!(
            imports.back_up,
            [(PathBuf::from("x/src/b.rs"), PathBuf::from("x/src/.rs"))]
        );
        assert!(imports.circles.is_empty(), "{:?}", imports.circles);
    }

    #[test]
    fn neighbours_that_import_each_other_are_a_circle() {
        let modules = [
            module(&[], "mod a; mod b;"),
            module(&["a"], "use crate::b::B;"),
            module(&["b"], "use super::a::A;"),
        ];
        let imports = follow(&modules);
        assert_eq!(imports.circles.len(), 1);
        assert!(imports.back_up.is_empty());
    }
}
