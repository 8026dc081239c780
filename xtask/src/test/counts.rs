//! What a reader counts: lines of files, and unsafe with its reasons.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use xshell::cmd;

use crate::exec::Runner;
use crate::workspace::Workspace;

/// Lines of a file, tests at its end not counted.
const LONGEST: usize = 600;
/// Lines of a `lib.rs`: documentation, attributes, modules and re-exports need no more.
const LONGEST_LIB: usize = 150;

/// What one file has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    lines: usize,
    unsafe_sites: usize,
    safety_comments: usize,
}

/// Checks the sizes of files and prints how often each package is unsafe.
pub(super) fn check(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let shell = workspace.shell()?;
    let listed = cmd!(shell, "git ls-files -- *.rs").quiet().read()?;
    let mut too_long = Vec::new();
    let mut folders: std::collections::BTreeMap<PathBuf, Count> = std::collections::BTreeMap::new();
    for file in listed.lines().map(Path::new) {
        // A file that was just removed is still listed.
        let Ok(text) = std::fs::read_to_string(workspace.root().join(file)) else {
            continue;
        };
        let count = count(&text);
        let limit = if file.ends_with("src/lib.rs") {
            LONGEST_LIB
        } else {
            LONGEST
        };
        let is_test = file
            .iter()
            .any(|part| part == "tests" || part == "tests.rs" || part == "benches");
        if count.lines > limit && !is_test {
            too_long.push(format!(
                "{} has {} lines, {limit} are the limit",
                file.display(),
                count.lines
            ));
        }
        let package = file
            .ancestors()
            .find(|folder| workspace.root().join(folder).join("Cargo.toml").is_file());
        let sum = folders
            .entry(package.unwrap_or(Path::new("")).to_path_buf())
            .or_default();
        sum.unsafe_sites += count.unsafe_sites;
        sum.safety_comments += count.safety_comments;
    }
    for (folder, count) in folders.iter().filter(|(_, count)| count.unsafe_sites > 0) {
        let Count {
            unsafe_sites,
            safety_comments,
            ..
        } = count;
        runner.say(&format!(
            "{}: {unsafe_sites} unsafe sites, {safety_comments} SAFETY comments",
            folder.display()
        ))?;
    }
    ensure!(
        too_long.is_empty(),
        "files are too long:\n{}",
        too_long.join("\n")
    );
    let sites: usize = folders.values().map(|count| count.unsafe_sites).sum();
    Ok(format!(
        "{} files, {sites} unsafe sites",
        listed.lines().count()
    ))
}

fn count(text: &str) -> Count {
    let mut count = Count::default();
    let mut in_tests = false;
    for line in text.lines() {
        let line = line.trim();
        in_tests |= line == "#[cfg(test)]" || line.starts_with("#[cfg(all(test");
        count.lines += usize::from(!in_tests);
        if let Some(comment) = line.strip_prefix("//") {
            count.safety_comments += usize::from(
                comment
                    .trim_start_matches(['/', ' '])
                    .starts_with("SAFETY:"),
            );
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        let sites = [
            "unsafe {",
            "unsafe fn",
            "unsafe impl",
            "unsafe trait",
            "unsafe extern",
            "#[unsafe(",
        ];
        count.unsafe_sites += sites
            .iter()
            .map(|site| code.matches(site).count())
            .sum::<usize>();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_and_reasons_are_counted() {
        let text = "// SAFETY: it is ours.\nunsafe { one() };\n// unsafe { no() }\n\
                    unsafe fn two() {}\n#[cfg(test)]\nmod tests {\n    unsafe impl Three for Four {}\n}\n";
        assert_eq!(
            count(text),
            Count {
                lines: 4,
                unsafe_sites: 3,
                safety_comments: 1
            }
        );
    }
}
