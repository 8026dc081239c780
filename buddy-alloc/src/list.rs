//! One free list per order: exact most-recently-freed order, for all blocks and within each class.
//!
//! The list holds populated and unpopulated blocks in one sequence, most recently freed first, so
//! its head is the exact answer for "any". The first block of a wanted class must be found in
//! constant time too, however many blocks of the other class were freed later, and a node has room
//! for two links only.
//!
//! Neighbours of one class form *runs*. The list remembers both ends of its top run. Every other
//! run of three or more nodes is *folded*: inside a run the second node's `prev` and the last but
//! one node's `next` are known from context, so these two links hold the last and the first node
//! of the run instead. From either end of a run the other end is then two links away:
//!
//! ```text
//!   e1 -> e2 -> e3 ... eM -> eL      plain:  e2.prev = e1   eM.next = eL
//!                                    folded: e2.prev = eL   eM.next = e1
//! ```
//!
//! A folded end is recognised by its neighbours alone: `e2.prev.next` is not `e2`. Every
//! operation touches a constant number of nodes, away from the ends of a run the usual three.
//! "No neighbour" is a link of a node to itself.

use crate::node::{Node, Nodes};

/// "No node" where a pair number is stored in a word of its own.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    /// Last node of the run that starts at `head`.
    top_last: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self {
        head: NONE,
        top_last: NONE,
    };

    /// Most recently pushed node, or [`NONE`].
    #[inline]
    pub(crate) fn first(&self) -> u32 {
        self.head
    }

    /// Most recently pushed node of a class, or [`NONE`].
    #[inline]
    pub(crate) fn first_of(&self, nodes: &Nodes<'_>, any_populated: bool) -> u32 {
        if self.head == NONE || nodes.get(self.head).is_populated() == any_populated {
            return self.head;
        }
        let next = nodes.get(self.top_last).next();
        if next == self.top_last { NONE } else { next }
    }

    /// Puts a node in front. `node` is its content but for the links.
    #[inline]
    pub(crate) fn push(&mut self, nodes: &Nodes<'_>, pair: u32, node: Node) {
        let node = node.with_prev(pair);
        if self.head == NONE {
            nodes.set(pair, node.with_next(pair));
            *self = Self {
                head: pair,
                top_last: pair,
            };
            return;
        }
        let head = nodes.get(self.head);
        if head.is_populated() != node.is_populated() {
            fold(nodes, self.head, self.top_last);
            self.top_last = pair;
        }
        nodes.set(pair, node.with_next(self.head));
        // Folding may have changed the head's `next`, not its `prev`.
        set_prev(nodes, self.head, pair);
        self.head = pair;
    }

    /// Takes a node out, wherever it is. `node` is its content, left as it was.
    #[inline(always)]
    pub(crate) fn remove(&mut self, nodes: &Nodes<'_>, pair: u32, node: Node) {
        let (any_populated, next) = (node.is_populated(), node.next());
        // The commonest case of all: the top of the top run.
        if pair == self.head && next != pair {
            let after = nodes.get(next);
            if after.is_populated() == any_populated {
                // The one that moves up next time.
                nodes.prefetch(after.next());
                nodes.set(next, after.with_prev(next));
                self.head = next;
                return;
            }
        }
        self.remove_inner(nodes, pair, node);
    }

    #[inline(never)]
    fn remove_inner(&mut self, nodes: &Nodes<'_>, pair: u32, node: Node) {
        let any_populated = node.is_populated();
        let (prev, next) = (node.prev(), node.next());
        let (before, after) = (nodes.get(prev), nodes.get(next));
        let same_before = prev != pair && before.is_populated() == any_populated;
        let same_after = next != pair && after.is_populated() == any_populated;
        if same_before && same_after {
            if before.next() == pair && after.prev() == pair {
                nodes.set(prev, before.with_next(next));
                set_prev(nodes, next, prev);
                return;
            }
            // Second or last but one of a folded run.
            let (first, last) = if before.next() == pair {
                (next, run_last(nodes, next))
            } else {
                (run_first(nodes, prev), prev)
            };
            unfold(nodes, first, last);
            self.detach(nodes, pair);
            fold(nodes, first, last);
        } else if same_after {
            // Not the head: that was dealt with.
            let last = run_last(nodes, pair);
            unfold(nodes, pair, last);
            let first = nodes.get(pair).next();
            self.detach(nodes, pair);
            fold(nodes, first, last);
        } else if same_before {
            if pair == self.top_last {
                self.detach(nodes, pair);
                self.top_last = prev;
                return;
            }
            let first = run_first(nodes, pair);
            unfold(nodes, first, pair);
            let last = nodes.get(pair).prev();
            self.detach(nodes, pair);
            fold(nodes, first, last);
        } else {
            self.remove_whole_run(nodes, pair, prev, next);
        }
    }

    /// Removes a run of one node: the runs on both sides become one.
    fn remove_whole_run(&mut self, nodes: &Nodes<'_>, pair: u32, prev: u32, next: u32) {
        match (prev == pair, next == pair) {
            (true, true) => *self = Self::EMPTY,
            (true, false) => {
                let last = run_last(nodes, next);
                unfold(nodes, next, last);
                set_prev(nodes, next, next);
                *self = Self {
                    head: next,
                    top_last: last,
                };
            }
            (false, true) => set_next(nodes, prev, prev),
            (false, false) => {
                let last = run_last(nodes, next);
                unfold(nodes, next, last);
                let top = prev == self.top_last;
                let first = if top {
                    self.head
                } else {
                    run_first(nodes, prev)
                };
                if !top {
                    unfold(nodes, first, prev);
                }
                set_next(nodes, prev, next);
                set_prev(nodes, next, prev);
                if top {
                    self.top_last = last;
                } else {
                    fold(nodes, first, last);
                }
            }
        }
    }

    /// Links the plain neighbours of a node with each other. The node is not the list's head.
    fn detach(&self, nodes: &Nodes<'_>, pair: u32) {
        let node = nodes.get(pair);
        let (prev, next) = (node.prev(), node.next());
        if next == pair {
            set_next(nodes, prev, prev);
        } else {
            set_next(nodes, prev, next);
            set_prev(nodes, next, prev);
        }
    }

    /// All nodes, most recently freed first.
    pub(crate) fn iter<'a>(&self, nodes: Nodes<'a>) -> Iter<'a> {
        Iter {
            nodes,
            at: self.head,
            first: self.head,
            last: self.top_last,
            folded: false,
        }
    }
}

