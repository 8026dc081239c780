//! What the guest can call: each call may fail, or be the one the host dies in.

use balloon_core::{
    Capabilities, Completer, FrameCount, Kind, Limits, Migrate, MigrateRequest, Migration, Order,
    Pfn, Request, Run, Transport, TransportErrorKind, Via,
};

use super::{Host, Job, Life, Model, frames};

impl Host {
    /// Whether a call gets through.
    fn call(&mut self, otherwise: TransportErrorKind) -> Result<(), TransportErrorKind> {
        match self.faults.dies_in {
            Some(0) if self.life == Life::Alive => self.die(),
            Some(left) => self.faults.dies_in = Some(left.saturating_sub(1)),
            None => {}
        }
        if self.is_dead() {
            return Err(TransportErrorKind::Broken);
        }
        if self.rng.chance(self.faults.refuse) {
            return Err(otherwise);
        }
        Ok(())
    }

    /// The same for a call of the balloon, which is to ask a dead host only once.
    fn balloon_calls(&mut self, otherwise: TransportErrorKind) -> Result<(), TransportErrorKind> {
        if self.life == Life::KnownDead {
            self.breaches
                .push("the balloon asks a host that it knows to be dead".into());
        }
        let called = self.call(otherwise);
        if self.is_dead() {
            self.life = Life::KnownDead;
        }
        called
    }

    /// A request beside the balloon: a hint, a report, or statistics.
    pub(crate) fn submit_service(
        &mut self,
        request: Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        self.call(TransportErrorKind::Refused)?;
        let job = Job {
            kind: request.kind,
            via: request.via,
            slot: request.slot,
            returned: Vec::new(),
            given: Vec::new(),
            unused: frames(request.runs),
            // A kick of its own, which gets through.
            seen: true,
        };
        self.accept(job, done)
    }
}

impl Transport for Host {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let plain = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: self.room,
            below: Pfn::new(1 << 32),
        };
        let extents = Limits {
            frames: FrameCount::new(64 * 512),
            run: Run::MAX,
            ..plain
        };
        let each = if self.model.is_synchronous() {
            extents
        } else {
            plain
        };
        let mut caps = Capabilities::new(each, each);
        if self.model == Model::Bulk {
            caps.bulk = Some(Limits {
                runs: 16,
                in_flight: 2,
                ..extents
            });
        }
        if self.model.is_synchronous() {
            caps.unit = Order::SUPERPAGE;
        }
        caps.must_tell_host = self.must_tell;
        caps.deflate_on_oom = true;
        caps
    }

    fn read_target(&mut self) -> Result<FrameCount, TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Unstable)?;
        if self.rng.chance(self.faults.lie) {
            return Ok(FrameCount::new(self.rng.next()));
        }
        Ok(self.target)
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Refused)?;
        self.actual = size;
        Ok(())
    }

    fn submit(
        &mut self,
        request: Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Refused)?;
        let listed = frames(request.runs);
        let (returned, given) = match request.kind {
            Kind::Inflate => (Vec::new(), listed),
            _ => (listed, Vec::new()),
        };
        let (kind, via, slot) = (request.kind, request.via, request.slot);
        let job = Job {
            kind,
            via,
            slot,
            returned,
            given,
            unused: Vec::new(),
            seen: false,
        };
        self.accept(job, done)
    }

    fn kick(&mut self, _: usize) -> Result<bool, TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Refused)?;
        self.queue.iter_mut().for_each(|job| job.seen = true);
        Ok(self.rng.chance(self.faults.lie))
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Refused)?;
        self.unit = Some(unit);
        Ok(())
    }

    fn reap(&mut self, _: Completer<'_>) -> Result<usize, TransportErrorKind> {
        // Answers come from `work`, as from another processor. That it is dead shows
        // by the other calls.
        Ok(0)
    }
}

impl Migrate for Host {
    fn migration(&self) -> Migration {
        self.migration
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        self.balloon_calls(TransportErrorKind::Refused)?;
        let job = Job {
            kind: Kind::Migrate,
            via: Via::Inflate,
            slot: request.slot,
            returned: frames(request.from),
            given: frames(request.to),
            unused: Vec::new(),
            seen: false,
        };
        self.accept(job, done)
    }
}
