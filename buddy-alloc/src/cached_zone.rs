//! The locked front: a zone behind the caller's lock, per-CPU caches before it.

use core::fmt;

use crate::cache::{CpuCache, class_of, orders};
use crate::cached_bits::{self, CachedBits};
use crate::error::{AllocError, AtError, ConfigError, FreeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::lock::Lock;
use crate::zone::Zone;
use crate::zone::alloc::Preference;
use crate::zone::balloon::Shortage;
use crate::zone::batch::FreeBatchError;
use crate::zone::percpu::NodeView;
use crate::zone::sink::RangeSink;

/// Number of a CPU, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Cpu(u32);

impl Cpu {
    /// The CPU with this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Most blocks moved under one hold of the lock when a cache is filled.
const BATCH: usize = 32;

/// A zone for several CPUs: a lock, and last-in-first-out caches before it.
///
/// Blocks of order 0 to 3 and 9 pass through the caches of the CPU the caller names; everything
/// else, and every other operation ([`with`](Self::with)), takes the lock. The caller names the
/// CPU it runs on and stays on it during the call ("pins"), with interrupts masked if their
/// handlers allocate too. A CPU number the front has no cache for goes straight to the lock.
///
/// Naming a wrong CPU, or being interrupted by another allocation on the same CPU, may strand a
/// block in a cache until [`recover`](Self::recover); it never hands a block to two owners.
///
/// All checks of [`Zone::free`] hold here, for blocks that wait in a cache too; of two frees of one
/// block at the same moment one is refused.
pub struct CachedZone<'m, L, const CPUS: usize> {
    lock: L,
    nodes: NodeView<'m>,
    bits: CachedBits<'m>,
    caches: [CpuCache; CPUS],
}

impl<L, const CPUS: usize> fmt::Debug for CachedZone<'_, L, CPUS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedZone")
            .field("cpus", &CPUS)
            .finish_non_exhaustive()
    }
}

impl CachedZone<'_, (), 0> {
    /// 64-bit words of memory the caches of a span need: one bit per frame.
    #[must_use]
    pub const fn words(span: FrameRange) -> usize {
        let words = cached_bits::words(span);
        #[expect(clippy::cast_possible_truncation, reason = "checked")]
        if words > usize::MAX as u64 {
            usize::MAX
        } else {
            words as usize
        }
    }
}

