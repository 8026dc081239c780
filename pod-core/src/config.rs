//! What a guest's engine is set up with: geometry, rules, patterns, and the caller's storage.

use core::error::Error;
use core::fmt;

use crate::level::Block;
use crate::region::Region;
use crate::ring::Lane;
use crate::{FrameCount, Order, Pattern};

/// Leaf sizes of the second-stage table above 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    superpage: Order,
    giga: Order,
}

impl Geometry {
    /// 2 MiB and 1 GiB: x86, and Arm and RISC-V with 4 KiB granules.
    pub const COMMON: Self = Self {
        superpage: Order::SUPERPAGE,
        giga: Order::MAX,
    };

    /// Other sizes: a superpage of 2 to 512 frames, a giga page of 2 to 512 superpages.
    #[must_use]
    pub const fn new(superpage: Order, giga: Order) -> Option<Self> {
        let (s, g) = (superpage.get(), giga.get());
        if s >= 1 && s <= 9 && g > s && g - s <= 9 {
            Some(Self { superpage, giga })
        } else {
            None
        }
    }

    /// Order of a superpage.
    #[must_use]
    pub const fn superpage(&self) -> Order {
        self.superpage
    }

    /// Order of the largest leaf.
    #[must_use]
    pub const fn giga(&self) -> Order {
        self.giga
    }

    /// Superpages per giga page, as an order.
    pub(crate) const fn fan(&self) -> Order {
        Order::clamped(self.giga.get() - self.superpage.get())
    }

    pub(crate) const fn size(&self) -> u64 {
        self.superpage.frames().get()
    }
}

/// How the engine treats superpages; [`Rules::XEN`] is the baseline the benches compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Frames that come back merge into superpages and giga pages again.
    pub merge: bool,
    /// A splintered superpage keeps one machine run tied to it.
    pub tie: bool,
    /// Entries that form a superpage become one leaf.
    pub promote: bool,
    /// Promises of giga order may be populated by one leaf.
    pub giga: bool,
    /// Superpages set aside for small demands, for each node.
    pub set_aside: u8,
    /// Length of the list of recently populated regions: `None` adapts it for each virtual CPU.
    pub ring: Option<u8>,
}

impl Rules {
    /// Everything on.
    pub const FULL: Self = Self {
        merge: true,
        tie: true,
        promote: true,
        giga: true,
        set_aside: 2,
        ring: None,
    };

    /// What Xen does: two lists, 32 recent regions, nothing merges or is promoted.
    pub const XEN: Self = Self {
        merge: false,
        tie: false,
        promote: false,
        giga: false,
        set_aside: 0,
        ring: Some(32),
    };
}

/// Settings of one guest.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Frames on the guest's map, the static maximum; guest frames are `0..max`.
    pub max: FrameCount,
    /// Those of them that are the guest's RAM: less than `max` if the map has room for devices.
    pub ram: FrameCount,
    /// Frames the guest may own at most, slack included.
    pub limit: FrameCount,
    /// Frames above the target: what the balloon may be inaccurate by.
    pub slack: FrameCount,
    /// Frames only the host's own accesses may take ([`Toucher::Host`](crate::Toucher)).
    pub reserve: FrameCount,
    /// Order populated at least, where a whole aligned run is promised (64 KiB: order 4).
    pub around: Order,
    /// Leaf sizes.
    pub geometry: Geometry,
    /// Treatment of superpages.
    pub rules: Rules,
    /// Words of the fill patterns; the first is zero.
    pub patterns: [u64; Pattern::LIMIT],
    /// How many of them are in use, at least 1.
    pub patterns_used: u8,
}

impl Config {
    /// A guest with `max` frames on its map, 1 MiB of slack and everything else as usual.
    #[must_use]
    pub const fn new(max: FrameCount) -> Self {
        Self {
            max,
            ram: max,
            limit: max,
            slack: FrameCount::from_mib(1),
            reserve: FrameCount::ZERO,
            around: Order::FRAME,
            geometry: Geometry::COMMON,
            rules: Rules::FULL,
            patterns: [0; Pattern::LIMIT],
            patterns_used: 1,
        }
    }

