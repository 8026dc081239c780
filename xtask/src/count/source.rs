//! A library as its modules: which file holds each, and whether users, the test kit, or tests compile it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::spanned::Spanned as _;
use syn::{Attribute, Expr, ExprLit, Item, Lit, Meta, Token, punctuated::Punctuated};

/// Who compiles an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Users of the crate do.
    Library,
    /// Those who ask for the feature `test-utils` do.
    Kit,
    /// Only tests, models and fuzz targets do.
    Test,
}

/// One file of a library.
pub(super) struct Module {
    /// Where it stands below the crate's root: `["engine", "inflate"]`.
    pub(super) path: Vec<String>,
    pub(super) file: PathBuf,
    pub(super) room: Room,
    pub(super) text: String,
    pub(super) syntax: syn::File,
}

/// Reads the crate whose root file is `root`, following its `mod` items.
pub(super) fn modules(root: &Path) -> Result<Vec<Module>> {
    let mut found = Vec::new();
    let folder = root.parent().context("a source file lies in a folder")?;
    read(root, folder, Vec::new(), Room::Library, &mut found)?;
    Ok(found)
}

/// Reads `file`, then those of its children, which lie in `folder`.
fn read(
    file: &Path,
    folder: &Path,
    path: Vec<String>,
    room: Room,
    found: &mut Vec<Module>,
) -> Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let syntax = syn::parse_file(&text).with_context(|| format!("parsing {}", file.display()))?;
    let at = found.len();
    found.push(Module {
        path: path.clone(),
        file: file.to_path_buf(),
        room,
        text,
        syntax: syntax.clone(),
    });
    children(&syntax.items, file, folder, &path, room, found)?;
    // A file may say of itself who compiles it.
    let own = room_of(&syntax.attrs).max(room);
    if let Some(module) = found.get_mut(at) {
        module.room = own;
    }
    Ok(())
}

fn children(
    items: &[Item],
    file: &Path,
    folder: &Path,
    path: &[String],
    room: Room,
    found: &mut Vec<Module>,
) -> Result<()> {
    for item in items {
        let Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        let room = room_of(&module.attrs).max(room);
        let below = [path, std::slice::from_ref(&name)].concat();
        let inside = folder.join(&name);
        if let Some((_, items)) = &module.content {
            children(items, file, &inside, &below, room, found)?;
        } else if let Some(other) = path_attribute(&module.attrs) {
            let beside = normalised(&file.parent().unwrap_or(folder).join(other));
            let inside = beside.parent().unwrap_or(folder).to_path_buf();
            read(&beside, &inside, below, room, found)?;
        } else {
            let flat = folder.join(format!("{name}.rs"));
            let nested = inside.join("mod.rs");
            let file = if flat.exists() { flat } else { nested };
            read(&file, &inside, below, room, found)?;
        }
    }
    Ok(())
}

/// The path without `folder/..`.
fn normalised(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path {
        if part == ".." {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        let Expr::Lit(ExprLit {
            lit: Lit::Str(file),
            ..
        }) = &pair.value
        else {
            return None;
        };
        pair.path.is_ident("path").then(|| file.value())
    })
}

/// The room that the `cfg` attributes of an item put it into.
pub(super) fn room_of(attributes: &[Attribute]) -> Room {
    let rooms = attributes.iter().filter_map(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return None;
        };
        let condition = list
            .path
            .is_ident("cfg")
            .then(|| list.parse_args().ok())??;
        Some(if holds(&condition, false) {
            Room::Library
        } else if holds(&condition, true) {
            Room::Kit
        } else {
            Room::Test
        })
    });
    rooms.max().unwrap_or(Room::Library)
}

/// Whether users with every feature, `test-utils` only where `kit` is set, compile what `condition`
/// guards.
fn holds(condition: &Meta, kit: bool) -> bool {
    match condition {
        Meta::Path(name) => !["test", "loom", "fuzzing"]
            .iter()
            .any(|unset| name.is_ident(unset)),
        Meta::NameValue(pair) => {
            let is_kit = matches!(&pair.value, Expr::Lit(ExprLit { lit: Lit::Str(value), .. })
                if value.value() == "test-utils");
            kit || !is_kit
        }
        Meta::List(list) => {
            let parts = list
                .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
                .unwrap_or_default();
            let mut parts = parts.iter().map(|part| holds(part, kit));
            if list.path.is_ident("any") {
                parts.any(|part| part)
            } else if list.path.is_ident("not") {
                !parts.all(|part| part)
            } else {
                parts.all(|part| part)
            }
        }
    }
}

/// The lines from an item's first token to its last.
pub(super) fn lines_of(item: &impl quote::ToTokens) -> std::ops::RangeInclusive<usize> {
    let span = item.span();
    span.start().line..=span.end().line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(attribute: &str) -> Room {
        let item: syn::ItemMod = syn::parse_str(&format!("{attribute} mod x;")).expect("it parses");
        room_of(&item.attrs)
    }

    #[test]
    fn conditions_tell_who_compiles_an_item() {
        assert_eq!(room(""), Room::Library);
        assert_eq!(room("#[cfg(not(loom))]"), Room::Library);
        assert_eq!(room("#[cfg(feature = \"log\")]"), Room::Library);
        assert_eq!(
            room("#[cfg(any(test, feature = \"test-utils\"))]"),
            Room::Kit
        );
        assert_eq!(room("#[cfg(all(test, not(loom)))]"), Room::Test);
        assert_eq!(room("#[cfg(any(test, loom))]"), Room::Test);
    }
}
