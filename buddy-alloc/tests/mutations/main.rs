//! Does a broken line turn the tests red?
//!
//! `list.tsv` names, for each mutation, the test that has to find it, the file and the text that is
//! replaced. The list is checked here against the code; the mutations are made and tested in a copy
//! of the checkout, which takes about a quarter of an hour, by
//!
//! ```text
//! cargo test -p balloon-buddy-alloc --test mutations -- --ignored --nocapture
//! ```
//!
//! `MUTATION=words` makes only those whose description contains the words.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const LIST: &str = include_str!("list.tsv");
/// A mutation that never ends has been found too.
const LIMIT: Duration = Duration::from_secs(240);

struct Mutation {
    what: &'static str,
    test: &'static str,
    file: &'static str,
    from: String,
    to: String,
}

fn mutations() -> impl Iterator<Item = Mutation> {
    LIST.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [what, test, file, from, to] = cells.as_slice() else {
            panic!("not five cells: {line}");
        };
        let text = |cell: &str| cell.replace("\\n", "\n");
        Mutation {
            what,
            test,
            file,
            from: text(from),
            to: text(to),
        }
    })
}

#[test]
fn every_mutation_applies_to_one_place_and_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for Mutation {
        what,
        test,
        file,
        from,
        to,
    } in mutations()
    {
        let known = test == "lib"
            || root.join(format!("tests/{test}.rs")).exists()
            || root.join(format!("tests/{test}/main.rs")).exists();
        assert!(known, "{what}: no test {test}");
        assert_ne!(from, to, "{what}");
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(source.matches(&from).count(), 1, "{what}: {file}: {from}");
    }
}

#[test]
#[ignore = "builds the crate once for each mutation: a command, see above"]
fn every_mutation_turns_its_test_red() {
    let tree = copy();
    let wanted = std::env::var("MUTATION").unwrap_or_default();
    let chosen: Vec<Mutation> = mutations().filter(|m| m.what.contains(&wanted)).collect();
    let mut tests: Vec<&str> = chosen.iter().map(|mutation| mutation.test).collect();
    tests.sort_unstable();
    tests.dedup();
    for test in tests {
        assert!(passes(&tree, test), "{test} fails without any mutation");
    }
    let mut survivors = Vec::new();
    for Mutation {
        what,
        test,
        file,
        from,
        to,
    } in chosen
    {
        let via = tree.join("buddy-alloc").join(file);
        let sound = std::fs::read_to_string(&via).unwrap();
        std::fs::write(&via, sound.replace(&from, &to)).unwrap();
        let started = Instant::now();
        let survives = passes(&tree, test);
        let verdict = if survives { "MISSED" } else { "found " };
        println!(
            "{verdict} {what} ({test}, {} s)",
            started.elapsed().as_secs()
        );
        if survives {
            survivors.push(what);
        }
        std::fs::write(&via, sound).unwrap();
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}

/// Whether a test passes in the copy. Code that does not compile says nothing.
fn passes(tree: &Path, test: &str) -> bool {
    let target = tree.with_file_name(if test == "loom" { "loom" } else { "target" });
    let cargo = |last: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        let kind = if test == "lib" {
            vec!["--lib"]
        } else {
            vec!["--test", test]
        };
        command
            .args([
                "test",
                "--quiet",
                "--offline",
                "--profile",
                "loom",
                "-p",
                "buddy-alloc",
            ])
            .args(kind)
            .args(last)
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_PROFILE_LOOM_DEBUG", "0")
            .env("RUSTFLAGS", if test == "loom" { "--cfg loom" } else { "" })
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let built = cargo(&["--no-run"]).status().unwrap();
    assert!(built.success(), "the mutation does not compile");
    let mut run = cargo(&[]).spawn().unwrap();
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        if let Some(status) = run.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    false
}

/// Copies what git knows of the checkout, as it is now.
fn copy() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations/tree");
    let _ = std::fs::remove_dir_all(&tree);
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .unwrap();
    for file in String::from_utf8(listed.stdout).unwrap().lines() {
        if root.join(file).is_file() {
            let copy = tree.join(file);
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(root.join(file), copy).unwrap();
        }
    }
    tree
}
