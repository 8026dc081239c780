//! Xen with its first domain, on QEMU's software CPU, driven over its console.
//!
//! Commands go to the shell of the first domain as `LENGTH NUMBER COMMAND`; its answer
//! ends with `@@done NUMBER CODE`. Either may get lost on the way, so a command is sent
//! again until it is answered, and the shell runs no number twice. What guests say comes
//! in between, each line with its name.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::packages::Lab;
use crate::setup::Qemu;

/// Linux without what costs seconds of emulation.
const LINUX: &str = "console=hvc0 quiet loglevel=1 tsc=reliable apparmor=0 ima=off audit=0 \
                     cryptomgr.notests mitigations=off nokaslr random.trust_cpu=on \
                     8250.nr_uarts=0 edd=off noresume no_timer_check";
const XEN: &str = "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all noreboot bootscrub=0 \
                   no-real-mode edid=no edd=off spec-ctrl=no cpuidle=0";
/// QEMU's name of the machine's memory.
const MEMORY: &str = "ram";
/// Bytes of a command's line: Xen's buffer for its console's input has 128.
const LINE: usize = 126;
/// A command without an answer is sent again after so long.
const AGAIN: Duration = Duration::from_secs(5);
/// What Xen's own lines begin with.
const XENS: &str = "(XEN)";
/// Lines a failure shows.
const TAIL: usize = 40;
/// From the start to the first prompt; it takes 5 s alone on a machine.
const BOOT: Duration = Duration::from_secs(300);

/// How large the machine is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) machine_mib: u32,
    pub(super) dom0_mib: u32,
}

/// A booted Xen.
#[derive(Debug)]
pub(super) struct Host {
    child: Child,
    input: ChildStdin,
    lines: Receiver<(Instant, String)>,
    guests: BTreeMap<String, VecDeque<(Instant, String)>>,
    /// Lines of Xen itself and of guests' early output.
    pub(super) log: Vec<String>,
    recent: VecDeque<String>,
    aimed: Option<Instant>,
    /// Commands so far.
    commands: u32,
    /// The beginning of a line that Xen's own words have cut in two.
    cut: String,
}

/// What a command of the first domain said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: i32,
    pub(super) lines: Vec<String>,
}

impl Answer {
    /// The lines as one text.
    pub(super) fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// The CPU to emulate: of 7.2 without what it gets wrong.
fn cpu(qemu: &Qemu) -> &'static str {
    if qemu.is_oldest() {
        "max,-smap,-avx,-avx2,-xsave"
    } else {
        "max"
    }
}

/// The name of the first domain among the guests, where it is one of ours.
pub(super) const FIRST: &str = "dom0";

/// QEMU with Xen as its kernel.
fn machine(qemu: &Qemu, lab: &Lab, size: Size) -> Command {
    let mut command = qemu.command();
    // Memory that can be read from outside, and is nowhere on a disk: guests that
    // write to theirs are not to wait for one.
    command.arg("-object").arg(format!(
        "memory-backend-memfd,id={MEMORY},size={}M,share=on",
        size.machine_mib
    ));
    let machine = format!("pc,usb=off,memory-backend={MEMORY}");
    command.args(["-machine", &machine, "-accel", "tcg", "-cpu", cpu(qemu)]);
    command.args(["-m", &format!("{}M", size.machine_mib), "-smp", "1"]);
    command.args(["-display", "none", "-vga", "none", "-no-reboot"]);
    command.args(["-nic", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&lab.xen);
    command
}

/// The number in `key=<n>`.
pub(super) fn number(text: &str, key: &str) -> Result<u64> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("`{text}` has no number `{key}=`"))
}

/// The line with its beginning, where Xen's own words have cut it in two; of a line that
/// they cut, those.
fn whole(mut line: String, cut: &mut String) -> String {
    match line.find(XENS) {
        Some(0) => line,
        Some(at) => {
            let xens = line.split_off(at);
            cut.push_str(&line);
            xens
        }
        None => std::mem::take(cut) + &line,
    }
}

