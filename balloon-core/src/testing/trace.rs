//! A transport that shows each call.

use core::fmt;

use crate::migrate::{Migrate, Migration, Trade};
use crate::run::Run;
use crate::slots::{Completer, Kind, SlotId};
use crate::source::GivePath;
use crate::transport::{Capabilities, Request, Transport, TransportError, TransportErrorKind};
use crate::units::{FrameCount, Order};

/// One call to a transport and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// [`Transport::read_target`].
    ReadTarget(Result<FrameCount, TransportErrorKind>),
    /// [`Transport::write_actual`].
    WriteActual(FrameCount, Result<(), TransportErrorKind>),
    /// [`Transport::submit`].
    Submit {
        /// What it is about.
        kind: Kind,
        /// The path of an inflation.
        path: GivePath,
        /// The slot it occupies.
        slot: SlotId,
        /// In so many runs.
        runs: usize,
        /// So many frames.
        frames: FrameCount,
        /// Whether the transport took it.
        result: Result<(), TransportErrorKind>,
    },
    /// [`Transport::kick`] with its `wake_after`.
    Kick(usize, Result<bool, TransportErrorKind>),
    /// [`Transport::announce_unit`].
    AnnounceUnit(Order, Result<(), TransportErrorKind>),
    /// [`Transport::reap`].
    Reap(Result<(), TransportErrorKind>),
    /// [`Migrate::submit_trade`].
    Trade {
        /// The slot it occupies.
        slot: SlotId,
        /// So many pairs.
        frames: FrameCount,
        /// Whether the transport took it.
        result: Result<(), TransportErrorKind>,
    },
}

/// The transport `T` with a closure that sees every call after it was made.
///
/// It neither allocates nor waits by itself: with a closure that does not either
/// it may stay in place in a kernel. What a transport can do is fixed, so
/// [`Transport::capabilities`] is not shown.
///
/// ```
/// use balloon_core::testing::{Call, FakeHost, Tracer};
/// use balloon_core::{FrameCount, Transport};
///
/// let mut calls = Vec::new();
/// let mut host = Tracer::new(FakeHost::plain(), |call| calls.push(call));
/// host.read_target()?;
/// drop(host);
/// assert_eq!(calls, [Call::ReadTarget(Ok(FrameCount::ZERO))]);
/// # Ok::<(), balloon_core::TransportErrorKind>(())
/// ```
pub struct Tracer<T, F> {
    inner: T,
    show: F,
}

impl<T, F: FnMut(Call)> Tracer<T, F> {
    /// Shows every call to `inner`.
    pub const fn new(inner: T, show: F) -> Self {
        Self { inner, show }
    }
}

impl<T, F> Tracer<T, F> {
    /// The transport.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// The transport, to change something.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: fmt::Debug, F> fmt::Debug for Tracer<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

fn kind_of<R: Copy, E: TransportError>(result: &Result<R, E>) -> Result<R, TransportErrorKind> {
    result.as_ref().copied().map_err(TransportError::kind)
}

fn frames_of(runs: &[Run]) -> FrameCount {
    let counts = runs.iter().map(|run| run.count());
    counts.fold(FrameCount::ZERO, FrameCount::saturating_add)
}

impl<T: Transport, F: FnMut(Call)> Transport for Tracer<T, F> {
    type Error = T::Error;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        let result = self.inner.read_target();
        (self.show)(Call::ReadTarget(kind_of(&result)));
        result
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        let result = self.inner.write_actual(size);
        (self.show)(Call::WriteActual(size, kind_of(&result)));
        result
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        let result = self.inner.submit(request, done);
        (self.show)(Call::Submit {
            kind: request.kind,
            path: request.path,
            slot: request.slot,
            runs: request.runs.len(),
            frames: frames_of(request.runs),
            result: kind_of(&result),
        });
        result
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error> {
        let result = self.inner.kick(wake_after);
        (self.show)(Call::Kick(wake_after, kind_of(&result)));
        result
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
        let result = self.inner.announce_unit(unit);
        (self.show)(Call::AnnounceUnit(unit, kind_of(&result)));
        result
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<(), Self::Error> {
        let result = self.inner.reap(done);
        (self.show)(Call::Reap(kind_of(&result)));
        result
    }
}

impl<T: Migrate, F: FnMut(Call)> Migrate for Tracer<T, F> {
    fn migration(&self) -> Migration {
        self.inner.migration()
    }

    fn submit_trade(&mut self, trade: Trade<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        let result = self.inner.submit_trade(trade, done);
        (self.show)(Call::Trade {
            slot: trade.slot,
            frames: frames_of(trade.olds),
            result: kind_of(&result),
        });
        result
    }
}