    /// Whether this target makes an ordinary guest: nothing to promise, no engine work.
    #[must_use]
    pub const fn is_ordinary(&self, target: FrameCount) -> bool {
        target.get() >= self.ram.get()
    }

    pub(crate) fn word(&self, pattern: Pattern) -> u64 {
        self.patterns
            .get(usize::from(pattern.get()))
            .copied()
            .unwrap_or(0)
    }

    /// The pattern with this word, if it is in use.
    pub(crate) fn pattern_of(&self, word: u64) -> Option<Pattern> {
        let used = self
            .patterns
            .iter()
            .take(usize::from(self.patterns_used.max(1)));
        let index = used.zip(0_u8..).find(|(w, _)| **w == word)?.1;
        Pattern::new(index)
    }
}

/// The caller's memory for one engine; [`Sizes`] says how much.
#[derive(Debug)]
pub struct Storage<'s> {
    /// One per superpage of the guest's map.
    pub regions: &'s mut [Region],
    /// Machine superpage runs with frames in the cache.
    pub blocks: &'s mut [Block],
    /// Machine giga runs with whole superpages in the cache.
    pub gigas: &'s mut [Block],
    /// Frames for which no block is left, 4 bytes each.
    pub loose: &'s mut [u32],
    /// One per virtual CPU.
    pub lanes: &'s mut [Lane],
}

impl Storage<'_> {
    pub(crate) const fn lengths(&self) -> [usize; 5] {
        [
            self.regions.len(),
            self.blocks.len(),
            self.gigas.len(),
            self.loose.len(),
            self.lanes.len(),
        ]
    }
}

/// Lengths of the slices in [`Storage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Length of [`Storage::regions`].
    pub regions: usize,
    /// Length of [`Storage::blocks`].
    pub blocks: usize,
    /// Length of [`Storage::gigas`].
    pub gigas: usize,
    /// Length of [`Storage::loose`].
    pub loose: usize,
    /// Length of [`Storage::lanes`].
    pub lanes: usize,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a slice cannot be longer than usize anyway"
)]
const fn len(n: u64) -> usize {
    n as usize
}

impl Sizes {
    /// Enough for a guest of `config.max` frames that owns at most `owned`.
    ///
    /// With these sizes no frame below number 2^32 is ever refused, whatever the host's memory
    /// looks like: every frame has at least a loose place. Above that (16 TiB) a frame needs a
    /// block, and those suffice unless single frames come from very many machine runs.
    #[must_use]
    pub const fn for_guest(config: &Config, owned: FrameCount, vcpus: u16) -> Self {
        let size = config.geometry.size();
        let superpages = owned.get().div_ceil(size);
        let gigas = owned.get().div_ceil(config.geometry.giga.frames().get());
        Self {
            regions: len(config.max.get().div_ceil(size)),
            blocks: len(superpages + superpages / 8 + 8),
            gigas: len(2 * gigas + 2),
            loose: len(owned.get()),
            lanes: if vcpus == 0 { 1 } else { vcpus as usize },
        }
    }

    /// Bytes of the cache's part: what grows with the frames the guest owns.
    #[must_use]
    pub const fn cache_bytes(&self) -> usize {
        (self.blocks + self.gigas) * size_of::<Block>() + self.loose * size_of::<u32>()
    }

    /// Bytes of the guest map's part and of the virtual CPUs'.
    #[must_use]
    pub const fn map_bytes(&self) -> usize {
        self.regions * size_of::<Region>() + self.lanes * size_of::<Lane>()
    }
}

/// Why an engine could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewError {
    /// A slice of the storage is shorter than the engine needs at least.
    Storage,
    /// A setting is out of range, or a pattern other than the first is zero.
    Config,
}

impl fmt::Display for NewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Storage => "storage too small",
            Self::Config => "setting out of range",
        })
    }
}

impl Error for NewError {}
