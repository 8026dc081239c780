//! The tour: targets that every guest follows, simulated and real alike.

use anyhow::{Context as _, Result, ensure};

/// The same that the simulator's tests send through each fake host.
const TOUR: &str = include_str!("../../../examples/simulator/tour.txt");

/// A target of the tour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leg {
    /// The balloon's size in MiB.
    pub(crate) mib: u64,
    /// Stands long enough to be reached; the others are overtaken.
    pub(crate) stands: bool,
}

/// The whole tour. It ends with an empty balloon.
pub(crate) fn legs() -> Result<Vec<Leg>> {
    let lines = TOUR.lines().filter(|line| !line.starts_with('#'));
    let targets = lines.map(|line| {
        let (at, mib) = line.trim().split_once(' ').context("two numbers a line")?;
        Ok((at.parse()?, mib.trim().parse()?))
    });
    let targets: Vec<(u64, u64)> = targets.collect::<Result<_>>()?;
    ensure!(
        targets.last().is_some_and(|&(_, mib)| mib == 0),
        "the tour is to end with an empty balloon"
    );
    let next = targets.iter().skip(1).map(|&(at, _)| at);
    let legs = targets.iter().zip(next.chain([u64::MAX]));
    Ok(legs
        .map(|(&(at, mib), next)| Leg {
            mib,
            stands: next - at >= 1000,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tour_has_targets_that_stand_and_targets_that_do_not() {
        let legs = legs().unwrap();
        assert!(legs.iter().filter(|leg| leg.stands).count() >= 5);
        assert!(legs.iter().any(|leg| !leg.stands));
        assert!(legs.iter().all(|leg| leg.mib <= 40), "for 64 MiB");
    }
}