impl<'m, L: Lock<Zone<'m>>, const CPUS: usize> CachedZone<'m, L, CPUS> {
    /// Puts caches in front of a locked zone, once in the life of the zone. Clears the memory.
    ///
    /// # Errors
    /// [`ConfigError::Metadata`] if the memory is shorter than [`words`](CachedZone::words),
    /// [`ConfigError::Cached`] if the zone has caches already.
    pub fn new(lock: L, memory: &'m mut [u64]) -> Result<Self, ConfigError> {
        memory.fill(0);
        let (bits, nodes) = lock.with(|zone| {
            let bits = CachedBits::new(memory, zone.span()).ok_or(ConfigError::Metadata)?;
            zone.attach(bits)?;
            Ok((bits, zone.nodes()))
        })?;
        Ok(Self {
            lock,
            nodes,
            bits,
            caches: core::array::from_fn(|_| CpuCache::new()),
        })
    }

    /// Runs `f` on the zone under the lock: everything the front has no call of its own for.
    ///
    /// Blocks in the caches count as used there. Drain first where that matters.
    ///
    /// The zone stays where it is: the caches know its nodes and bits. With another zone put in its
    /// place (`mem::replace`, or past the front in the caller's lock) frames may get two owners.
    pub fn with<R>(&self, f: impl FnOnce(&mut Zone<'m>) -> R) -> R {
        self.lock.with(f)
    }

    /// Allocates a block, from the cache if it can.
    ///
    /// With nothing large enough behind the lock, all caches are drained before giving up: each such
    /// call looks at up to 248 entries per CPU and releases what is there, under one hold of the
    /// lock. `Unpopulated` demands bypass the caches, which hold used memory.
    ///
    /// # Errors
    /// See [`AllocError`].
    #[inline]
    pub fn allocate(
        &self,
        cpu: Cpu,
        order: Order,
        preference: Preference,
    ) -> Result<Frame, AllocError> {
        // The commonest case alone is worth being inlined.
        if order == Order::FRAME
            && preference != Preference::Unpopulated
            && let Some(frame) = self.pop(cpu, 0, 0)
        {
            return Ok(frame);
        }
        self.allocate_other(cpu, order, preference)
    }

    /// The newest block in a CPU's cache, if its entry is good.
    #[inline(always)]
    fn pop(&self, cpu: Cpu, class: usize, order: u32) -> Option<Frame> {
        let entry = self.caches.get(cpu.0 as usize)?.pop(class)?;
        self.claim(entry, order)
    }

    /// Frees a block, into the cache if it can.
    ///
    /// # Errors
    /// See [`FreeError`]; nothing is changed then.
    #[inline]
    pub fn free(&self, cpu: Cpu, frame: Frame, order: Order) -> Result<(), FreeError> {
        if order == Order::FRAME
            && let Some(answer) = self.push(cpu, frame, 0, 0)
        {
            return answer;
        }
        self.free_other(cpu, frame, order)
    }

    /// Frees into a CPU's cache; `None` for what does not go there.
    #[inline(always)]
    fn push(
        &self,
        cpu: Cpu,
        frame: Frame,
        class: usize,
        order: u32,
    ) -> Option<Result<(), FreeError>> {
        let cache = self.caches.get(cpu.0 as usize)?;
        let entry = self.nodes.entry(frame.get());
        let bit = self.bits.bit(entry)?;
        // Both tables are looked up at once; the locked operation waits for the other.
        bit.prefetch();
        let peek = self.nodes.peek(entry)?;
        let node = peek.get();
        if !node.is_used_head(entry % 2 == 1, order) {
            return None;
        }
        if !bit.put() {
            return Some(Err(FreeError::DoubleFree));
        }
        if peek.get() != node && !self.nodes.is_used_head(entry, order) {
            return Some(self.refused(entry, order));
        }
        if !cache.push(class, entry) {
            self.push_drained(cache, class, entry);
        }
        Some(Ok(()))
    }

    /// Another free of the block was quicker, or is about to be.
    #[cold]
    fn refused(&self, entry: usize, order: u32) -> Result<(), FreeError> {
        let frame = self.nodes.frame(entry);
        self.lock.with(|zone| zone.refused_free(frame, order))
    }

    /// As [`Zone::allocate_at`]; drains the caches if the block is not free at once, at the cost
    /// that [`allocate`](Self::allocate) states.
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn allocate_at(&self, frame: Frame, order: Order) -> Result<(), AtError> {
        self.lock.with(|zone| match zone.allocate_at(frame, order) {
            Err(AtError::NotFree) => {
                self.drain_all_into(zone);
                zone.allocate_at(frame, order)
            }
            answer => answer,
        })
    }

    /// As [`Zone::allocate_batch`], past the caches; drains them if that is what it takes.
    pub fn allocate_batch<S: RangeSink>(
        &self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
    ) -> Shortage {
        self.lock
            .with(|zone| match zone.allocate_batch(unit, preference, sink) {
                Shortage::None => Shortage::None,
                Shortage::Fragmented | Shortage::OutOfReach | Shortage::Again | Shortage::Empty => {
                    self.drain_all_into(zone);
                    zone.allocate_batch(unit, preference, sink)
                }
            })
    }

    /// As [`Zone::free_batch`], past the caches, under one hold of the lock.
    ///
    /// # Errors
    /// See [`Zone::free_batch`].
    pub fn free_batch(&self, ranges: &[FrameRange]) -> Result<(), FreeBatchError> {
        self.lock.with(|zone| zone.free_batch(ranges))
    }

    /// Gives all blocks in a CPU's caches back to the zone. May be called from any CPU.
    pub fn drain(&self, cpu: Cpu) {
        if let Some(cache) = self.caches.get(cpu.0 as usize) {
            self.lock.with(|zone| self.drain_into(zone, cache));
        }
    }

    /// Gives all blocks in all caches back: under memory pressure, before a balloon's request.
    pub fn drain_all(&self) {
        self.lock.with(|zone| self.drain_all_into(zone));
    }

    fn drain_all_into(&self, zone: &mut Zone<'m>) {
        for cache in &self.caches {
            self.drain_into(zone, cache);
        }
    }

    /// Blocks that wait in a cache and that no cache knows of go back to the zone. Costs a look at
    /// each frame of the span, under the lock; only a broken promise about the CPU makes it necessary.
    pub fn recover(&self) {
        let span = self.nodes.span();
        self.lock.with(|zone| {
            for frame in span.start().get()..span.end().get() {
                if let Some(block) = zone.evict(frame) {
                    zone.release_used(block);
                }
            }
        });
    }

    /// Entries in all caches: an upper bound. Those that were drained remotely count until their CPU
    /// comes across them.
    #[must_use]
    pub fn cached(&self) -> FrameCount {
        let entries = |cache: &CpuCache| -> u64 {
            orders()
                .enumerate()
                .map(|(class, order)| u64::from(cache.len(class)) << order)
                .sum()
        };
        FrameCount::new(self.caches.iter().map(entries).sum())
    }

    /// Makes an entry of a cache the caller's, if it still can be and is what the cache says.
    #[inline(always)]
    fn claim(&self, entry: usize, order: u32) -> Option<Frame> {
        // Found before the locked operation, read after it.
        let (peek, number) = (self.nodes.peek(entry)?, self.nodes.frame(entry));
        if !self.bits.bit(entry)?.claim() {
            return None;
        }
        if peek.get().is_used_head(entry % 2 == 1, order) {
            return Some(Frame::new(number));
        }
        self.release_claimed(number);
        None
    }

    /// A leftover entry whose frame heads a block of another order by now, waiting in another
    /// cache; or one that a drain is about to take. It has just become ours.
    #[cold]
    fn release_claimed(&self, number: u64) {
        self.lock.with(|zone| zone.free_claimed(number));
    }

    #[inline(never)]
    fn free_other(&self, cpu: Cpu, frame: Frame, order: Order) -> Result<(), FreeError> {
        let number = u32::from(order.get());
        if number != 0
            && let Some(class) = class_of(number)
            && let Some(answer) = self.push(cpu, frame, class, number)
        {
            return answer;
        }
        self.lock.with(|zone| zone.free(frame, order))
    }

    #[inline(never)]
    fn allocate_other(
        &self,
        cpu: Cpu,
        order: Order,
        preference: Preference,
    ) -> Result<Frame, AllocError> {
        let number = u32::from(order.get());
        if let Some(class) = class_of(number)
            && let Some(cache) = self.caches.get(cpu.0 as usize)
            && preference != Preference::Unpopulated
        {
            if let Some(frame) = self.pop_any(cache, class, order) {
                return Ok(frame);
            }
            return self.refill(cache, class, order, preference);
        }
        self.allocate_locked(order, preference)
    }

    #[inline(never)]
    fn refill(
        &self,
        cache: &CpuCache,
        class: usize,
        order: Order,
        preference: Preference,
    ) -> Result<Frame, AllocError> {
        let batch = (CpuCache::limit(class) / 4).max(1);
        let mut found = [0; BATCH];
        let found = found.get_mut(..batch as usize).unwrap_or_default();
        let taken = self
            .lock
            .with(|zone| zone.fill_cache(order, preference, found));
        // The first one found is the first to be popped.
        let found = found.get(..taken).unwrap_or_default();
        for &number in found.iter().rev() {
            cache.push(class, self.nodes.entry(number));
        }
        match self.pop_any(cache, class, order) {
            Some(frame) => Ok(frame),
            None => self.allocate_locked(order, preference),
        }
    }

    /// The newest block in a CPU's cache whose entry is good.
    #[inline]
    fn pop_any(&self, cache: &CpuCache, class: usize, order: Order) -> Option<Frame> {
        while let Some(entry) = cache.pop(class) {
            if let Some(frame) = self.claim(entry, u32::from(order.get())) {
                return Some(frame);
            }
        }
        None
    }

    fn allocate_locked(&self, order: Order, preference: Preference) -> Result<Frame, AllocError> {
        self.lock
            .with(|zone| match zone.allocate(order, preference) {
                Err(AllocError::Exhausted) => {
                    // Still under the lock: nobody else gets what is drained.
                    self.drain_all_into(zone);
                    zone.allocate(order, preference)
                }
                answer => answer,
            })
    }

    /// The older half of a full stack goes back to the zone.
    #[inline(never)]
    fn push_drained(&self, cache: &CpuCache, class: usize, entry: usize) {
        let half = CpuCache::limit(class).div_ceil(2);
        let order = CpuCache::order(class);
        // The lines come while others may still hold the lock.
        for entry in (0..half).filter_map(|index| cache.get(class, index)) {
            self.nodes.prefetch_release(entry, order);
        }
        self.lock
            .with(|zone| self.drain_entries(zone, cache, class, half));
        cache.drop_oldest(class, half);
        cache.push(class, entry);
    }

    fn drain_into(&self, zone: &mut Zone<'m>, cache: &CpuCache) {
        for (class, _) in orders().enumerate() {
            self.drain_entries(zone, cache, class, cache.len(class));
        }
    }

    fn drain_entries(&self, zone: &mut Zone<'m>, cache: &CpuCache, class: usize, count: u32) {
        // Neighbours are released together: they need not be merged one by one.
        let mut run = FrameRange::new(Frame::new(0), FrameCount::ZERO);
        for entry in (0..count).filter_map(|index| cache.get(class, index)) {
            let Some(block) = zone.evict(self.nodes.frame(entry)) else {
                continue;
            };
            run = if block.start() == run.end() {
                FrameRange::between(run.start(), block.end())
            } else if block.end() == run.start() {
                FrameRange::between(block.start(), run.end())
            } else {
                zone.release_used(run);
                block
            };
        }
        zone.release_used(run);
    }
}
