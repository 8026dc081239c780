//! The state of a struct: its fields, those of its private structs in their place.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use syn::{Fields, GenericArgument, ItemStruct, PathArguments, Type, Visibility};

use super::source::{Module, Room};

/// A struct, flattened.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) fields: usize,
    /// The fields that are a `bool`, as `outer.inner`.
    pub(super) flags: Vec<String>,
    /// The fields that are an `Option`.
    pub(super) options: Vec<String>,
}

/// Flattens the struct `name` of a library.
pub(super) fn flatten(modules: &[Module], name: &str) -> Result<State> {
    let structs: BTreeMap<String, &ItemStruct> = modules
        .iter()
        .filter(|module| module.room == Room::Library)
        .flat_map(|module| &module.syntax.items)
        .filter_map(|item| match item {
            syn::Item::Struct(item) => Some((item.ident.to_string(), item)),
            _ => None,
        })
        .collect();
    let root = structs
        .get(name)
        .with_context(|| format!("there is no struct {name}"))?;
    let mut state = State::default();
    add(root, "", &structs, &mut state);
    Ok(state)
}

fn add(
    item: &ItemStruct,
    before: &str,
    structs: &BTreeMap<String, &ItemStruct>,
    state: &mut State,
) {
    let Fields::Named(fields) = &item.fields else {
        state.fields += item.fields.len();
        return;
    };
    for field in &fields.named {
        let name = field.ident.as_ref().map(ToString::to_string);
        let path = format!("{before}{}", name.unwrap_or_default());
        let kind = head(&field.ty);
        let inner = kind
            .as_ref()
            .and_then(|kind| structs.get(kind))
            .filter(|inner| !matches!(inner.vis, Visibility::Public(_)));
        if let Some(inner) = inner {
            add(inner, &format!("{path}."), structs, state);
            continue;
        }
        state.fields += 1;
        match kind.as_deref() {
            Some("bool") => state.flags.push(path),
            Some("Option") => state.options.push(path),
            _ => {}
        }
    }
}

/// The name of a type, behind references and cells.
fn head(kind: &Type) -> Option<String> {
    let Type::Path(path) = kind else { return None };
    let last = path.path.segments.last()?;
    if ["Cell", "UnsafeCell"].iter().any(|cell| last.ident == cell)
        && let PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(GenericArgument::Type(inner)) = arguments.args.first()
    {
        return head(inner);
    }
    Some(last.ident.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn private_structs_stand_in_their_place() {
        let text = "pub struct E { a: bool, b: P, c: Q } struct P { d: bool, e: Option<u8> } \
                    pub struct Q { f: bool }";
        let module = Module {
            path: Vec::new(),
            file: PathBuf::new(),
            room: Room::Library,
            text: text.to_owned(),
            syntax: syn::parse_file(text).expect("it parses"),
        };
        let state = flatten(&[module], "E").expect("it is there");
        assert_eq!(state.fields, 4);
        assert_eq!(state.flags, ["a", "b.d"]);
        assert_eq!(state.options, ["b.e"]);
    }
}
