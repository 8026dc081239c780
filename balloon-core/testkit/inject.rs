//! A transport that fails by script or by chance.

use alloc::collections::VecDeque;
use core::fmt;

use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::slots::Completer;
use crate::slots::Request;
use crate::transport::{Capabilities, Transport, TransportError, TransportErrorKind};
use crate::units::{FrameCount, Order};

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// It goes through.
    Pass,
    /// It fails with this and the transport never hears of it.
    Fail(TransportErrorKind),
    /// It succeeds and the transport never hears of it: a lost kick. A call
    /// that has an answer to give goes through.
    Lose,
    /// The transport hears it twice: a repeated kick, a size written again.
    /// Any other call goes through once.
    Repeat,
}

/// How many of 1000 calls go wrong where no script says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odds {
    /// Requests and migrations refused as by a host that is short of something.
    pub refused: u32,
    /// Kicks lost.
    pub lost_kicks: u32,
    /// Kicks repeated.
    pub repeated_kicks: u32,
    /// Targets that keep changing while they are read.
    pub unstable_reads: u32,
    /// Sizes that cannot be published, and units that cannot be announced.
    pub failed_writes: u32,
    /// Kicks that fail.
    pub failed_kicks: u32,
}

/// The transport `T` behind faults; what goes through keeps its laws.
///
/// Each call takes the next [`Injection`] of its queue; once that is empty,
/// chance decides by [`Odds`]. Same seed, same calls, same faults.
///
/// ```
/// use balloon_core::testing::{FakeHost, FaultInjector, Injection};
/// use balloon_core::{Transport, TransportError, TransportErrorKind};
///
/// let mut host = FaultInjector::new(FakeHost::plain());
/// host.reads.push_back(Injection::Fail(TransportErrorKind::Unstable));
/// assert_eq!(host.read_target().unwrap_err().kind(), TransportErrorKind::Unstable);
/// assert!(host.read_target().is_ok());
/// assert_eq!(host.injected(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct FaultInjector<T> {
    inner: T,
    /// The next requests and migrations.
    pub submits: VecDeque<Injection>,
    /// The next kicks.
    pub kicks: VecDeque<Injection>,
    /// The next readings of the target.
    pub reads: VecDeque<Injection>,
    /// The next sizes published.
    pub writes: VecDeque<Injection>,
    /// The next units announced.
    pub units: VecDeque<Injection>,
    /// What happens beyond the scripts.
    pub odds: Odds,
    chance: u64,
    injected: u64,
}

impl<T> FaultInjector<T> {
    /// Nothing goes wrong that no script says.
    #[must_use]
    pub const fn new(inner: T) -> Self {
        Self::seeded(inner, 0, Odds::NONE)
    }

    /// Things go wrong as often as `odds` say.
    #[must_use]
    pub const fn seeded(inner: T, seed: u64, odds: Odds) -> Self {
        Self {
            inner,
            submits: VecDeque::new(),
            kicks: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            units: VecDeque::new(),
            odds,
            chance: seed,
            injected: 0,
        }
    }

    /// Calls that did not simply go through.
    #[must_use]
    pub const fn injected(&self) -> u64 {
        self.injected
    }

    /// The transport.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// The transport, to change something.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// What happens to this call: by script, or by the odds of each fault.
    fn next(
        &mut self,
        script: impl FnOnce(&mut Self) -> &mut VecDeque<Injection>,
        odds: &[(u32, Injection)],
    ) -> Injection {
        let scripted = script(self).pop_front();
        let injection = scripted.unwrap_or_else(|| {
            let mut roll = self.roll();
            for &(odds, injection) in odds {
                if roll < odds {
                    return injection;
                }
                roll -= odds;
            }
            Injection::Pass
        });
        self.injected += u64::from(injection != Injection::Pass);
        injection
    }

