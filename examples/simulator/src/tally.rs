//! What runs did: a simulation in which nothing happens finds nothing.

/// What runs did, to see that they did something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) inflated: u64,
    pub(crate) deflated: u64,
    pub(crate) relieved: u64,
    pub(crate) migrated: u64,
    pub(crate) downgrades: u64,
    pub(crate) errors: u64,
    pub(crate) hinted: u64,
    pub(crate) reported: u64,
    pub(crate) statistics: u64,
    pub(crate) deaths: u64,
    pub(crate) migrations: u64,
}

impl Tally {
    pub(crate) const fn add(&mut self, other: Self) {
        self.inflated += other.inflated;
        self.deflated += other.deflated;
        self.relieved += other.relieved;
        self.migrated += other.migrated;
        self.downgrades += other.downgrades;
        self.errors += other.errors;
        self.hinted += other.hinted;
        self.reported += other.reported;
        self.statistics += other.statistics;
        self.deaths += other.deaths;
        self.migrations += other.migrations;
    }

    /// Something that never happened, so that nothing is known of it.
    pub(crate) fn never(&self) -> Option<&'static str> {
        let all = [
            (self.inflated, "an inflation"),
            (self.deflated, "a deflation"),
            (self.relieved, "relief"),
            (self.migrated, "a moved frame"),
            (self.downgrades, "a downgrade"),
            (self.errors, "a failed call"),
            (self.hinted, "a hint"),
            (self.reported, "a report"),
            (self.statistics, "statistics"),
            (self.deaths, "a dead host"),
            (self.migrations, "a live migration"),
        ];
        all.into_iter().find(|&(n, _)| n == 0).map(|(_, what)| what)
    }
}