/// What a guest's line is to whoever waits for an event.
#[derive(Debug, PartialEq, Eq)]
enum Heard<'a> {
    /// The event, and what stands behind its name.
    Awaited(&'a str),
    /// The guest is not well, whatever it is that is awaited.
    Bad,
    Other,
}

/// Judges a line for whoever waits for `@NAME ...`.
fn hear<'a>(line: &'a str, name: &str, fits: impl Fn(&str) -> bool) -> Heard<'a> {
    let Some(event) = line.strip_prefix('@') else {
        return Heard::Other;
    };
    let (event, text) = event.split_once(' ').unwrap_or((event, ""));
    match event {
        "panic" | "lost" => Heard::Bad,
        "verify" if !text.starts_with("ok") => Heard::Bad,
        _ if event == name && fits(text) => Heard::Awaited(text),
        _ => Heard::Other,
    }
}

impl Host {
    /// Boots Xen, waits for the first domain's prompt.
    ///
    /// `initramfs` is the first domain's file system.
    pub(super) fn boot(
        qemu: &Qemu,
        lab: &Lab,
        initramfs: &Path,
        size: Size,
        transcript: &Path,
    ) -> Result<Self> {
        let mut command = machine(qemu, lab, size);
        command.args(["-append", &format!("{XEN} dom0_mem={}M", size.dom0_mib)]);
        command.arg("-initrd").arg(format!(
            "{} {LINUX},{}",
            lab.vmlinux.display(),
            initramfs.display()
        ));
        let mut host = Self::start(command, transcript)?;
        host.wait_line(BOOT, |line| line == "@@ready")
            .context("the first domain did not come up")?;
        Ok(host)
    }

    /// Boots Xen with a guest of ours as its first domain, with what it prints as
    /// the guest [`FIRST`]'s words. There are no tools then, and no store.
    pub(super) fn boot_alone(
        qemu: &Qemu,
        lab: &Lab,
        (kernel, arguments): (&Path, &str),
        mode: &str,
        size: Size,
        transcript: &Path,
    ) -> Result<Self> {
        let mut command = machine(qemu, lab, size);
        command.args([
            "-append",
            &format!("{XEN} dom0_mem={}M {mode}", size.dom0_mib),
        ]);
        command
            .arg("-initrd")
            .arg(format!("{} {arguments}", kernel.display()));
        Self::start(command, transcript)
    }

