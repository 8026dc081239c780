//! The list of mutations stays applicable: each names a test and a text of the engine.

const LIST: &str = include_str!("mutations.tsv");

#[test]
fn every_mutation_still_applies_to_one_place_and_names_a_test() {
    let tests = [
        include_str!("xsa.rs"),
        include_str!("fixes.rs"),
        include_str!("weaknesses.rs"),
        include_str!("operations.rs"),
        include_str!("../hostile.rs"),
        include_str!("../failures.rs"),
    ]
    .concat();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for line in LIST.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let [test, file, guard, from, to] = cells.as_slice() else {
            panic!("not five cells: {line}");
        };
        assert!(tests.contains(&format!("fn {test}()")), "no test {test}");
        assert!(["alone", "both"].contains(guard), "{line}");
        assert_ne!(from, to);
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        let from = from.replace("\\n", "\n");
        assert_eq!(source.matches(&from).count(), 1, "{test}: {file}: {from}");
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
