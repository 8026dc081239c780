//! Which holes move where.
//!
//! A round surveys the zone block by block into one word each, chooses the
//! blocks to empty of holes, and hands out batches: holes of the block that
//! needs the fewest moves first, free frames for them from the end of the zone.
//!
//! With F free frames and C blocks without a frame in use, no plan completes
//! more than k = min(C, F / 512) blocks, and each completed block costs one move
//! for each of its holes; so the k blocks with the fewest holes are the fewest
//! moves there are, and the rest of the zone has room for what they lose. Among
//! plans that cost at most 1/16 more the one with blocks nearest the start of
//! the zone is taken: free memory grows together there, holes at the end.

use crate::policy::Budget;
use crate::source::{FrameSource, Ledger, Via};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

use super::block::{Block, CELLS, FRAMES, Map, Reading, Role};
use super::report::{Fragmentation, Report};

/// Moves a plan may cost above the fewest, as a shift: 1/16.
const SLACK_SHIFT: u32 = 4;

/// Words looked at for one unit of a budget.
const WORDS_PER_UNIT: usize = 1024;

/// Frames of a block that are looked at together for free ones.
const WINDOW: u64 = 64;

/// A block has 0 to 512 holes.
const CLASSES: usize = CELLS + 1;

/// The plan of one zone, over one `u32` for each 2 MiB block.
#[derive(Debug)]
pub(super) struct Plan<M> {
    words: M,
    zone: FrameRange,
    blocks: usize,
    state: State,
    /// Candidate blocks by number of holes; once chosen, sources only.
    classes: [u32; CLASSES],
    seen: Fragmentation,
    report: Report,
    /// The block that is being emptied, and what it was seen to hold.
    source: Option<Source>,
    /// The block that is being looked at.
    reading: Option<Reading>,
    /// Where to look for the next one: class and block.
    next_source: (usize, usize),
    target: Cursor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Blocks below this one are surveyed; before the moves or after.
    Survey {
        next: usize,
        after: bool,
    },
    /// Looks for the highest class that may be taken in order of address.
    Weigh(Weigh),
    /// Marks the sources of the chosen plan.
    Mark {
        next: usize,
        choice: Choice,
        left: u64,
    },
    Move,
}

/// A choice of `k` blocks: all below class `sure`, the rest of `k` by address
/// among classes up to `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    sure: u32,
    limit: u32,
    /// Blocks to take by address.
    fill: u64,
}

impl Choice {
    /// Whether a block belongs to the choice; `left` counts down `fill`.
    fn takes(self, block: Block, left: &mut u64) -> bool {
        if !block.can_complete() || block.holes > self.limit {
            return false;
        }
        if block.holes < self.sure {
            return true;
        }
        let taken = *left > 0;
        *left -= u64::from(taken);
        taken
    }
}

/// Bisects the limit of a choice that goes by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weigh {
    cheapest: Choice,
    /// Moves a plan may cost.
    allowed: u64,
    /// Blocks to choose, those that are whole already apart.
    fill: u64,
    /// Highest limit known to be cheap enough (below the cheapest choice's:
    /// none), lowest known not to be.
    low: u32,
    bad: u32,
    next: usize,
    left: u64,
    cost: u64,
}

/// Where free frames are taken: from the end, twice over.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// Blocks above this one are used up, and so is this one, but for its `rest`.
    below: usize,
    /// Frames of it at and above this are used up.
    rest: Option<Pfn>,
    /// First blocks that have holes already, then those that do not.
    unbroken: bool,
}

/// A block that loses its holes.
#[derive(Clone, Copy, Debug)]
struct Source {
    at: usize,
    /// The holes not asked for yet, as they were when it was read.
    map: Option<Map>,
    /// It was not read since the survey.
    fresh: bool,
    /// It gave none the last time.
    in_vain: bool,
}

impl Source {
    const fn fresh(at: usize) -> Self {
        Self {
            at,
            map: None,
            fresh: true,
            in_vain: false,
        }
    }
}

impl Cursor {
    const fn at(below: usize, unbroken: bool) -> Self {
        Self {
            below,
            rest: None,
            unbroken,
        }
    }
}

/// The budget is spent.
#[derive(Debug)]
pub(super) struct Spent;

