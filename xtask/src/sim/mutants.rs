//! Planted bugs: does the simulator find what it is there for?
//!
//! Each mutant is one line changed in a copy of the checkout. The simulator must
//! end with a finding; one that passes over a bug is a defect of the simulator.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::exec::Runner;
use crate::ui;
use crate::workspace::Workspace;

/// One line, broken.
#[derive(Debug)]
struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "frames in flight are not counted",
        file: "balloon-core/src/engine/mod.rs",
        from: ".saturating_add(self.inflating.frames())",
        to: "",
    },
    Mutant {
        name: "a refused request loses its frames",
        file: "balloon-core/src/engine/settle.rs",
        from: "(Kind::Inflate, false) => source.put(range, Backing::Unknown),",
        to: "(Kind::Inflate, false) => Ok(()),",
    },
    Mutant {
        name: "a partial answer is taken for a whole one",
        file: "balloon-core/src/slots.rs",
        from: "Self::Partial(done) | Self::Torn(done) if done.get() < asked.get() => done,",
        to: "Self::Partial(done) | Self::Torn(done) if done.get() > asked.get() => done,",
    },
    Mutant {
        name: "frames told by number return without a word",
        file: "balloon-core/src/engine/deflate.rs",
        from: "let told = via == Via::Inflate && !self.mode.is_resetting();",
        to: "let told = false;",
    },
    Mutant {
        name: "a frame used early is given again at once",
        file: "balloon-core/src/engine/inflate.rs",
        from: "self.deflating.has_early()",
        to: "false",
    },
    Mutant {
        name: "the ledger forgets the give path",
        file: "buddy-alloc/src/balloon.rs",
        from: "core_::Via::Inflate => Via::Inflate,",
        to: "core_::Via::Inflate => Via::Bulk,",
    },
    Mutant {
        name: "a slot is free while its request is in flight",
        file: "balloon-core/src/slots.rs",
        from: "place.word.store(IN_FLIGHT, release);",
        to: "place.word.store(FREE, release);",
    },
    Mutant {
        name: "after a reset requests in flight stay in flight",
        file: "balloon-core/src/engine/lifecycle.rs",
        from: "self.inflating.revoke_all(FrameCount::ZERO);",
        to: "",
    },
    Mutant {
        name: "the allocator hands out a frame that is in the balloon",
        file: "buddy-alloc/src/zone/balloon.rs",
        from: "self.hold_free(range, Kind::Taken)",
        to: "Ok::<(), AtError>(())",
    },
    Mutant {
        name: "two kinds share their slots: a hint waits for an inflation",
        file: "balloon-core/src/slots.rs",
        from: "Self::Hint => 2,",
        to: "Self::Hint => 0,",
    },
    Mutant {
        name: "a kick that failed is not made again",
        file: "balloon-core/src/engine/host.rs",
        from: "self.unseen |= kicked.is_err();",
        to: "",
    },
    Mutant {
        name: "a host that was told nothing counts as told",
        file: "balloon-core/src/engine/host.rs",
        from: "if self.note(written, io.now).is_some() {",
        to: "if self.note(written, io.now).is_some() || true {",
    },
    Mutant {
        name: "a unit that could not be announced is forgotten",
        file: "balloon-core/src/engine/unit.rs",
        from: "self.unit.untold = self.note(told, io.now).is_none();",
        to: "self.unit.untold = self.note(told, io.now).is_some() && false;",
    },
    Mutant {
        name: "a dead host is asked again",
        file: "balloon-core/src/engine/host.rs",
        from: "if let Some(reason) = error.end() {",
        to: "if let Some(reason) = error.end().filter(|_| false) {",
    },
    Mutant {
        name: "a device that comes back is thought to remember the balloon",
        file: "balloon-core/src/engine/lifecycle.rs",
        from: "self.mode.resetting = true;",
        to: "",
    },
    Mutant {
        name: "a dead host's half of a migration is waited for",
        file: "balloon-core/src/compact/mod.rs",
        from: "                    batch.void();",
        to: "",
    },
    Mutant {
        name: "what freezes for a suspend goes on giving",
        file: "balloon-core/src/engine/mod.rs",
        from: "if self.mode.is_quiesced() || failed || self.host.is_waiting(io.now) {",
        to: "if failed || self.host.is_waiting(io.now) {",
    },
    Mutant {
        name: "a balloon counts as drained with requests in flight",
        file: "balloon-core/src/engine/lifecycle.rs",
        from: "self.in_flight() + settling == 0",
        to: "self.inflating.in_flight() + settling == 0",
    },
    Mutant {
        name: "migrations take what is set aside",
        file: "balloon-core/src/compact/mod.rs",
        from: "Some(free) => free.saturating_sub(min_free),",
        to: "Some(free) => free,",
    },
    Mutant {
        name: "nobody wakes the engine once the old balloon is forgotten",
        file: "balloon-core/src/engine/lifecycle.rs",
        from: "may start.\n            self.wake();",
        to: "may start.",
    },
    Mutant {
        name: "the allocator frees what is being reported",
        file: "buddy-alloc/src/zone/report.rs",
        from: "self.mark_range(start, stop, Kind::Isolated);",
        to: "",
    },
    Mutant {
        name: "relief says so to nobody who steps",
        file: "balloon-core/src/engine/relief.rs",
        from: "        if step_soon {\n            self.wake();",
        to: "        if false {\n            self.wake();",
    },
    Mutant {
        name: "answers that are taken up use up the wish for an interrupt",
        file: "transport-virtio/src/balloon.rs",
        from: "let wishes = most < before && left > 0;",
        to: "let wishes = false;",
    },
    Mutant {
        name: "a silent host is not told once more",
        file: "balloon-core/src/engine/host.rs",
        from: "            self.unseen = true;\n            // Whoever",
        to: "            // Whoever",
    },
    Mutant {
        name: "a silent device is not told once more of a service's requests",
        file: "transport-virtio/src/balloon.rs",
        from: "            self.queues.notify(queue);\n            signal.config_changed();",
        to: "            signal.config_changed();",
    },
    Mutant {
        name: "a range across the border of two zones goes to the first",
        file: "buddy-alloc/src/zones.rs",
        from: "if zone.span().covers(range) {",
        to: "if zone.span().contains(range.start()) {",
    },
];