    /// Starts QEMU and listens to it.
    pub(super) fn start(mut command: Command, transcript: &Path) -> Result<Self> {
        if let Some(folder) = transcript.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::create(transcript)?;
        let errors = File::create(transcript.with_extension("err"))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command.spawn().context("starting QEMU")?;
        let input = child.stdin.take().context("QEMU has an input")?;
        let output = child.stdout.take().context("QEMU has an output")?;
        let (sender, lines) = channel();
        let begin = Instant::now();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|length| length > 0)
            {
                // Everybody speaks ASCII; the shell's marks of quoted characters
                // have been seen to slip out.
                line.retain(u8::is_ascii);
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\r', '\n']).to_owned();
                let at = Instant::now();
                let since = (at - begin).as_secs_f64();
                // A full disk must not stop the run.
                let _ = writeln!(file, "{since:8.3} {text}");
                if sender.send((at, text)).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self {
            child,
            input,
            lines,
            guests: BTreeMap::new(),
            log: Vec::new(),
            recent: VecDeque::new(),
            aimed: None,
            commands: 0,
            cut: String::new(),
        })
    }

    /// Runs a command in the first domain.
    pub(super) fn run(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        // Blanks at its ends do not get there.
        let command = command.trim();
        self.commands += 1;
        let number = self.commands.to_string();
        let sent = format!("{number} {command}");
        let sent = format!("{} {sent}", sent.len());
        ensure!(sent.len() <= LINE, "`{command}` is too long a line");
        writeln!(self.input, "{sent}")?;
        self.input.flush()?;
        let mut lines = Vec::new();
        let deadline = Instant::now() + limit;
        let mut again = Instant::now() + AGAIN;
        loop {
            let Some((_, line)) = self.hear(again.min(deadline))? else {
                let now = Instant::now();
                if now >= deadline {
                    bail!("running `{command}`: {}", self.time_is_up());
                }
                // What came of the line before ends here.
                writeln!(self.input, "\n{sent}")?;
                self.input.flush()?;
                again = now + AGAIN;
                continue;
            };
            if let Some(done) = line.strip_prefix("@@done ") {
                match done.split_once(' ') {
                    Some((done, code)) if done == number => {
                        let code = code.trim().parse().unwrap_or(-1);
                        return Ok(Answer { code, lines });
                    }
                    // One that was answered twice.
                    _ => continue,
                }
            }
            // Xen's own words belong to no command.
            if line.starts_with(XENS) {
                self.log.push(line);
            } else if !line.is_empty() {
                lines.push(line);
            }
        }
    }

    /// Runs a command that has to succeed.
    pub(super) fn must(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        let answer = self.run(command, limit)?;
        if answer.code != 0 {
            bail!("`{command}` ended with {}:\n{}", answer.code, answer.text());
        }
        Ok(answer)
    }

    /// The machine's memory, as a file.
    pub(super) fn memory(&self) -> Result<PathBuf> {
        let folder = PathBuf::from(format!("/proc/{}/fd", self.child.id()));
        for file in std::fs::read_dir(folder)? {
            let file = file?.path();
            // One that was closed meanwhile is not the one.
            let name = std::fs::read_link(&file).unwrap_or_default();
            if name
                .to_string_lossy()
                .starts_with("/memfd:memory-backend-memfd")
            {
                return Ok(file);
            }
        }
        bail!("QEMU holds its memory in no file")
    }

    /// Sets a guest's target; when that was.
    pub(super) fn aim(&mut self, guest: &str, mib: u64, limit: Duration) -> Result<Instant> {
        self.aimed = None;
        self.must(&format!("aim {guest} {}", mib * 1024), limit)?;
        self.aimed.context("the first domain did not say when")
    }

    /// Waits for an event `@NAME ...` of a guest; returns what stands behind the
    /// name, and when it came. Other lines before it are dropped, but those of a
    /// guest that lost memory, found it damaged, or panicked are an error.
    pub(super) fn event(
        &mut self,
        guest: &str,
        name: &str,
        limit: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<(Instant, String)> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some((at, line)) = self.guests.get_mut(guest).and_then(VecDeque::pop_front) {
                match hear(&line, name, &fits) {
                    Heard::Awaited(text) => return Ok((at, text.to_owned())),
                    Heard::Bad => bail!("{guest}: {line}\n{}", self.tail()),
                    Heard::Other => {}
                }
            }
            let next = self.next(deadline);
            let (_, line) =
                next.with_context(|| format!("waiting for `@{name}` of guest `{guest}`"))?;
            self.log.push(line);
        }
    }

    /// Forgets what Xen has said so far.
    pub(super) fn forget_log(&mut self) {
        self.log.clear();
    }

    /// Waits for a line of Xen or the first domain.
    pub(super) fn wait_line(
        &mut self,
        limit: Duration,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        if let Some(at) = self.log.iter().position(|line| fits(line)) {
            return Ok(self.log.swap_remove(at));
        }
        loop {
            let (_, line) = self.next(deadline)?;
            if fits(&line) {
                return Ok(line);
            }
            self.log.push(line);
        }
    }

    /// The last lines of the console.
    pub(super) fn tail(&self) -> String {
        let lines: Vec<String> = self.recent.iter().map(|line| format!("  {line}")).collect();
        lines.join("\n")
    }

    fn time_is_up(&self) -> String {
        format!("time is up; the console says\n{}", self.tail())
    }

    /// The next line that no guest said, by then; guests' lines are put aside, and
    /// reported as an empty line so that whoever waits for one looks again.
    fn next(&mut self, deadline: Instant) -> Result<(Instant, String)> {
        match self.hear(deadline)? {
            Some(heard) => Ok(heard),
            None => bail!(self.time_is_up()),
        }
    }

    /// The same, or nothing if there is none by then.
    fn hear(&mut self, deadline: Instant) -> Result<Option<(Instant, String)>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (at, line) = match self.lines.recv_timeout(left) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU is gone\n{}", self.tail()),
        };
        let line = whole(line, &mut self.cut);
        if line.contains("Hardware Dom0 crashed") || line.contains("Panic on CPU") {
            bail!("the host is dead: {line}\n{}", self.tail());
        }
        self.recent.push_back(line.clone());
        if self.recent.len() > TAIL {
            self.recent.pop_front();
        }
        // The emulated serial port of a domain that Xen started by itself.
        let line = match line.strip_prefix("(XEN) DOM1: ") {
            Some(said) => said.to_owned(),
            None => line,
        };
        if line == "@@aim" {
            self.aimed = Some(at);
            return Ok(Some((at, String::new())));
        }
        if line.starts_with('@') && !line.starts_with("@@") {
            let words = self.guests.entry(FIRST.to_owned()).or_default();
            words.push_back((at, line));
            return Ok(Some((at, String::new())));
        }
        let said = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
            .map(|(guest, text)| (guest.to_owned(), text.to_owned()));
        if let Some((guest, text)) = said {
            self.guests.entry(guest).or_default().push_back((at, text));
            return Ok(Some((at, String::new())));
        }
        Ok(Some((at, line)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_bad_whatever_is_awaited() {
        let any = |_: &str| true;
        for line in [
            "@verify FAIL kept",
            "@verify",
            "@lost frames=1",
            "@panic at",
        ] {
            for name in ["verify", "balloon", "lost", "panic"] {
                assert_eq!(hear(line, name, any), Heard::Bad, "{line}");
            }
        }
    }

    /// What the first domain's shell says to that.
    fn answers(typed: &str) -> String {
        let (_, shell) = include_str!("dom0-init.sh")
            .split_once("\"@@ready\"\n")
            .unwrap();
        let (shell, _) = shell.split_once("poweroff").unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &shell.replace("/dev/hvc0", "/dev/stdin")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(typed.as_bytes()).unwrap();
        drop(input);
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn a_command_that_is_sent_again_runs_once() {
        let sent = "9 17 echo a";
        for from in 0..sent.len() {
            for to in from..sent.len() {
                let (head, tail) = (sent.split_at(from).0, sent.split_at(to).1);
                let typed = format!("{head}{tail}\n\n{sent}\n");
                let said = answers(&typed);
                let twice = "a\n@@done 17 0\n@@done 17 0\n";
                let expected = if from == to {
                    twice
                } else {
                    "a\n@@done 17 0\n"
                };
                assert_eq!(said, expected, "{typed}");
            }
        }
        assert_eq!(
            answers(&format!("{sent}{sent}\n\n{sent}\n")),
            "a\n@@done 17 0\n"
        );
        assert_eq!(
            answers("9 18 exit 4\n8 19 false\n"),
            "@@done 18 4\n@@done 19 1\n"
        );
    }

    #[test]
    fn a_line_that_xen_cuts_is_made_whole() {
        let mut cut = String::new();
        let heard = [
            "[a] @ver(XEN) one",
            "(XEN) two",
            "ify o(XEN) three",
            "k",
            "[a] @done",
        ]
        .map(|line| whole(line.to_owned(), &mut cut));
        let lines = [
            "(XEN) one",
            "(XEN) two",
            "(XEN) three",
            "[a] @verify ok",
            "[a] @done",
        ];
        assert_eq!(heard, lines);
    }

    #[test]
    fn events_are_told_apart() {
        let whole = |text: &str| text.starts_with("actual=0 ");
        let heard = hear("@balloon actual=0 target=0", "balloon", whole);
        assert_eq!(heard, Heard::Awaited("actual=0 target=0"));
        for line in [
            "@balloon actual=9 target=0",
            "@verify ok frames=1",
            "balloon",
        ] {
            assert_eq!(hear(line, "balloon", whole), Heard::Other, "{line}");
        }
        assert_eq!(hear("@done", "done", |_| true), Heard::Awaited(""));
        assert_eq!(number("a=1 balloon=20", "balloon").unwrap(), 20);
        assert!(number("balloons=20", "balloon").is_err());
    }
}
