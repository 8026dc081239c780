//! The guest's text console: lines captured to a file, events picked out, commands sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How many lines a failure shows.
const TAIL: usize = 20;
/// A guest answers as soon as it has done the work it has begun.
const ANSWER: Duration = Duration::from_secs(60);

/// One `@` line of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    name: String,
    text: String,
}

impl Event {
    /// Reads a line of the console; `None` for one that is meant for people.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix('@')?;
        let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self {
            name: name.to_owned(),
            text: text.to_owned(),
        })
    }

    /// What stands behind the name.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What stands behind `key=`.
    pub(crate) fn word(&self, key: &str) -> Result<&str> {
        let value = self
            .text
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.with_context(|| format!("`@{} {}` has no `{key}=`", self.name, self.text))
    }

    /// The number in `key=<n>`.
    pub(crate) fn number(&self, key: &str) -> Result<u64> {
        let value = self.word(key)?;
        value
            .parse()
            .with_context(|| format!("`{key}={value}` in `@{}` is not a number", self.name))
    }
}

/// The console of a running guest.
#[derive(Debug)]
pub(crate) struct Console {
    stream: UnixStream,
    lines: Receiver<String>,
    waiting: VecDeque<Event>,
    recent: VecDeque<String>,
    intact: u64,
    damaged: bool,
}

impl Console {
    /// Reads `stream` to its end in a thread, and copies it to `capture`.
    pub(crate) fn open(stream: UnixStream, capture: &Path) -> Result<Self> {
        let reading = stream.try_clone()?;
        let mut file =
            File::create(capture).with_context(|| format!("creating {}", capture.display()))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(reading);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|length| length > 0)
            {
                // A full disk must not stop the run: the lines still reach their reader.
                let _ = file.write_all(&line);
                if sender
                    .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                    .is_err()
                {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self {
            stream,
            lines,
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            intact: 0,
            damaged: false,
        })
    }

    /// Sends one line to the guest.
    pub(crate) fn send(&mut self, command: &str) -> Result<()> {
        writeln!(self.stream, "{command}")
            .with_context(|| format!("sending `{command}` to the guest"))
    }

    /// Asks the guest for what it answers to this command with an event of the same name.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Event> {
        self.drain()?;
        self.send(command)?;
        self.wait(command, ANSWER)
    }

    /// Waits for the next event called `name`; events of other names before it are dropped.
    ///
    /// Bad news ends the wait at once: a panic, lost frames, a console that closes.
    pub(crate) fn wait(&mut self, name: &str, limit: Duration) -> Result<Event> {
        self.wait_until(name, limit, |_| true)
    }

    /// Like [`wait`](Self::wait), for the first such event that `fits`.
    pub(crate) fn wait_until(
        &mut self,
        name: &str,
        limit: Duration,
        fits: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.waiting.pop_front() {
                self.check(&event)?;
                if event.name == name && fits(&event) {
                    return Ok(event);
                }
            }
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.take(line),
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "no `@{name}` from the guest within {} s\n{}",
                        limit.as_secs(),
                        self.tail()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest is gone before `@{name}`\n{}", self.tail());
                }
            }
        }
    }

    /// Fails if the guest has said anything bad so far; events stay for [`wait`](Self::wait).
    pub(crate) fn check_all(&mut self) -> Result<()> {
        while let Ok(line) = self.lines.try_recv() {
            self.take(line);
        }
        self.waiting.iter().try_for_each(|event| self.check(event))
    }

    /// Forgets events that were not waited for, so that the next wait sees new ones only.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.check_all()?;
        self.waiting.clear();
        Ok(())
    }

    /// Whether the guest has checked its data at least `times`, and found it whole each time.
    pub(crate) fn data_ok(&self, times: u64) -> bool {
        self.intact >= times && !self.damaged
    }

    /// The last lines the guest wrote.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<String> = self
            .recent
            .iter()
            .map(|line| format!("  guest: {line}"))
            .collect();
        lines.join("\n")
    }

    fn take(&mut self, line: String) {
        if let Some(event) = Event::parse(&line) {
            if event.name == "verify" {
                // A check of nothing proves nothing.
                let intact = event.text.starts_with("ok")
                    && event.number("frames").is_ok_and(|frames| frames > 0);
                self.intact += u64::from(intact);
                self.damaged |= !intact;
            }
            self.waiting.push_back(event);
        }
        self.recent.push_back(line);
        if self.recent.len() > TAIL {
            self.recent.pop_front();
        }
    }

    fn check(&self, event: &Event) -> Result<()> {
        let bad = match event.name.as_str() {
            "panic" => "the guest panicked",
            "lost" => "the guest lost frames",
            _ => return Ok(()),
        };
        bail!("{bad}: {}\n{}", event.text, self.tail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn console(name: &str, text: &str) -> Console {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(text.as_bytes()).unwrap();
        drop(theirs);
        let capture =
            std::env::temp_dir().join(format!("xtask-console-{}-{name}", std::process::id()));
        let console = Console::open(ours, &capture).unwrap();
        std::fs::remove_file(capture).unwrap();
        console
    }

    #[test]
    fn numbers_are_found_by_key() {
        let event = Event::parse("@stats wakeups=3 free=12 lost=0\r").unwrap();
        assert_eq!(event.number("free").unwrap(), 12);
        assert_eq!(event.number("lost").unwrap(), 0);
        assert!(event.number("wake").is_err());
        assert_eq!(Event::parse("booting..."), None);
    }

    #[test]
    fn other_lines_are_passed_over() {
        let mut console = console(
            "other",
            "hello\n@ready ram=1\n@balloon actual=5 target=9\n@balloon actual=9 target=9\n",
        );
        let event = console
            .wait_until("balloon", SOON, |event| {
                event.number("actual").unwrap() == 9
            })
            .unwrap();
        assert_eq!(event.text(), "actual=9 target=9");
        assert!(
            console
                .wait("balloon", SOON)
                .unwrap_err()
                .to_string()
                .contains("gone")
        );
    }

    #[test]
    fn bad_news_ends_a_wait() {
        for line in ["@panic at src/main.rs:1", "@lost frames=1"] {
            let mut console = console("bad", &format!("{line}\n@ready ram=1\n"));
            assert!(
                console.wait("ready", SOON).is_err(),
                "{line} went unnoticed"
            );
        }
    }

    #[test]
    fn old_events_are_forgotten() {
        let mut console = console(
            "old",
            "@verify ok frames=1\n@ready ram=1\n@verify ok frames=2\n",
        );
        console.wait("ready", SOON).unwrap();
        assert_eq!(console.wait("verify", SOON).unwrap().text(), "ok frames=2");
    }

    #[test]
    fn damage_is_remembered_and_nothing_proves_nothing() {
        for (text, times, ok) in [
            ("@verify ok frames=1\n@verify ok frames=1\n", 2, true),
            ("@verify ok frames=1\n", 2, false),
            ("@verify ok frames=0\n@verify ok frames=1\n", 1, false),
            ("@verify FAIL frame=7\n@verify ok frames=1\n", 1, false),
        ] {
            let mut console = console("damage", &format!("{text}@ready ram=1\n"));
            console.wait("ready", SOON).unwrap();
            assert_eq!(console.data_ok(times), ok, "{text}");
        }
    }
}