/// Seeds each mutant is given to show itself.
const SEEDS: &str = "400";

/// In the tests, one of so many: a build each is more than a stage has time for.
const SAMPLE: usize = 4;

/// Plants all of them.
pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let bar = ui::bar("planted bugs", MUTANTS.len() as u64);
    let found = plant(workspace, MUTANTS.iter(), |line| {
        bar.suspend(|| println!("{line}"));
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    println!("all {} planted bugs were found", found?);
    Ok(())
}

/// Plants some, so that what is said of all does not rot; how many.
pub(super) fn sample(workspace: &Workspace, runner: &mut Runner) -> Result<usize> {
    let some = MUTANTS.iter().step_by(SAMPLE);
    plant(workspace, some, |line| runner.say(line))
}

/// Plants one bug after the other, each in sound code; how many were found.
fn plant<'a>(
    workspace: &Workspace,
    mutants: impl Iterator<Item = &'a Mutant>,
    mut say: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let tree = workspace.output("mutants")?;
    let shell = workspace.shell()?;
    copy(&shell, workspace.root(), &tree)?;
    shell.change_dir(&tree);
    shell.set_var("CARGO_TARGET_DIR", workspace.output("mutants-target")?);
    // Built many times, run for seconds.
    shell.set_var("CARGO_INCREMENTAL", "1");
    shell.set_var("CARGO_PROFILE_RELEASE_DEBUG", "0");
    build(&shell)?;
    if let Some(finding) = simulate(&shell)? {
        bail!("the unbroken code fails, nothing can be said of mutants: {finding}");
    }
    let mut found = 0;
    let mut survivors = Vec::new();
    for mutant in mutants {
        let path = tree.join(mutant.file);
        let sound = std::fs::read_to_string(&path)?;
        ensure!(
            sound.matches(mutant.from).count() == 1,
            "`{}` stands {} times in {}: bring the list of mutants up to date",
            mutant.from,
            sound.matches(mutant.from).count(),
            mutant.file
        );
        std::fs::write(&path, sound.replace(mutant.from, mutant.to))?;
        build(&shell).with_context(|| format!("`{}` does not even compile", mutant.name))?;
        let finding = simulate(&shell)?;
        std::fs::write(&path, sound)?;
        if let Some(finding) = finding {
            found += 1;
            say(&format!("found   {}\n        {finding}", mutant.name))?;
        } else {
            survivors.push(mutant.name);
            say(&format!("MISSED  {}", mutant.name))?;
        }
    }
    ensure!(survivors.is_empty(), "not found: {}", survivors.join(", "));
    Ok(found)
}

fn build(shell: &Shell) -> Result<()> {
    cmd!(shell, "cargo build --quiet --release --package simulator")
        .ignore_stderr()
        .quiet()
        .run()?;
    Ok(())
}

/// What the simulator finds, with the seed it finds it by.
fn simulate(shell: &Shell) -> Result<Option<String>> {
    let output = cmd!(
        shell,
        "cargo run --quiet --release --package simulator -- --seeds {SEEDS}"
    )
    .ignore_status()
    .quiet()
    .output()?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let finding = said.lines().find(|line| line.contains("with seed"));
    let finding = finding.context("the simulator failed and named no seed")?;
    // The end is the state of everything.
    Ok(Some(finding.chars().take(120).collect()))
}

/// Copies what git knows, as it is now.
fn copy(shell: &Shell, from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    let files = cmd!(shell, "git ls-files --cached --others --exclude-standard")
        .quiet()
        .read()?;
    for file in files.lines() {
        let source = from.join(file);
        if !source.is_file() {
            continue;
        }
        let copy = to.join(file);
        if let Some(folder) = copy.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(&source, &copy).with_context(|| format!("copying {}", source.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_the_code_as_it_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for mutant in MUTANTS {
            let code = std::fs::read_to_string(root.join(mutant.file)).unwrap();
            assert_eq!(code.matches(mutant.from).count(), 1, "{}", mutant.name);
            assert!(!mutant.to.contains(mutant.from), "{}", mutant.name);
        }
    }
}
