//! Physical addresses and the map of usable memory.
//!
//! The boot code fills a [`MemoryMap`] from what the firmware reports; page
//! tables and other early needs are [carved](MemoryMap::carve) out of it, and
//! what is left goes to the guest's allocator.

use core::fmt;
#[cfg(target_os = "none")]
use core::ptr;

use heapless::Vec;

/// Address of a byte of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next address that is a multiple of `align`, a power of two; `None`
    /// beyond the last address.
    #[must_use]
    pub const fn align_up(self, align: u64) -> Option<Self> {
        debug_assert!(align.is_power_of_two());
        match self.0.checked_add(align - 1) {
            Some(sum) => Some(Self(sum & !(align - 1))),
            None => None,
        }
    }

    /// The last multiple of `align`, a power of two, up to this address.
    #[must_use]
    pub const fn align_down(self, align: u64) -> Self {
        debug_assert!(align.is_power_of_two());
        Self(self.0 & !(align - 1))
    }
}

#[cfg(target_os = "none")]
impl PhysAddr {
    /// Where the memory behind a pointer is: memory is mapped one to one.
    #[must_use]
    pub fn of<T: ?Sized>(place: *const T) -> Self {
        Self(place.cast::<u8>().expose_provenance() as u64)
    }

    /// Where the byte is mapped: one to one.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "addresses have the width of pointers"
    )]
    pub(crate) fn as_mut_ptr<T>(self) -> *mut T {
        ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    /// As [`as_mut_ptr`](Self::as_mut_ptr), for reading.
    pub(crate) fn as_ptr<T>(self) -> *const T {
        self.as_mut_ptr::<T>().cast_const()
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A half-open range of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// From `start` up to, not including, `end`; empty if `end` is not beyond
    /// `start`.
    #[must_use]
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Self {
        let end = if end.0 < start.0 { start } else { end };
        Self { start, end }
    }

    /// `bytes` from `start` on, cut at the end of the address space.
    #[must_use]
    pub const fn sized(start: PhysAddr, bytes: u64) -> Self {
        Self {
            start,
            end: PhysAddr(start.0.saturating_add(bytes)),
        }
    }

    /// First address.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// First address beyond.
    #[must_use]
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// The largest range within this one whose ends are multiples of `align`.
    #[must_use]
    pub const fn shrink_to(self, align: u64) -> Self {
        match self.start.align_up(align) {
            Some(start) => Self::new(start, self.end.align_down(align)),
            None => Self {
                start: self.end,
                end: self.end,
            },
        }
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

/// More ranges than a [`MemoryMap`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFull;

impl fmt::Display for MapFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory map holds only {} ranges", MemoryMap::CAPACITY)
    }
}

impl core::error::Error for MapFull {}

/// Disjoint ranges of usable memory, rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    ranges: Vec<PhysRange, { Self::CAPACITY }>,
}

impl MemoryMap {
    /// Ranges a map can hold. Firmware reports about ten.
    pub const CAPACITY: usize = 64;

