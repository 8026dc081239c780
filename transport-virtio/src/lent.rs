//! Frames that a service has taken out of the allocator and named to the device: with
//! the device, or on their way home.

use balloon_core::{Claimed, FrameCount, InFlight, Run};

/// Up to `N` requests of a service, of up to `RUNS` ranges each.
#[derive(Debug)]
pub(crate) struct Lent<const N: usize, const RUNS: usize> {
    requests: [Option<Request<RUNS>>; N],
}

#[derive(Debug)]
struct Request<const RUNS: usize> {
    /// `None` once the device has answered, or will not.
    with_device: Option<InFlight<'static>>,
    /// The device knows of the frames; if not, they are as free as before.
    told: bool,
    runs: Runs<RUNS>,
}

/// Ranges of one request.
#[derive(Debug)]
pub(crate) struct Runs<const RUNS: usize> {
    runs: [Run; RUNS],
    len: usize,
}

impl<const RUNS: usize> Runs<RUNS> {
    pub(crate) fn new() -> Self {
        Self {
            runs: [Run::default(); RUNS],
            len: 0,
        }
    }

    /// The ranges that are not used yet, to lay a sink over.
    pub(crate) fn spare(&mut self) -> &mut [Run] {
        self.runs.get_mut(self.len..).unwrap_or_default()
    }

    /// Accepts the first `runs` of the spare ones.
    pub(crate) fn extend(&mut self, runs: usize) {
        self.len = (self.len + runs).min(RUNS);
    }

    pub(crate) fn as_slice(&self) -> &[Run] {
        self.runs.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut Run> {
        self.runs.get_mut(..self.len)?.last_mut()
    }

    pub(crate) fn pop(&mut self) -> Option<Run> {
        let last = self.as_slice().last().copied()?;
        self.len -= 1;
        Some(last)
    }

    pub(crate) fn frames(&self) -> FrameCount {
        let sum = |sum: FrameCount, run: &Run| sum.saturating_add(run.count());
        self.as_slice().iter().fold(FrameCount::ZERO, sum)
    }
}

/// A place for one more request.
pub(crate) struct Vacant<'a, const RUNS: usize>(&'a mut Option<Request<RUNS>>);

impl<const RUNS: usize> Vacant<'_, RUNS> {
    /// Sends a request; its frames are lent from here on, also if `send` fails.
    pub(crate) fn lend<E>(
        self,
        slot: Claimed<'static>,
        runs: Runs<RUNS>,
        send: impl FnOnce(&InFlight<'static>, &[Run]) -> Result<(), E>,
    ) -> Result<(), E> {
        let slot = slot.launch();
        let sent = send(&slot, runs.as_slice());
        let with_device = match sent {
            Ok(()) => Some(slot),
            Err(_) => slot.revoke().err(),
        };
        *self.0 = Some(Request {
            with_device,
            told: sent.is_ok(),
            runs,
        });
        sent
    }
}

impl<const N: usize, const RUNS: usize> Lent<N, RUNS> {
    pub(crate) const fn new() -> Self {
        Self {
            requests: [const { None }; N],
        }
    }

    /// Whether no request and no frame is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.iter().all(Option::is_none)
    }

    /// Requests that have a place here, answered or not.
    pub(crate) fn len(&self) -> usize {
        self.requests.iter().flatten().count()
    }

    /// Requests with the device.
    pub(crate) fn in_flight(&self) -> usize {
        let with_device = |request: &&Request<RUNS>| request.with_device.is_some();
        self.requests.iter().flatten().filter(with_device).count()
    }

    pub(crate) fn frames(&self) -> FrameCount {
        let frames = self.requests.iter().flatten().map(|r| r.runs.frames());
        frames.fold(FrameCount::ZERO, FrameCount::saturating_add)
    }

    pub(crate) fn vacant(&mut self) -> Option<Vacant<'_, RUNS>> {
        self.requests
            .iter_mut()
            .find(|place| place.is_none())
            .map(Vacant)
    }

    /// Takes up answers and shows each range of a request that is over, with whether the device
    /// knows of it; one that `place` does not accept is shown again next time. Returns the frames
    /// of the requests that were answered since the last call.
    pub(crate) fn settle(&mut self, mut place: impl FnMut(Run, bool) -> bool) -> FrameCount {
        let mut answered = FrameCount::ZERO;
        for entry in &mut self.requests {
            let Some(request) = entry else { continue };
            if let Some(slot) = request.with_device.take() {
                if let Err(waiting) = slot.answer() {
                    request.with_device = Some(waiting);
                    continue;
                }
                answered = answered.saturating_add(request.runs.frames());
            }
            while let Some(&run) = request.runs.as_slice().last() {
                if !place(run, request.told) {
                    break;
                }
                request.runs.pop();
            }
            if request.runs.as_slice().is_empty() {
                *entry = None;
            }
        }
        answered
    }

    /// The device was reset: it knows of nothing that it has not answered.
    pub(crate) fn revoke(&mut self) {
        for request in self.requests.iter_mut().flatten() {
            if let Some(slot) = request.with_device.take() {
                request.with_device = slot.revoke().err();
                request.told &= request.with_device.is_some();
            }
        }
    }
}
