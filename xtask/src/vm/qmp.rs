//! QMP: one JSON object a line over a unix socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Even a monitor that waits behind a long discard answers in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A conversation with QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Reads the greeting and leaves negotiation mode.
    pub(crate) fn open(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        let greeting = qmp.receive()?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Asks the guest to shrink or grow to `bytes`.
    pub(crate) fn balloon(&mut self, bytes: u64) -> Result<()> {
        self.execute("balloon", json!({ "value": bytes })).map(drop)
    }

    /// The size the guest says it has, in bytes.
    pub(crate) fn query_balloon(&mut self) -> Result<u64> {
        let answer = self.execute("query-balloon", json!({}))?;
        answer
            .get("actual")
            .and_then(Value::as_u64)
            .with_context(|| format!("query-balloon answered {answer}"))
    }

    /// Sends a command and returns what it returns; events in between are dropped.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .context("QEMU closed its monitor")?;
        loop {
            let mut message = self.receive()?;
            if let Some(error) = message.get("error") {
                bail!("QMP {command}: {error}");
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => bail!("QEMU closed its monitor"),
            Ok(_) => serde_json::from_str(&line).with_context(|| format!("QMP said {line:?}")),
            Err(error) => Err(error).context("QEMU's monitor does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that says `lines`, whatever it is asked.
    fn monitor(lines: &[&str]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for line in lines {
            theirs.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        // Left open: a closed peer would turn our writes into errors.
        std::mem::forget(theirs);
        ours
    }

    const GREETING: &str = r#"{"QMP":{"version":{}}}"#;
    const OK: &str = r#"{"return":{}}"#;

    #[test]
    fn events_between_are_skipped() {
        let event = r#"{"event":"BALLOON_CHANGE","data":{"actual":1}}"#;
        let mut qmp = Qmp::open(monitor(&[
            GREETING,
            OK,
            event,
            r#"{"return":{"actual":4096}}"#,
        ]))
        .unwrap();
        assert_eq!(qmp.query_balloon().unwrap(), 4096);
    }

    #[test]
    fn errors_are_told() {
        let refusal = r#"{"error":{"class":"DeviceNotActive","desc":"No balloon device has been activated"}}"#;
        let mut qmp = Qmp::open(monitor(&[GREETING, OK, refusal])).unwrap();
        assert!(
            qmp.query_balloon()
                .unwrap_err()
                .to_string()
                .contains("No balloon device")
        );
    }

    #[test]
    fn a_stranger_is_refused() {
        assert!(Qmp::open(monitor(&[r#"{"hello":1}"#])).is_err());
        assert!(Qmp::open(monitor(&["220 mail server"])).is_err());
    }
}
