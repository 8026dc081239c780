//! Archives of the kind Linux unpacks into its first file system.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An archive of the `newc` kind.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a file, and the folders on the way to it.
    pub(crate) fn file(&mut self, path: &str, executable: bool, content: &[u8]) {
        self.folders_of(Path::new(path));
        let mode = if executable { 0o100_755 } else { 0o100_644 };
        self.entry(path, mode, content);
    }

    /// Adds a folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.folders_of(Path::new(path).join("x").as_path());
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.folders_of(Path::new(path));
        self.entry(path, 0o120_777, to.as_bytes());
    }

    /// The archive, ended.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn folders_of(&mut self, path: &Path) {
        let parents: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
            .map(Path::to_path_buf)
            .collect();
        for folder in parents.into_iter().rev() {
            if self.folders.insert(folder.clone()) {
                self.entry(&folder.to_string_lossy(), 0o040_755, b"");
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let header = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0,
            0,
            0,
            0,
            u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend(b"070701");
        for number in header {
            self.bytes.extend(format!("{number:08X}").into_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_padded_and_folders_come_first() {
        let mut archive = Archive::default();
        archive.file("a/b/file", false, b"12345");
        archive.file("a/b/other", true, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/file\0"));
        assert_eq!(text.matches("a/b\0").count(), 1);
        assert!(text.ends_with("TRAILER!!!\0\0\0\0") || text.contains("TRAILER!!!"));
    }
}
