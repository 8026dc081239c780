//! A QEMU process: its sockets, its end, and the verdict on it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::console::Console;
use super::frames::{self, Decoded};
use super::machine::Machine;
use super::qmp::Qmp;
use crate::setup::Qemu;

/// `isa-debug-exit` turns a value v into the exit code 2v + 1: 0x10 is the guest's success.
const SUCCESS: i32 = 33;
/// QEMU connects in well under a second; a busy machine may take longer.
const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(30);
/// Where QEMU writes the events it traces.
const TRACE: &str = "trace.log";
/// How many `defmt` records a failure shows.
const TAIL: usize = 20;

/// A running machine.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    kernel: PathBuf,
    folder: PathBuf,
    token: String,
    /// The guest's console.
    pub(crate) console: Console,
    /// QEMU's monitor.
    pub(crate) qmp: Qmp,
}

/// Why a run does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The exit code says failure, or QEMU died of a signal.
    Exit(Option<i32>),
    /// The guest exited well, but never said that it was done.
    NoToken,
    /// It said so with somebody else's token.
    WrongToken(String),
}

impl std::error::Error for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(Some(code)) => write!(f, "QEMU exited with {code}, success is {SUCCESS}"),
            Self::Exit(None) => f.write_str("QEMU was ended by a signal"),
            Self::NoToken => f.write_str("exit code of success, but no completion token"),
            Self::WrongToken(token) => write!(
                f,
                "exit code of success, but the completion token is {token:?}"
            ),
        }
    }
}

/// A run counts with the right completion token *and* the exit code of success, never with one of them.
fn judge(token: &str, said: Option<&str>, code: Option<i32>) -> Result<(), Failure> {
    if code != Some(SUCCESS) {
        return Err(Failure::Exit(code));
    }
    match said {
        Some(said) if said == token => Ok(()),
        Some(said) => Err(Failure::WrongToken(said.to_owned())),
        None => Err(Failure::NoToken),
    }
}

impl Vm {
    /// Starts `machine`; what it writes is captured in `folder`.
    pub(crate) fn start(qemu: &Qemu, machine: Machine, folder: &Path) -> Result<Self> {
        // A token of this start: nothing an earlier run left behind can be taken for it.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let token = format!("{:x}-{:x}", std::process::id(), since.as_nanos());
        let machine = machine.append(&format!("token={token}"));
        Self::launch(qemu, &machine, folder, &token)
    }

    /// Starts `machine`, to which this guest is to go: it is judged by the same token.
    pub(crate) fn heir(&self, qemu: &Qemu, machine: Machine, folder: &Path) -> Result<Self> {
        let machine = machine.append(&format!("token={}", self.token));
        Self::launch(qemu, &machine, folder, &self.token)
    }

    fn launch(qemu: &Qemu, machine: &Machine, folder: &Path, token: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.to_path_buf();

        // The names of unix sockets are short, so they lie in a short folder. QEMU connects to us: there
        // is nothing to poll for, and not one byte of the console is lost.
        let sockets = SocketFolder::create()?;
        let com1 = UnixListener::bind(sockets.path("com1"))?;
        let monitor = UnixListener::bind(sockets.path("qmp"))?;
        let errors = folder.join("qemu.log");
        let errors_file = std::fs::File::create(&errors)?;
        let trace = folder.join(TRACE);
        std::fs::write(&trace, "")?;

        let mut command = qemu.command();
        command.arg("-chardev").arg(format!(
            "socket,id=com1,path={}",
            sockets.path("com1").display()
        ));
        command.args(["-serial", "chardev:com1"]);
        command.arg("-chardev").arg(format!(
            "file,id=defmt,path={}",
            folder.join("defmt.bin").display()
        ));
        // The board's second serial port, if it has one, is in its arguments.
        command.args(machine.arguments());
        command.arg("-chardev").arg(format!(
            "socket,id=qmp,path={}",
            sockets.path("qmp").display()
        ));
        command.args(["-mon", "chardev=qmp,mode=control"]);
        // A line for each kick: there are a few hundred at most, so the trace costs nothing.
        for event in machine.traces() {
            command.args(["-trace", event]);
        }
        command.arg("-D").arg(&trace);
        command
            .stdin(Stdio::null())
            .stdout(errors_file.try_clone()?)
            .stderr(errors_file);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", qemu.shown()))?;

        let connected =
            accept(&com1, &mut child).and_then(|com1| Ok((com1, accept(&monitor, &mut child)?)));
        let connected = connected.and_then(|(com1, monitor)| {
            Ok((
                Console::open(com1, &folder.join("console.log"))?,
                Qmp::open(monitor)?,
            ))
        });
        match connected {
            Ok((console, qmp)) => Ok(Self {
                child,
                kernel: machine.kernel().to_path_buf(),
                folder,
                token: token.to_owned(),
                console,
                qmp,
            }),
            Err(error) => {
                // It may be gone already; what it said tells why.
                let _ = child.kill();
                child.wait()?;
                let said = std::fs::read_to_string(&errors).unwrap_or_default();
                Err(error.context(format!("QEMU did not start: {}", said.trim())))
            }
        }
    }

