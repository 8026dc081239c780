//! Lines of code: those that hold a token, documentation and blanks left out, by who compiles them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::source::{Module, Room, lines_of, room_of};

/// Lines of code of `module`, by room.
pub(super) fn count(module: &Module) -> Result<BTreeMap<Room, usize>> {
    let tokens: TokenStream = module
        .text
        .parse()
        .map_err(|error| anyhow!("{}: {error}", module.file.display()))?;
    let mut code = BTreeSet::new();
    collect(tokens, &mut code);
    let mut rooms = Rooms {
        current: module.room,
        lines: BTreeMap::new(),
    };
    rooms.visit_file(&module.syntax);
    let mut count = BTreeMap::new();
    for line in code {
        let room = rooms.lines.get(&line).copied().unwrap_or(module.room);
        *count.entry(room).or_default() += 1;
    }
    Ok(count)
}

/// Adds the lines of all tokens but those of doc comments.
fn collect(tokens: TokenStream, lines: &mut BTreeSet<usize>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if matches!(&token, TokenTree::Punct(mark) if mark.as_char() == '#') {
            let inner = tokens
                .next_if(|next| matches!(next, TokenTree::Punct(mark) if mark.as_char() == '!'));
            if tokens.next_if(is_doc).is_some() {
                continue;
            }
            lines.extend(inner.map(|mark| mark.span().start().line));
        }
        let span = token.span();
        match token {
            TokenTree::Group(group) => {
                if group.delimiter() != Delimiter::None {
                    lines.insert(group.span_open().start().line);
                    lines.insert(group.span_close().end().line);
                }
                collect(group.stream(), lines);
            }
            _ => lines.extend(span.start().line..=span.end().line),
        }
    }
}

/// `[doc = "…"]`, which is what a doc comment is to the parser.
fn is_doc(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else {
        return false;
    };
    let mut inside = group.stream().into_iter();
    matches!(inside.next(), Some(TokenTree::Ident(name)) if name == "doc")
        && matches!(inside.next(), Some(TokenTree::Punct(mark)) if mark.as_char() == '=')
}

/// Which lines belong to another room than their file does.
struct Rooms {
    current: Room,
    lines: BTreeMap<usize, Room>,
}

impl Rooms {
    fn enter(&mut self, attributes: &[syn::Attribute], item: &impl quote::ToTokens) -> Room {
        let outer = self.current;
        self.current = room_of(attributes).max(outer);
        if self.current != outer {
            self.lines
                .extend(lines_of(item).map(|line| (line, self.current)));
        }
        outer
    }
}

impl<'ast> Visit<'ast> for Rooms {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let outer = self.enter(attributes(item), item);
        visit::visit_item(self, item);
        self.current = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let outer = self.enter(&item.attrs, item);
        visit::visit_impl_item_fn(self, item);
        self.current = outer;
    }

    fn visit_field(&mut self, item: &'ast syn::Field) {
        let outer = self.enter(&item.attrs, item);
        visit::visit_field(self, item);
        self.current = outer;
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item;
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_tests_are_no_code() {
        let text = "//! Docs.\n\n/// Doc.\n#[must_use]\nfn one() -> u8 {\n    // Why.\n    1\n}\n\n\
                    #[cfg(test)]\nmod tests {\n    fn two() {}\n}\n";
        let module = Module {
            path: Vec::new(),
            file: "lib.rs".into(),
            room: Room::Library,
            text: text.to_owned(),
            syntax: syn::parse_file(text).expect("it parses"),
        };
        let count = count(&module).expect("it counts");
        assert_eq!(count, BTreeMap::from([(Room::Library, 4), (Room::Test, 4)]));
    }
}
