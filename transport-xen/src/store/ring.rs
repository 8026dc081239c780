//! Two byte streams in one page.
//!
//! Either side owns one index of each stream: this side the producer of
//! requests and the consumer of responses. Own indices are kept here and only
//! published, never read back; the other side's are checked on each use.

use crate::page::SharedPage;

/// Bytes of one stream.
const SIZE: u32 = 1024;
const REQUESTS: usize = 0;
const RESPONSES: usize = 1024;
const REQUEST_CONSUMER: usize = 2048;
const REQUEST_PRODUCER: usize = 2052;
const RESPONSE_CONSUMER: usize = 2056;
const RESPONSE_PRODUCER: usize = 2060;
const SERVER_FEATURES: usize = 2064;
const CONNECTION: usize = 2068;
/// The server can be asked to start the connection anew.
const FEATURE_RECONNECT: u32 = 1;
const CONNECTED: u32 = 0;
const RECONNECT: u32 = 1;

/// Why the ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum RingError {
    /// The other side's index is further away than the ring is long.
    #[error("a ring index is out of bounds")]
    Index,
}

/// The guest's end of the page.
#[derive(Debug)]
pub(crate) struct Ring<P> {
    page: P,
    sent: u32,
    received: u32,
}

impl<P: SharedPage> Ring<P> {
    /// Goes on where the page's last user stopped: firmware, or a kernel.
    pub(crate) fn new(page: P) -> Self {
        let (sent, received) = (page.load(REQUEST_PRODUCER), page.load(RESPONSE_CONSUMER));
        Self {
            page,
            sent,
            received,
        }
    }

    /// Starts again on a page that somebody else has reset.
    pub(crate) fn restart(&mut self) {
        self.sent = self.page.load(REQUEST_PRODUCER);
        self.received = self.page.load(RESPONSE_CONSUMER);
    }

    /// Sends as many of `bytes` as there is room for; returns how many.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let used = self.sent.wrapping_sub(self.page.load(REQUEST_CONSUMER));
        let room = SIZE.checked_sub(used).ok_or(RingError::Index)?;
        let (bytes, _) = bytes
            .split_at_checked(room as usize)
            .unwrap_or((bytes, &[]));
        let at = (self.sent % SIZE) as usize;
        let (head, tail) = bytes
            .split_at_checked(SIZE as usize - at)
            .unwrap_or((bytes, &[]));
        self.page.write(REQUESTS + at, head);
        self.page.write(REQUESTS, tail);
        self.sent = self.sent.wrapping_add(length(bytes));
        self.page.store(REQUEST_PRODUCER, self.sent);
        Ok(bytes.len())
    }

    /// Receives into `out`; returns how many bytes there were.
    pub(crate) fn receive(&mut self, out: &mut [u8]) -> Result<usize, RingError> {
        let there = self
            .page
            .load(RESPONSE_PRODUCER)
            .wrapping_sub(self.received);
        if there > SIZE {
            return Err(RingError::Index);
        }
        let wanted = out.len().min(there as usize);
        let out = out.get_mut(..wanted).unwrap_or_default();
        let at = (self.received % SIZE) as usize;
        let first = out.len().min(SIZE as usize - at);
        let (head, tail) = out.split_at_mut(first);
        self.page.read(RESPONSES + at, head);
        self.page.read(RESPONSES, tail);
        self.received = self.received.wrapping_add(length(out));
        self.page.store(RESPONSE_CONSUMER, self.received);
        Ok(wanted)
    }

    /// Whether anything has gone either way yet.
    pub(crate) fn is_used(&self) -> bool {
        let received = self.page.load(RESPONSE_PRODUCER);
        (self.sent, self.received, received) != (0, 0, 0)
    }

    /// Whether the server has taken all that was sent.
    pub(crate) fn is_taken(&self) -> bool {
        self.page.load(REQUEST_CONSUMER) == self.sent
    }

    /// Asks the server to start the connection anew; false if it cannot.
    pub(crate) fn ask_reconnect(&mut self) -> bool {
        let able = self.page.load(SERVER_FEATURES) & FEATURE_RECONNECT != 0;
        if able {
            self.page.store(CONNECTION, RECONNECT);
        }
        able
    }

    /// Whether the server serves this ring.
    pub(crate) fn is_connected(&self) -> bool {
        self.page.load(CONNECTION) == CONNECTED
    }

    /// Bytes ever sent; wraps.
    pub(crate) const fn sent(&self) -> u32 {
        self.sent
    }

    #[cfg(test)]
    pub(crate) const fn page_mut(&mut self) -> &mut P {
        &mut self.page
    }
}

/// The length of what fits the ring.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(0)
}
