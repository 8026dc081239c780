//! Superpages of a domain, counted from outside: its nested page tables lie in
//! the machine's RAM, which is a file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::host::Host;

/// For Xen to say where the tables are.
const LIMIT: Duration = Duration::from_secs(120);

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

/// That nearly all leaves of 2 MiB are there again.
pub(super) fn ensure_kept(before: u64, after: u64) -> Result<()> {
    ensure!(
        before > 0 && after * 100 >= before * 99,
        "{before} leaves of 2 MiB before, {after} after"
    );
    Ok(())
}

/// The nested page tables of a domain.
#[derive(Debug, Clone)]
pub(super) struct NestedTables {
    /// The machine's RAM.
    memory: PathBuf,
    root: u64,
}

impl NestedTables {
    /// Those of the domain that was created last.
    pub(super) fn find(host: &mut Host) -> Result<Self> {
        host.forget_log();
        host.must("xl debug-keys v", LIMIT)?;
        Ok(Self {
            memory: host.memory()?,
            root: root(&host.log).context("`xl debug-keys v` shows no nested page table")?,
        })
    }

    /// What maps `count` 2 MiB stretches from frame `first` on.
    pub(super) fn count(&self, first: u64, count: u64) -> Result<Leaves> {
        let memory = &self.memory;
        let memory = File::open(memory).with_context(|| format!("opening {}", memory.display()))?;
        let entry = |table: u64, index: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            memory.read_exact_at(&mut bytes, (table & ADDRESS) + (index & 511) * 8)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let mut leaves = Leaves::default();
        for frame in (first..first + count * 512).step_by(512) {
            let mut table = self.root;
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
}

/// Where Xen says the last domain's nested page table begins.
fn root(log: &[String]) -> Option<u64> {
    let mut roots = log.iter().filter_map(|line| {
        let (_, rest) = line.split_once("H_CR3 = 0x")?;
        let digits = rest.split_whitespace().next()?;
        u64::from_str_radix(digits, 16)
            .ok()
            .filter(|&root| root != 0)
    });
    roots.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_leaves_may_be_lost() {
        assert!(ensure_kept(200, 198).is_ok());
        assert!(ensure_kept(200, 197).is_err());
        assert!(ensure_kept(32, 31).is_err());
        assert!(ensure_kept(0, 0).is_err());
    }

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
        let tables = NestedTables {
            memory: path.clone(),
            root: 0,
        };
        let leaves = tables.count(0, 3).unwrap();
        std::fs::remove_file(path).unwrap();
        let expected = Leaves {
            superpages: 1,
            frames: 3,
        };
        assert_eq!(leaves, expected);
    }
}