    /// A number below 1000, by `SplitMix64`.
    fn roll(&mut self) -> u32 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) % 1000).unwrap_or(0)
    }

    fn next_submit(&mut self) -> Injection {
        let refused = Injection::Fail(TransportErrorKind::Refused);
        let odds = [(self.odds.refused, refused)];
        self.next(|this| &mut this.submits, &odds)
    }
}

impl Odds {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        refused: 0,
        lost_kicks: 0,
        repeated_kicks: 0,
        unstable_reads: 0,
        failed_writes: 0,
        failed_kicks: 0,
    };
}

/// An error of the transport, or one that was put in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedError<E> {
    /// The transport never heard of the call.
    Injected(TransportErrorKind),
    /// The transport's own.
    Inner(E),
}

impl<E: TransportError> TransportError for InjectedError<E> {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Injected(kind) => *kind,
            Self::Inner(error) => error.kind(),
        }
    }
}

impl<E: fmt::Display> fmt::Display for InjectedError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Injected(kind) => write!(f, "injected: {kind}"),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for InjectedError<E> {}

impl<T: Transport> Transport for FaultInjector<T> {
    type Error = InjectedError<T::Error>;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        let unstable = Injection::Fail(TransportErrorKind::Unstable);
        let odds = [(self.odds.unstable_reads, unstable)];
        match self.next(|this| &mut this.reads, &odds) {
            Injection::Fail(kind) => Err(InjectedError::Injected(kind)),
            _ => self.inner.read_target().map_err(InjectedError::Inner),
        }
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        let refused = Injection::Fail(TransportErrorKind::Refused);
        let odds = [(self.odds.failed_writes, refused)];
        let times = match self.next(|this| &mut this.writes, &odds) {
            Injection::Fail(kind) => return Err(InjectedError::Injected(kind)),
            Injection::Lose => 0,
            Injection::Pass => 1,
            Injection::Repeat => 2,
        };
        for _ in 0..times {
            self.inner
                .write_actual(size)
                .map_err(InjectedError::Inner)?;
        }
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        match self.next_submit() {
            Injection::Fail(kind) => Err(InjectedError::Injected(kind)),
            _ => self
                .inner
                .submit(request, done)
                .map_err(InjectedError::Inner),
        }
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error> {
        let refused = Injection::Fail(TransportErrorKind::Refused);
        let odds = [
            (self.odds.lost_kicks, Injection::Lose),
            (self.odds.repeated_kicks, Injection::Repeat),
            (self.odds.failed_kicks, refused),
        ];
        let times = match self.next(|this| &mut this.kicks, &odds) {
            Injection::Fail(kind) => return Err(InjectedError::Injected(kind)),
            Injection::Lose => 0,
            Injection::Pass => 1,
            Injection::Repeat => 2,
        };
        let mut early = false;
        for _ in 0..times {
            early = self.inner.kick(wake_after).map_err(InjectedError::Inner)?;
        }
        Ok(early)
    }

    fn notify(&mut self) -> Result<(), Self::Error> {
        self.inner.notify().map_err(InjectedError::Inner)
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
        let refused = Injection::Fail(TransportErrorKind::Refused);
        let odds = [(self.odds.failed_writes, refused)];
        let times = match self.next(|this| &mut this.units, &odds) {
            Injection::Fail(kind) => return Err(InjectedError::Injected(kind)),
            Injection::Lose => 0,
            Injection::Pass => 1,
            Injection::Repeat => 2,
        };
        for _ in 0..times {
            self.inner
                .announce_unit(unit)
                .map_err(InjectedError::Inner)?;
        }
        Ok(())
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
        self.inner.reap(done).map_err(InjectedError::Inner)
    }
}

impl<T: Migrate> Migrate for FaultInjector<T> {
    fn migration(&self) -> Migration {
        self.inner.migration()
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        match self.next_submit() {
            Injection::Fail(kind) => Err(InjectedError::Injected(kind)),
            _ => self
                .inner
                .submit_migrate(request, done)
                .map_err(InjectedError::Inner),
        }
    }
}