/// Words for a zone: one for each 2 MiB block it touches.
pub(super) const fn words_of(zone: FrameRange) -> u64 {
    zone.end().get().div_ceil(FRAMES) - zone.start().get() / FRAMES
}

impl<M: AsMut<[u32]>> Plan<M> {
    pub(super) fn new(mut words: M, zone: FrameRange) -> Option<Self> {
        let blocks = usize::try_from(words_of(zone)).ok()?;
        (words.as_mut().len() >= blocks).then_some(Self {
            words,
            zone,
            blocks,
            state: State::Idle,
            classes: [0; CLASSES],
            seen: Fragmentation::NONE,
            report: NOTHING,
            source: None,
            reading: None,
            next_source: (1, 0),
            target: Cursor::at(blocks, false),
        })
    }

    pub(super) fn start(&mut self) {
        self.report = NOTHING;
        self.begin_survey(false);
    }

    /// Ends the moves of this round; it closes with a survey.
    pub(super) fn finish(&mut self) {
        if self.state == State::Move {
            self.begin_survey(true);
        } else if !matches!(self.state, State::Survey { after: true, .. }) {
            self.state = State::Idle;
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub(super) fn is_moving(&self) -> bool {
        self.state == State::Move
    }

    pub(super) const fn report(&self) -> Report {
        self.report
    }

    pub(super) const fn count_move(&mut self, moves: FrameCount) {
        self.report.moves = self.report.moves.saturating_add(moves);
    }

    fn begin_survey(&mut self, after: bool) {
        self.state = State::Survey { next: 0, after };
        self.seen = Fragmentation::NONE;
        self.classes = [0; CLASSES];
        self.source = None;
        self.reading = None;
        self.next_source = (1, 0);
        self.target = Cursor::at(self.blocks, false);
    }

    /// Surveys and plans as far as the budget reaches; true once moves can be
    /// asked for, or nothing is left to do.
    pub(super) fn prepare<S: FrameSource + Ledger>(
        &mut self,
        source: &mut S,
        budget: &mut Budget,
    ) -> bool {
        loop {
            match self.state {
                State::Idle | State::Move => return true,
                State::Survey { next, after } => {
                    if !self.survey(source, next, after, budget) {
                        return false;
                    }
                }
                _ if !budget.spend() => return false,
                State::Weigh(weigh) => self.weigh(weigh),
                State::Mark { next, choice, left } => self.mark(next, choice, left),
            }
        }
    }

    /// Surveys one block; false if the budget is spent before.
    fn survey<S: FrameSource + Ledger>(
        &mut self,
        source: &mut S,
        next: usize,
        after: bool,
        budget: &mut Budget,
    ) -> bool {
        let Some(part) = self.part(next) else {
            self.surveyed(after);
            return true;
        };
        let Some(map) = Reading::go_on(&mut self.reading, part, source, budget) else {
            return false;
        };
        let block = map.summary();
        self.seen.add(block);
        if block.can_complete() {
            self.count_class(block);
        }
        self.store(next, block);
        self.state = State::Survey {
            next: next + 1,
            after,
        };
        true
    }

    fn surveyed(&mut self, after: bool) {
        self.report.after = self.seen;
        self.state = State::Idle;
        if after {
            return;
        }
        self.report.before = self.seen;
        let possible = self.seen.possible_blocks();
        let Some(cheapest) = self.cheapest(possible) else {
            return;
        };
        let fewest = self.report.fewest_moves.get();
        if fewest == 0 {
            return;
        }
        let fill = possible.saturating_sub(self.class(0).into());
        self.state = State::Weigh(Weigh {
            cheapest,
            allowed: fewest + (fewest >> SLACK_SHIFT),
            fill,
            low: cheapest.limit.saturating_sub(1),
            bad: self.highest_class() + 1,
            next: 0,
            left: fill,
            cost: 0,
        });
    }

    /// The `possible` blocks with the fewest holes, by class alone.
    fn cheapest(&mut self, possible: u64) -> Option<Choice> {
        let (mut left, mut moves) = (possible, 0);
        for (class, &blocks) in (0u32..).zip(&self.classes) {
            let taken = left.min(blocks.into());
            moves += taken * u64::from(class);
            if taken == left {
                self.report.fewest_moves = FrameCount::new(moves);
                return Some(Choice {
                    sure: class,
                    limit: class,
                    fill: taken,
                });
            }
            left -= taken;
        }
        None
    }

    fn highest_class(&self) -> u32 {
        let used = (0u32..)
            .zip(&self.classes)
            .filter(|&(_, &blocks)| blocks > 0);
        used.map(|(class, _)| class).last().unwrap_or(0)
    }

    /// Adds up what the choice under trial costs, then tries the next.
    fn weigh(&mut self, mut weigh: Weigh) {
        let choice = weigh.trial();
        let end = self.blocks.min(weigh.next + WORDS_PER_UNIT);
        for at in weigh.next..end {
            let block = self.load(at);
            if choice.takes(block, &mut weigh.left) {
                weigh.cost += u64::from(block.holes);
            }
        }
        weigh.next = end;
        if end == self.blocks {
            if weigh.left == 0 && weigh.cost <= weigh.allowed {
                weigh.low = choice.limit;
            } else {
                weigh.bad = choice.limit;
            }
            (weigh.next, weigh.cost, weigh.left) = (0, 0, weigh.fill);
            if weigh.is_settled() {
                let choice = weigh.decision();
                self.classes = [0; CLASSES];
                self.state = State::Mark {
                    next: 0,
                    choice,
                    left: choice.fill,
                };
                return;
            }
        }
        self.state = State::Weigh(weigh);
    }

    fn mark(&mut self, next: usize, choice: Choice, mut left: u64) {
        let end = self.blocks.min(next + WORDS_PER_UNIT);
        for at in next..end {
            let mut block = self.load(at);
            if choice.takes(block, &mut left) {
                block.role = Role::Source;
                self.count_class(block);
                self.store(at, block);
            }
        }
        self.state = if end == self.blocks {
            State::Move
        } else {
            State::Mark {
                next: end,
                choice,
                left,
            }
        };
    }

    /// The path of the holes that move next, and how many of them are known; `None` if all
    /// blocks have been asked for theirs.
    pub(super) fn next_source<S: FrameSource + Ledger>(
        &mut self,
        source: &mut S,
        budget: &mut Budget,
    ) -> Result<Option<(Via, FrameCount)>, Spent> {
        loop {
            let mut now = match self.source {
                Some(now) => now,
                None => match self.find_source(budget)? {
                    Some(at) => Source::fresh(at),
                    None => return Ok(None),
                },
            };
            self.source = Some(now);
            let Some(part) = self.part(now.at) else {
                return Ok(None);
            };
            let read = now.map.is_none();
            let map = match now.map {
                Some(map) => map,
                None => Reading::go_on(&mut self.reading, part, source, budget).ok_or(Spent)?,
            };
            // What came into use since the survey cannot be moved away.
            let lost = now.fresh && !map.summary().can_complete();
            self.report.lost_blocks += u64::from(lost);
            let held = |&via: &Via| map.held(via).count() > 0;
            let via = Via::ALL.into_iter().find(held).filter(|_| !lost);
            now.fresh = false;
            now.map = via.map(|_| map);
            // All were asked for: what came back as it was is asked for again.
            self.source = (via.is_some() || !read).then_some(now);
            if let Some(via) = via {
                let holes = FrameCount::new(map.held(via).count().into());
                return Ok(Some((via, holes)));
            }
        }
    }

    /// The holes known of the block named last, to be asked for.
    pub(super) const fn holes(&mut self) -> Option<&mut Map> {
        match &mut self.source {
            Some(source) => source.map.as_mut(),
            None => None,
        }
    }

    /// The block named last gave some of its holes, or none. One that gives none twice keeps
    /// them.
    pub(super) const fn source_gave(&mut self, some: bool) {
        if let Some(source) = &mut self.source
            && (some || !source.in_vain)
        {
            source.in_vain = !some;
            if !some {
                // They may have left since it was read.
                source.map = None;
            }
            return;
        }
        self.source = None;
        self.report.lost_blocks += 1;
    }

    /// The next source in order of class, then address.
    fn find_source(&mut self, budget: &mut Budget) -> Result<Option<usize>, Spent> {
        loop {
            let (class, from) = self.next_source;
            let Some(&blocks) = self.classes.get(class) else {
                return Ok(None);
            };
            if blocks == 0 || from >= self.blocks {
                self.next_source = (class + 1, 0);
                continue;
            }
            if !budget.spend() {
                return Err(Spent);
            }
            let end = self.blocks.min(from + WORDS_PER_UNIT);
            let wanted = |&at: &usize| {
                let block = self.load(at);
                block.role == Role::Source && block.holes as usize == class
            };
            let found = (from..end).find(wanted);
            self.next_source.1 = found.map_or(end, |at| at + 1);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Frames to take free ones from: the last of a block that are not used up. `None` if the
    /// budget is spent or there is no further block.
    pub(super) fn target(&mut self, budget: &mut Budget) -> Option<FrameRange> {
        loop {
            if let Some(window) = self.window() {
                return Some(window);
            }
            let Cursor {
                below, unbroken, ..
            } = self.target;
            if !budget.spend() {
                return None;
            }
            let low = below.saturating_sub(WORDS_PER_UNIT);
            let wanted = |&at: &usize| {
                let block = self.load(at);
                block.role == Role::Target && block.free > 0 && unbroken == (block.holes == 0)
            };
            if let Some(at) = (low..below).rev().find(wanted) {
                self.target.below = at;
                self.target.rest = self.part(at).map(FrameRange::end);
                continue;
            }
            self.target.below = low;
            if low == 0 {
                if unbroken {
                    return None;
                }
                self.target = Cursor::at(self.blocks, true);
            }
        }
    }

    /// Whether every block has been asked for its free frames.
    pub(super) const fn is_out_of_targets(&self) -> bool {
        self.target.below == 0 && self.target.rest.is_none() && self.target.unbroken
    }

    /// The frames named last are used up.
    pub(super) fn skip_target(&mut self) {
        let first = self.part(self.target.below).map(FrameRange::start);
        let next = self.window().map(FrameRange::start);
        self.target.rest = next.filter(|&rest| Some(rest) != first);
    }

    /// The last frames of the target that are not used up.
    fn window(&self) -> Option<FrameRange> {
        let rest = self.target.rest?;
        let part = self.part(self.target.below)?;
        let last = rest.get().checked_sub(1)?;
        let low = (last / WINDOW * WINDOW).max(part.start().get());
        FrameRange::new(Pfn::new(low), FrameCount::new(rest.get() - low))
    }

    /// The frames of a block that lie in the zone.
    fn part(&self, at: usize) -> Option<FrameRange> {
        if at >= self.blocks {
            return None;
        }
        let first = self.zone.start().get() / FRAMES + at as u64;
        let block = FrameRange::new(Pfn::new(first * FRAMES), Order::SUPERPAGE.frames())?;
        block.intersection(self.zone)
    }

    fn class(&self, class: usize) -> u32 {
        self.classes.get(class).copied().unwrap_or(0)
    }

    fn count_class(&mut self, block: Block) {
        if let Some(class) = self.classes.get_mut(block.holes as usize) {
            *class += 1;
        }
    }

    fn load(&mut self, at: usize) -> Block {
        Block::unpack(self.words.as_mut().get(at).copied().unwrap_or(0))
    }

    fn store(&mut self, at: usize, block: Block) {
        if let Some(word) = self.words.as_mut().get_mut(at) {
            *word = block.pack();
        }
    }
}

impl Weigh {
    /// Blocks that are whole already, then by address up to a limit.
    const fn trial(self) -> Choice {
        Choice {
            sure: 1,
            limit: self.low + (self.bad - self.low) / 2,
            fill: self.fill,
        }
    }

    const fn is_settled(self) -> bool {
        self.bad - self.low <= 1
    }

    const fn decision(self) -> Choice {
        if self.low < self.cheapest.limit {
            self.cheapest
        } else {
            Choice {
                sure: 1,
                limit: self.low,
                fill: self.fill,
            }
        }
    }
}

const NOTHING: Report = Report {
    before: Fragmentation::NONE,
    after: Fragmentation::NONE,
    moves: FrameCount::ZERO,
    fewest_moves: FrameCount::ZERO,
    lost_blocks: 0,
};
