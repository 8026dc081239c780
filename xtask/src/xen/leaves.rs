//! Superpages of a domain, counted from outside: its nested page tables lie in
//! the machine's RAM, which is a file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 0x80;

/// What maps the frames of a stretch of memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaves {
    /// Of 2 MiB.
    pub(super) superpages: u64,
    /// Of 4 KiB.
    pub(super) frames: u64,
}

impl Leaves {
    /// The memory they map.
    pub(super) const fn mib(self) -> u64 {
        self.superpages * 2 + self.frames / 256
    }
}

/// Walks the nested tables below `root` for `count` 2 MiB stretches from frame
/// `first`.
pub(super) fn count(memory: &Path, root: u64, first: u64, count: u64) -> Result<Leaves> {
    let memory = File::open(memory).with_context(|| format!("opening {}", memory.display()))?;
    let entry = |table: u64, index: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, (table & ADDRESS) + (index & 511) * 8)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let mut leaves = Leaves::default();
    for frame in (first..first + count * 512).step_by(512) {
        let mut table = root;
        let mut found = 0;
        for shift in [27, 18, 9] {
            found = entry(table, frame >> shift)?;
            if found & PRESENT == 0 || found & LARGE != 0 {
                break;
            }
            table = found;
        }
        if found & PRESENT == 0 {
            continue;
        }
        if found & LARGE != 0 {
            leaves.superpages += 1;
            continue;
        }
        for index in 0..512 {
            leaves.frames += entry(found, index)? & PRESENT;
        }
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_walked() {
        // Root, level 3, level 2, one 4 KiB table; frames 0 to 1023.
        let mut ram = vec![0u8; 5 * 4096];
        let mut put = |table: usize, index: usize, value: u64| {
            let at = table * 4096 + index * 8;
            ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0, 0, 0x1000 | PRESENT);
        put(1, 0, 0x2000 | PRESENT);
        put(2, 0, 0x20_0000 | PRESENT | LARGE);
        put(2, 1, 0x3000 | PRESENT);
        for index in [0, 7, 511] {
            put(3, index, 0x40_0000 | PRESENT);
        }
        let path = std::env::temp_dir().join(format!("xtask-leaves-{}", std::process::id()));
        std::fs::write(&path, ram).unwrap();
        let leaves = count(&path, 0, 0, 3).unwrap();
        std::fs::remove_file(&path).unwrap();
        let expected = Leaves {
            superpages: 1,
            frames: 3,
        };
        assert_eq!(leaves, expected);
    }
}
