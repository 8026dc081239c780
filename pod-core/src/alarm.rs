//! The race, watched: when does the cache run dry, and is the balloon done before that?
//!
//! Without a working balloon a guest with promises dies, and the only sign of it used to be the
//! crash. The engine counts what leaves the cache and what the balloon pays off; the host says
//! what time it is.

use core::time::Duration;

use crate::{Event, FrameCount, Host, Pod};

/// How the race stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every promise has its frame.
    Safe,
    /// Promises outnumber the cache; at these rates the balloon wins.
    Racing,
    /// At these rates the cache runs dry first, or the balloon does not move at all.
    Losing,
    /// The cache is empty: every further touch has to wait for reclaimed pages.
    Dry,
}

/// Estimate of the race between guest and balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alarm {
    /// How the race stands.
    pub level: Level,
    /// Promises without a frame.
    pub debt: FrameCount,
    /// Frames left.
    pub cache: FrameCount,
    /// When the cache is empty at the present rate; `None` if it does not shrink.
    pub dry_in: Option<Duration>,
    /// When the balloon has paid the debt at the present rate; `None` if it does not move.
    pub even_in: Option<Duration>,
}

/// Rates in thousandths of a frame per second, and the counters at the last look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AlarmState {
    seen: Option<(Duration, u64, u64)>,
    drain: u64,
    paid: u64,
    level: Level,
    /// Frames by which releases to holes made the debt smaller.
    pub(crate) given: u64,
    /// Frames that went to the cache with a promise for each: the debt stays what it was.
    pub(crate) returned: u64,
}

impl AlarmState {
    pub(crate) const QUIET: Self = Self {
        seen: None,
        drain: 0,
        paid: 0,
        level: Level::Safe,
        given: 0,
        returned: 0,
    };
}