    /// A map without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges, rising.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PhysRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Usable bytes in total.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.iter().map(PhysRange::bytes).sum()
    }

    /// Whether any byte of `range` is in the map.
    #[must_use]
    pub fn overlaps(&self, range: PhysRange) -> bool {
        self.iter().any(|known| known.overlaps(range))
    }

    /// Adds memory; what is in the map already is not counted twice.
    ///
    /// # Errors
    /// When the map is full; it is unchanged then.
    pub fn add(&mut self, range: PhysRange) -> Result<(), MapFull> {
        if range.is_empty() {
            return Ok(());
        }
        let mut merged = range;
        let mut ranges = Vec::new();
        for known in self.iter() {
            if known.start <= merged.end && merged.start <= known.end {
                merged = PhysRange {
                    start: known.start.min(merged.start),
                    end: known.end.max(merged.end),
                };
            } else {
                ranges.push(known).map_err(|_| MapFull)?;
            }
        }
        let at = ranges
            .iter()
            .take_while(|known| known.start < merged.start)
            .count();
        ranges.insert(at, merged).map_err(|_| MapFull)?;
        self.ranges = ranges;
        Ok(())
    }

    /// Takes `hole` out of the map.
    ///
    /// # Errors
    /// When the pieces no longer fit; the map is unchanged then.
    pub fn exclude(&mut self, hole: PhysRange) -> Result<(), MapFull> {
        let mut ranges = Vec::new();
        for known in self.iter() {
            let pieces = if known.overlaps(hole) {
                [
                    PhysRange::new(known.start, hole.start),
                    PhysRange::new(hole.end, known.end),
                ]
            } else {
                [known, PhysRange::new(known.end, known.end)]
            };
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                ranges.push(piece).map_err(|_| MapFull)?;
            }
        }
        self.ranges = ranges;
        Ok(())
    }

    /// Takes `bytes` out of the lowest range that has room for them at a
    /// multiple of `align`.
    ///
    /// Lowest, so that early tables lie beside the kernel's image and the rest
    /// stays in one piece.
    #[must_use]
    pub fn carve(&mut self, bytes: u64, align: u64) -> Option<PhysRange> {
        let found = self.iter().find_map(|known| {
            let start = known.start.align_up(align)?;
            let end = PhysAddr(start.0.checked_add(bytes)?);
            (end <= known.end).then_some(PhysRange { start, end })
        })?;
        self.exclude(found).ok()?;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec as StdVec;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end))
    }

    fn ranges(map: &MemoryMap) -> StdVec<(u64, u64)> {
        map.iter().map(|r| (r.start.0, r.end.0)).collect()
    }

    #[test]
    fn adding_sorts_and_merges() {
        let mut map = MemoryMap::new();
        for (start, end) in [
            (0x5000, 0x6000),
            (0x1000, 0x2000),
            (0x2000, 0x3000),
            (0x2800, 0x4000),
        ] {
            map.add(range(start, end)).unwrap();
        }
        assert_eq!(ranges(&map), [(0x1000, 0x4000), (0x5000, 0x6000)]);
        assert_eq!(map.bytes(), 0x4000);
        // A bridge over both.
        map.add(range(0x3fff, 0x5001)).unwrap();
        assert_eq!(ranges(&map), [(0x1000, 0x6000)]);
    }

    #[test]
    fn excluding_cuts_splits_and_removes() {
        let mut map = MemoryMap::new();
        map.add(range(0x1000, 0x5000)).unwrap();
        map.add(range(0x8000, 0x9000)).unwrap();
        map.exclude(range(0x2000, 0x3000)).unwrap();
        assert_eq!(
            ranges(&map),
            [(0x1000, 0x2000), (0x3000, 0x5000), (0x8000, 0x9000)]
        );
        map.exclude(range(0x0, 0x1800)).unwrap();
        map.exclude(range(0x4800, 0xa000)).unwrap();
        assert_eq!(ranges(&map), [(0x1800, 0x2000), (0x3000, 0x4800)]);
    }

    #[test]
    fn carving_is_aligned_and_lowest() {
        let mut map = MemoryMap::new();
        map.add(range(0x1000, 0x2000)).unwrap();
        map.add(range(0x5800, 0x9000)).unwrap();
        assert_eq!(map.carve(0x2000, 0x1000), Some(range(0x6000, 0x8000)));
        assert_eq!(
            ranges(&map),
            [(0x1000, 0x2000), (0x5800, 0x6000), (0x8000, 0x9000)]
        );
        assert_eq!(map.carve(0x2000, 0x1000), None);
        assert_eq!(map.carve(u64::MAX, 0x1000), None);
    }

    #[test]
    fn a_full_map_stays_as_it_was() {
        let mut map = MemoryMap::new();
        for n in 0..64 {
            map.add(range(n * 0x2000, n * 0x2000 + 0x1000)).unwrap();
        }
        let before = map.clone();
        assert_eq!(map.add(range(0x100_0000, 0x100_1000)), Err(MapFull));
        assert_eq!(map.exclude(range(0x400, 0x800)), Err(MapFull));
        assert_eq!(map, before);
    }

    #[test]
    fn ranges_shrink_to_whole_frames() {
        assert_eq!(
            range(0x1001, 0x4fff).shrink_to(0x1000),
            range(0x2000, 0x4000)
        );
        assert!(range(0x1001, 0x1fff).shrink_to(0x1000).is_empty());
        assert!(range(u64::MAX - 1, u64::MAX).shrink_to(0x1000).is_empty());
        assert!(range(5, 3).is_empty());
    }
}
