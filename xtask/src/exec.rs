//! Running long commands: output into a log, the latest line to the screen, an end to hangs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use xshell::Cmd;

/// How much of a failed command's output is shown; the log has all of it.
const TAIL: usize = 60;

/// Runs commands one after the other, for one purpose.
#[derive(Debug)]
pub(crate) struct Runner {
    log: File,
    path: PathBuf,
    bar: ProgressBar,
    deadline: Instant,
}

impl Runner {
    /// A runner that writes to `path`, reports to `bar` and kills what runs longer than `limit` in all.
    pub(crate) fn new(path: PathBuf, bar: ProgressBar, limit: Duration) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self {
            log,
            path,
            bar,
            deadline: Instant::now() + limit,
        })
    }

    /// The bar it reports to.
    pub(crate) fn bar(&self) -> &ProgressBar {
        &self.bar
    }

    /// Adds a line to the log and shows it.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}")?;
        if crate::ui::is_terminal() {
            self.bar.println(format!("  {line}"));
        } else {
            println!("  {line}");
        }
        Ok(())
    }

    /// Runs `command` to its end and returns all it printed.
    ///
    /// Fails with the last lines of its output if the command fails, and kills it with everything it
    /// started if it outlives the limit.
    pub(crate) fn run(&mut self, command: Cmd<'_>) -> Result<String> {
        let title = command.to_string();
        self.run_command(&title, command.into())
    }

    fn run_command(&mut self, title: &str, mut command: Command) -> Result<String> {
        writeln!(self.log, "$ {title}")?;
        let (reader, writer) = std::io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting `{title}`"))?;
        // The command holds the write ends of the pipe, which would keep the reader waiting.
        drop(command);

        let (lines, received) = channel();
        let reading = std::thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|length| length > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });

        let mut output = String::new();
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match received.recv_timeout(left) {
                Ok(line) => {
                    writeln!(self.log, "{line}")?;
                    self.bar.set_message(line.trim().to_owned());
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    kill_family(&mut child)?;
                    bail!(
                        "`{title}` was stopped: the time limit is used up\n{}",
                        self.tail(&output)
                    );
                }
            }
        }
        let status = child.wait()?;
        // The channel is closed, so the thread is at its end.
        let _ = reading.join();
        if !status.success() {
            bail!("`{title}` failed ({status})\n{}", self.tail(&output));
        }
        Ok(output)
    }

    fn tail(&self, output: &str) -> String {
        let lines: Vec<&str> = output.lines().collect();
        let shown = lines
            .get(lines.len().saturating_sub(TAIL)..)
            .unwrap_or_default();
        format!("{}\n(all of it: {})", shown.join("\n"), self.path.display())
    }
}

/// Kills a child and every process below it: cargo does not take its tests along.
fn kill_family(child: &mut Child) -> Result<()> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut family = vec![i32::try_from(child.id())?];
    let mut next = 0;
    while let Some(&pid) = family.get(next) {
        family.extend(children.get(&pid).into_iter().flatten());
        next += 1;
    }
    for pid in family
        .into_iter()
        .filter_map(rustix::process::Pid::from_raw)
    {
        // Gone already is what we want.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    child.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use xshell::{Shell, cmd};

    use super::*;

    fn runner(name: &str, limit: Duration) -> Runner {
        let path =
            std::env::temp_dir().join(format!("xtask-exec-{}-{name}.log", std::process::id()));
        Runner::new(path, ProgressBar::hidden(), limit).unwrap()
    }

    #[test]
    fn output_of_both_streams_is_kept() {
        let shell = Shell::new().unwrap();
        let mut runner = runner("both", Duration::from_secs(60));
        let output = runner
            .run(cmd!(shell, "sh -c 'echo one; echo two >&2'"))
            .unwrap();
        assert!(output.contains("one\n") && output.contains("two\n"));
        std::fs::remove_file(runner.path).unwrap();
    }

    #[test]
    fn failure_shows_the_output() {
        let shell = Shell::new().unwrap();
        let mut runner = runner("fail", Duration::from_secs(60));
        let error = runner
            .run(cmd!(shell, "sh -c 'echo reason; exit 3'"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("reason") && error.contains("exit status: 3"),
            "{error}"
        );
        std::fs::remove_file(runner.path).unwrap();
    }

    #[test]
    fn a_hang_ends_with_its_whole_family() {
        let shell = Shell::new().unwrap();
        let mut runner = runner("hang", Duration::from_secs(2));
        // The grandchild holds the pipe open: killing the child alone would not end the wait.
        let error = runner
            .run(cmd!(shell, "sh -c 'sleep 600 & echo $!; wait'"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("time limit"), "{error}");
        let grandchild = error.lines().nth(1).unwrap();
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::read_to_string(format!("/proc/{grandchild}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        });
        assert!(gone, "the grandchild is still there");
        std::fs::remove_file(runner.path).unwrap();
    }
}