/// Rate of `amount` in `span`, in thousandths per second.
fn rate(amount: u64, span: Duration) -> u64 {
    let nanos = span.as_nanos().max(1);
    let scaled = u128::from(amount) * 1_000_000_000_000 / nanos;
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

fn time(amount: u64, rate: u64) -> Option<Duration> {
    let millis =
        u128::from(amount) * 1_000_000 / u128::from(core::num::NonZeroU64::new(rate)?.get());
    Some(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

impl Pod<'_> {
    /// Looks at the race, at a time of the host's clock. Call it a few times per second while
    /// there is debt; a change of level is also an event.
    pub fn observe<H: Host + ?Sized>(&mut self, host: &mut H, now: Duration) -> Alarm {
        let totals = self.st.totals;
        let state = &mut self.st.alarm;
        // Net outflow: reclaimed frames, and those reported free, come back without changing
        // the debt. Only what becomes a hole pays it.
        let back = totals.reclaimed.saturating_add(state.returned);
        let drained = totals.populated.saturating_sub(back);
        let paid = state.given;
        match state.seen {
            Some((then, d, p)) if now > then => {
                let span = now.saturating_sub(then);
                let smooth = |old: u64, new: u64| (old / 2).saturating_add(new / 2);
                state.drain = smooth(state.drain, rate(drained.saturating_sub(d), span));
                state.paid = smooth(state.paid, rate(paid.saturating_sub(p), span));
                state.seen = Some((now, drained, paid));
            }
            Some(_) => {}
            None => state.seen = Some((now, drained, paid)),
        }
        let (drain, balloon, before) = (state.drain, state.paid, state.level);
        let (debt, cache) = (self.debt(), self.st.cache.count());
        let dry_in = time(cache, drain);
        let even_in = time(debt, balloon);
        let level = match (debt, cache, dry_in, even_in) {
            (0, ..) => Level::Safe,
            (_, 0, ..) => Level::Dry,
            (_, _, None, _) => Level::Racing,
            (_, _, Some(dry), Some(even)) if even < dry => Level::Racing,
            (_, _, Some(_), _) => Level::Losing,
        };
        self.st.alarm.level = level;
        let alarm = Alarm {
            level,
            debt: FrameCount::new(debt),
            cache: FrameCount::new(cache),
            dry_in,
            even_in,
        };
        if level != before {
            host.event(Event::Pressure(alarm));
        }
        alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Content, World};
    use crate::{Config, Gfn};

    #[test]
    fn the_estimate_is_what_is_left_at_the_rate_that_was_seen() {
        let mut config = Config::new(FrameCount::new(4096));
        config.slack = FrameCount::ZERO;
        let mut world = World::built(&config, 2048, 8192, 1);
        let look = |world: &mut World, second: u64| {
            world.with(|p, s| p.observe(s, Duration::from_secs(second)))
        };
        let first = look(&mut world, 0);
        assert_eq!(
            (first.level, first.debt.get(), first.dry_in),
            (Level::Racing, 2048, None)
        );
        // A superpage a second, and no balloon.
        for second in 1..=3 {
            assert!(world.write(0, Gfn::new(512 * second), Content::Data(1)));
            let alarm = look(&mut world, second);
            assert_eq!((alarm.level, alarm.even_in), (Level::Losing, None));
        }
        // The rate is a mean in which the last second counts half: 448 of 512.
        let alarm = look(&mut world, 3);
        assert_eq!(alarm.cache.get(), 512);
        assert_eq!(alarm.dry_in.map(|d| d.as_millis()), Some(1142));
        assert!(world.write(0, Gfn::new(0), Content::Data(1)));
        assert_eq!(look(&mut world, 4).level, Level::Dry);
    }

    #[test]
    fn pages_reported_free_pay_nothing_and_come_back_to_the_cache() {
        let mut config = Config::new(FrameCount::new(4096));
        config.slack = FrameCount::ZERO;
        for (kept, level) in [(0, Level::Racing), (100, Level::Losing)] {
            let mut world = World::built(&config, 2048, 8192, 1);
            world.sim.traits.max_order = crate::Order::FRAME;
            let mut at = 0;
            for second in 0..6 {
                let alarm = world.with(|p, s| p.observe(s, Duration::from_secs(second)));
                assert_eq!(alarm.even_in, None, "nobody pays");
                if second > 0 {
                    assert_eq!((alarm.level, alarm.dry_in.is_some()), (level, kept > 0));
                }
                for gfn in at..at + 200 {
                    assert!(world.write(0, Gfn::new(gfn), Content::Data(1)));
                }
                let reported = FrameCount::new(200 - kept);
                let gfn = Gfn::new(at);
                let done = world.with(|p, s| {
                    let zero = crate::Leave::Promise(crate::Pattern::ZERO);
                    p.release(s, gfn, reported, zero, &mut crate::Budget::default())
                });
                assert_eq!(done.map(|d| d.stolen), Ok(reported));
                world.sim.forget(gfn, reported.get());
                at += 200;
            }
        }
    }

    #[test]
    fn a_page_that_only_moves_pays_nothing() {
        let mut config = Config::new(FrameCount::new(4096));
        config.slack = FrameCount::ZERO;
        let mut world = World::built(&config, 2048, 8192, 1);
        assert!(world.write(0, Gfn::new(0), Content::Data(1)));
        let hole = Gfn::new(2048);
        let one = FrameCount::new(1);
        let budget = &mut crate::Budget::default();
        let given = world.with(|p, s| p.release(s, hole, one, crate::Leave::Hole, budget));
        assert!(given.is_ok());
        let look = |world: &mut World, second: u64| {
            world.with(|p, s| p.observe(s, Duration::from_secs(second)))
        };
        let debt = look(&mut world, 0).debt;
        let (from, order) = (Gfn::new(9), crate::Order::FRAME);
        let moved =
            world.with(|p, s| p.relocate(s, from, hole, order, crate::Content::Discard, budget));
        assert_eq!(moved, Ok(()));
        let alarm = look(&mut world, 1);
        assert_eq!((alarm.debt, alarm.even_in), (debt, None));
        assert_eq!(alarm.dry_in, None);
    }
}
