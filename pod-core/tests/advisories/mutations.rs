//! The list of mutations: each names a test and a text of the engine, and turns the test red.

use std::path::Path;
use std::process::{Command, Stdio};

const LIST: &str = include_str!("mutations.tsv");

/// The files with tests the list may name, and their binaries.
const TESTS: [(&str, &str); 10] = [
    ("advisories", include_str!("xsa.rs")),
    ("advisories", include_str!("fixes.rs")),
    ("advisories", include_str!("weaknesses.rs")),
    ("advisories", include_str!("operations.rs")),
    ("advisories", include_str!("superpages.rs")),
    ("hostile", include_str!("../hostile.rs")),
    ("exhausted", include_str!("../exhausted.rs")),
    ("misuse", include_str!("../misuse.rs")),
    ("failures", include_str!("../failures.rs")),
    ("bounded", include_str!("../bounded.rs")),
];

struct Mutation {
    test: &'static str,
    binary: &'static str,
    file: &'static str,
    /// The lesson is guarded twice: the test fails when all such mutations are made.
    both: bool,
    from: String,
    to: String,
}

fn list() -> Vec<Mutation> {
    let parse = |line: &'static str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [test, file, guard, from, to] = *cells.as_slice() else {
            panic!("not five cells: {line}");
        };
        assert!(["alone", "both"].contains(&guard), "{line}");
        assert_ne!(from, to);
        let holds = |(_, text): &&(&str, &str)| text.contains(&format!("fn {test}()"));
        let (binary, _) = TESTS
            .iter()
            .find(holds)
            .unwrap_or_else(|| panic!("no test {test}"));
        Mutation {
            test,
            binary,
            file,
            both: guard == "both",
            from: from.replace("\\n", "\n"),
            to: to.replace("\\n", "\n"),
        }
    };
    LIST.lines().skip(1).map(parse).collect()
}

#[test]
fn every_mutation_still_applies_to_one_place_and_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for m in list() {
        let source = std::fs::read_to_string(root.join(m.file)).unwrap();
        let found = source.matches(&m.from).count();
        assert_eq!(found, 1, "{}: {}: {}", m.test, m.file, m.from);
    }
}

#[test]
fn every_lesson_has_a_mutation() {
    let lessons = [
        include_str!("xsa.rs"),
        include_str!("fixes.rs"),
        include_str!("weaknesses.rs"),
    ];
    for line in lessons.iter().flat_map(|text| text.lines()) {
        if let Some(name) = line.strip_prefix("fn ").and_then(|l| l.split('(').next()) {
            assert!(
                LIST.contains(&format!("{name}\t")),
                "{name} has no mutation"
            );
        }
    }
}

/// Makes each mutation in a copy of the workspace and runs its test there:
/// `cargo test -p pod-core --test advisories -- --ignored --nocapture turns_its_test_red`, or with
/// `POD_MUTATION` set only those whose test's name contains it.
#[test]
#[ignore = "compiles the engine for each mutation: a quarter of an hour"]
fn every_mutation_turns_its_test_red() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    let _ = std::fs::remove_dir_all(copy.join("pod-core"));
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(workspace).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name != "target" && name != ".git" {
            let copied = Command::new("cp")
                .arg("-rLu")
                .arg(entry.path())
                .arg(&copy)
                .status();
            assert!(copied.unwrap().success());
        }
    }
    let cargo = |arguments: &[&str]| {
        let run = Command::new("timeout")
            .args([
                "150",
                env!("CARGO"),
                "test",
                "-q",
                "-p",
                "pod-core",
                "--all-features",
            ])
            .args(arguments)
            .current_dir(&copy)
            .env("CARGO_TARGET_DIR", copy.join("target"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        run.unwrap().success()
    };
    let only = std::env::var("POD_MUTATION").unwrap_or_default();
    let mut all = list();
    all.retain(|m| m.test.contains(&only));
    let mut green = Vec::new();
    for (i, m) in all.iter().enumerate() {
        let mut together = vec![m];
        if m.both {
            let same = |o: &&Mutation| o.both && o.test == m.test;
            together = all.iter().filter(same).collect();
            if !core::ptr::eq(together[0], m) {
                continue;
            }
        }
        let originals: Vec<_> = together
            .iter()
            .map(|m| {
                let path = copy.join("pod-core").join(m.file);
                let source = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, source.replace(&m.from, &m.to)).unwrap();
                (path, source)
            })
            .collect();
        let target = ["--test", m.binary];
        assert!(
            cargo(&[&target[..], &["--no-run"]].concat()),
            "{} does not compile",
            m.file
        );
        let red = !cargo(&[&target[..], &[m.test]].concat());
        println!(
            "{}/{} {} {}",
            i + 1,
            all.len(),
            if red { "red" } else { "GREEN" },
            m.test
        );
        if !red {
            green.push(format!("{}: {}", m.test, m.from));
        }
        for (path, source) in originals.iter().rev() {
            std::fs::write(path, source).unwrap();
        }
    }
    assert!(green.is_empty(), "not noticed: {green:#?}");
}