fn set_prev(nodes: &Nodes<'_>, pair: u32, prev: u32) {
    nodes.set(pair, nodes.get(pair).with_prev(prev));
}

fn set_next(nodes: &Nodes<'_>, pair: u32, next: u32) {
    nodes.set(pair, nodes.get(pair).with_next(next));
}

/// Last node of the (folded) run that starts at `first`.
fn run_last(nodes: &Nodes<'_>, first: u32) -> u32 {
    let node = nodes.get(first);
    let second = node.next();
    if second == first || nodes.get(second).is_populated() != node.is_populated() {
        return first;
    }
    let back = nodes.get(second).prev();
    if back == first { second } else { back }
}

/// First node of the (folded) run that ends at `last`.
fn run_first(nodes: &Nodes<'_>, last: u32) -> u32 {
    let node = nodes.get(last);
    let before = node.prev();
    if before == last || nodes.get(before).is_populated() != node.is_populated() {
        return last;
    }
    let forth = nodes.get(before).next();
    if forth == last { before } else { forth }
}

/// Folds a plain run; runs of one or two nodes stay plain.
fn fold(nodes: &Nodes<'_>, first: u32, last: u32) {
    if first == last {
        return;
    }
    let second = nodes.get(first).next();
    if second == last {
        return;
    }
    let before_last = nodes.get(last).prev();
    set_prev(nodes, second, last);
    set_next(nodes, before_last, first);
}

/// Makes a folded run plain again.
fn unfold(nodes: &Nodes<'_>, first: u32, last: u32) {
    if first == last {
        return;
    }
    let second = nodes.get(first).next();
    if second == last {
        return;
    }
    let before_last = nodes.get(last).prev();
    set_prev(nodes, second, first);
    set_next(nodes, before_last, last);
}

/// Walks a list in order.
#[derive(Clone, Debug)]
pub(crate) struct Iter<'a> {
    nodes: Nodes<'a>,
    at: u32,
    first: u32,
    last: u32,
    folded: bool,
}

impl Iterator for Iter<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.at == NONE {
            return None;
        }
        let at = self.at;
        let next = self.nodes.get(at).next();
        if at == self.last {
            self.at = if next == at { NONE } else { next };
            self.first = next;
            self.last = run_last(&self.nodes, next);
            self.folded = true;
        } else {
            // The last but one node of a folded run points back at the first.
            let wraps = self.folded && next == self.first;
            self.at = if wraps { self.last } else { next };
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests;