    /// The process, for its figures in `/proc`.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How often the guest has kicked a virtqueue so far, as QEMU saw it.
    pub(crate) fn kicks(&self) -> Result<u64> {
        self.traced("virtio_queue_notify")
    }

    /// How often it has kicked the queue of this number.
    pub(crate) fn kicks_of(&self, queue: u32) -> Result<u64> {
        let kicked = self.kicked()?;
        Ok(kicked.iter().filter(|kicked| **kicked == queue).count() as u64)
    }

    /// The queues the guest has kicked so far, in the order of its kicks.
    pub(crate) fn kicked(&self) -> Result<Vec<u32>> {
        let events = self.events("virtio_queue_notify")?;
        let queue = |text: &String| {
            let (_, rest) = text.split_once(" n ")?;
            rest.split(' ').next()?.parse().ok()
        };
        let queues: Option<Vec<u32>> = events.iter().map(queue).collect();
        queues.context("a kick without a queue")
    }

    /// How often this event of [`Machine::trace`] has happened so far.
    pub(crate) fn traced(&self, event: &str) -> Result<u64> {
        Ok(self.events(event)?.len() as u64)
    }

    /// What QEMU has written about this event so far, an entry each time.
    pub(crate) fn events(&self, event: &str) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.folder.join(TRACE))?;
        // QEMU may be writing the last line.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().filter_map(|line| line.split_once(event));
        let events = events.filter(|(_, rest)| rest.starts_with(' '));
        Ok(events.map(|(_, rest)| rest.to_owned()).collect())
    }

    /// Asks the guest to finish, waits for its end and judges the run.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.console.send("quit")?;
        let done = self.console.wait("done", END)?;
        let code = self.wait_exit()?.code();
        judge(&self.token, Some(done.text()), code)?;
        self.decoded_start()
    }

    /// Waits for the end of a guest that was not asked to finish, and judges the run.
    pub(crate) fn judge_exit(&mut self) -> Result<Result<(), Failure>> {
        let code = self.wait_exit()?.code();
        let said = self.console.wait("done", Duration::ZERO).ok();
        Ok(judge(
            &self.token,
            said.as_ref().map(super::Event::text),
            code,
        ))
    }

    /// Ends QEMU at once, as a host that runs out of memory does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Adds to an error what the guest's `defmt` channel says.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let records = match self.decode() {
            Ok(decoded) => {
                let from = decoded.records.len().saturating_sub(TAIL);
                let last = decoded.records.get(from..).unwrap_or_default();
                last.iter()
                    .map(|record| format!("  defmt: {record}"))
                    .collect::<Vec<_>>()
                    .join("\n")
            }
            Err(reason) => format!("  defmt: {reason:#}"),
        };
        anyhow::anyhow!(
            "{error:#}\n{records}\n(captured in {})",
            self.folder.display()
        )
    }

    /// The second channel does its work: at least the record of the start arrived, and all of it decodes.
    fn decoded_start(&self) -> Result<()> {
        let decoded = self.decode()?;
        if decoded.records.is_empty() || decoded.malformed > 0 {
            let Decoded { records, malformed } = decoded;
            bail!(
                "defmt channel: {} records, {malformed} malformed frames",
                records.len()
            );
        }
        Ok(())
    }

    fn decode(&self) -> Result<Decoded> {
        frames::decode(&self.kernel, &self.folder.join("defmt.bin"))
    }

    fn wait_exit(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("QEMU does not exit\n{}", self.console.tail())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Gone already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for QEMU to connect, as long as it lives.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once ({status})");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("it did not connect in {} s", START.as_secs())
}

/// A folder for sockets, whose names are to be short. It goes with this.
#[derive(Debug)]
pub(crate) struct SocketFolder(PathBuf);

impl SocketFolder {
    /// Creates one that nobody else has.
    pub(crate) fn create() -> Result<Self> {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("balloon-{:x}-{start}", std::process::id()));
        // Of a process that had our number and was killed.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Where something of this name is, or is to be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // Left behind it would be two empty names in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_token_and_exit_code_together_count() {
        assert_eq!(judge("a", Some("a"), Some(33)), Ok(()));
        assert_eq!(judge("a", None, Some(33)), Err(Failure::NoToken));
        assert_eq!(
            judge("a", Some("b"), Some(33)),
            Err(Failure::WrongToken("b".to_owned()))
        );
        for code in [Some(0), Some(1), Some(35), None] {
            assert_eq!(judge("a", Some("a"), code), Err(Failure::Exit(code)));
        }
    }
}
