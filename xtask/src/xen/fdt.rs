//! Adds a domain to a flattened device tree: Xen starts what it finds there by
//! itself, without a first domain.
//!
//! Layout: Devicetree Specification, chapter 5; the node: Xen's
//! `docs/misc/arm/device-tree/booting.txt`.

use anyhow::{Context as _, Result, ensure};

const MAGIC: u32 = 0xd00d_feed;
const HEADER: usize = 40;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// A domain of one CPU, and the image that lies in the machine's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Domain {
    pub(super) memory_mib: u32,
    pub(super) image: (u32, u32),
}

/// The tree with the domain below its `/chosen`.
pub(super) fn with_domain(tree: &[u8], domain: Domain) -> Result<Vec<u8>> {
    ensure!(word(tree, 0)? == MAGIC, "this is no device tree");
    let part = |offset, size| -> Result<&[u8]> {
        let (from, length) = (word(tree, offset)? as usize, word(tree, size)? as usize);
        tree.get(from..from + length)
            .context("the device tree is cut off")
    };
    let (structure, strings) = (part(8, 36)?, part(12, 32)?);
    let reserved_at = word(tree, 16)? as usize;
    let reserved_end = (reserved_at..tree.len())
        .step_by(16)
        .find(|&at| tree.get(at..at + 16).is_none_or(|entry| entry == [0; 16]))
        .context("the reserved memory has no end")?
        + 16;
    let reserved = tree.get(reserved_at..reserved_end).unwrap_or_default();

    let mut strings = strings.to_vec();
    let node = domain_node(domain, &mut strings);
    let at = end_of_chosen(structure)?;
    let (head, tail) = structure.split_at(at);
    let structure = [head, &node, tail].concat();

    let mut out = vec![0; HEADER];
    out.extend(reserved);
    let structure_at = out.len();
    out.extend(&structure);
    let strings_at = out.len();
    out.extend(&strings);
    let version = [word(tree, 20)?, word(tree, 24)?, word(tree, 28)?];
    let header = [
        MAGIC,
        u32::try_from(out.len())?,
        u32::try_from(structure_at)?,
        u32::try_from(strings_at)?,
        u32::try_from(HEADER)?,
        version[0],
        version[1],
        version[2],
        u32::try_from(strings.len())?,
        u32::try_from(structure.len())?,
    ];
    for (place, word) in out.chunks_exact_mut(4).zip(header) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    Ok(out)
}

/// Where the node `/chosen` ends.
fn end_of_chosen(structure: &[u8]) -> Result<usize> {
    let (mut at, mut depth, mut inside) = (0, 0, false);
    loop {
        let token = word(structure, at)?;
        match token {
            BEGIN_NODE => {
                let name = structure.get(at + 4..).unwrap_or_default();
                let length = name.iter().position(|&byte| byte == 0);
                let length = length.context("a node's name has no end")?;
                depth += 1;
                inside |= depth == 2 && name.get(..length) == Some(b"chosen");
                at += 4 + (length + 1).next_multiple_of(4);
            }
            END_NODE => {
                if inside && depth == 2 {
                    return Ok(at);
                }
                depth -= 1;
                at += 4;
            }
            PROPERTY => at += 12 + (word(structure, at + 4)? as usize).next_multiple_of(4),
            NOP => at += 4,
            other => anyhow::bail!("the device tree has no /chosen, or a token {other}"),
        }
    }
}

fn domain_node(domain: Domain, strings: &mut Vec<u8>) -> Vec<u8> {
    let mut node = Node {
        tokens: Vec::new(),
        strings,
    };
    let (address, bytes) = domain.image;
    node.begin("domU1");
    node.property("compatible", b"xen,domain\0");
    node.cells("#address-cells", &[1]);
    node.cells("#size-cells", &[1]);
    node.cells("cpus", &[1]);
    node.cells("memory", &[0, domain.memory_mib * 1024]);
    node.property("vpl011", b"");
    node.begin(&format!("module@{address:x}"));
    node.property("compatible", b"multiboot,kernel\0multiboot,module\0");
    node.cells("reg", &[address, bytes]);
    node.end();
    node.end();
    node.tokens
}

/// A node that is written.
struct Node<'a> {
    tokens: Vec<u8>,
    strings: &'a mut Vec<u8>,
}

impl Node<'_> {
    fn word(&mut self, word: u32) {
        self.tokens.extend(word.to_be_bytes());
    }

    fn pad(&mut self) {
        self.tokens.resize(self.tokens.len().next_multiple_of(4), 0);
    }

    fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.tokens.extend(name.bytes().chain([0]));
        self.pad();
    }

    fn end(&mut self) {
        self.word(END_NODE);
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        // Trees are far below 4 GiB.
        let [length, at] =
            [value.len(), self.strings.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        self.strings.extend(name.bytes().chain([0]));
        for word in [PROPERTY, length, at] {
            self.word(word);
        }
        self.tokens.extend(value);
        self.pad();
    }

    fn cells(&mut self, name: &str, cells: &[u32]) {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.property(name, &value);
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes
        .get(at..at + 4)
        .context("the device tree is cut off")?;
    Ok(u32::from_be_bytes(word.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/ { a; chosen { b; c { }; }; d { }; };`
    fn tree() -> Vec<u8> {
        let mut strings = Vec::new();
        let mut node = Node {
            tokens: Vec::new(),
            strings: &mut strings,
        };
        node.begin("");
        node.property("a", b"xyz\0q");
        node.begin("chosen");
        node.cells("b", &[1, 2]);
        node.begin("c");
        node.end();
        node.end();
        node.begin("d");
        node.end();
        node.end();
        let mut structure = node.tokens;
        structure.extend(9u32.to_be_bytes());
        let at = HEADER + 16;
        let header = [
            MAGIC as usize,
            0,
            at,
            at + structure.len(),
            HEADER,
            17,
            16,
            0,
            strings.len(),
            structure.len(),
        ];
        let words = header.map(|word| u32::try_from(word).unwrap());
        let mut out: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        out.extend([0; 16]);
        out.extend(structure);
        out.extend(strings);
        out
    }

    #[test]
    fn the_domain_lies_in_chosen() {
        let domain = Domain {
            memory_mib: 64,
            image: (0x4900_0000, 0x1000),
        };
        let before = tree();
        let after = with_domain(&before, domain).unwrap();
        let from = word(&after, 8).unwrap() as usize;
        let structure = &after[from..from + word(&after, 36).unwrap() as usize];
        let place = |name: &[u8]| {
            structure
                .windows(name.len())
                .position(|window| window == name)
                .unwrap()
        };
        assert!(place(b"c\0\0\0") < place(b"domU1\0"));
        assert!(place(b"domU1\0") < place(b"module@49000000\0"));
        assert!(place(b"module@49000000\0") < place(b"d\0\0\0"));
        assert_eq!(word(&after, 4).unwrap() as usize, after.len());
        // Walked to its end, the node is whole.
        let end = end_of_chosen(structure).unwrap();
        assert_eq!(word(structure, end).unwrap(), END_NODE);
        assert!(end > place(b"module@49000000\0"));
        assert!(with_domain(&before[..100], domain).is_err());
        assert!(with_domain(&[0; 64], domain).is_err());
    }
}
