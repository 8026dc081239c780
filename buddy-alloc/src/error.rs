//! One small error enum per fallible operation. A failed call changes nothing.

use core::fmt;

macro_rules! error {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[non_exhaustive]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }

        impl core::error::Error for $name {}
    };
}

error! {
    /// Why a zone could not be built.
    ConfigError {
        /// The span has no frames.
        Empty => "the span has no frames",
        /// The span ends beyond frame 2^40.
        FrameNumber => "frame numbers have at most 40 bits",
        /// The span is larger than 2 TiB: use several zones.
        TooLarge => "a zone spans at most 2 TiB",
        /// The memory is shorter than [`Config::metadata_words`](crate::Config::metadata_words).
        Metadata => "the metadata memory is too short",
        /// The zone has CPU caches before it already, see [`CachedZone::new`](crate::CachedZone::new).
        Cached => "the zone has caches already",
        /// The largest order is 0: buddies have to merge at least once.
        MaxOrder => "the largest order is at least 1",
        /// The granule is below order 6, or blocks are to be kept for breaking that are larger
        /// than the largest order.
        Granule => "the host granule does not fit the orders",
    }
}

error! {
    /// Why frames could not be added.
    AddError {
        /// Part of the range is outside the zone.
        Foreign => "the range is not inside the zone",
        /// Part of the range was added before.
        Overlap => "part of the range is managed already",
    }
}

error! {
    /// Why an allocation failed.
    AllocError {
        /// No free block is large enough.
        Exhausted => "no free block is large enough",
        /// The request is above the largest order of the zone, or asks for no frames.
        TooLarge => "the request exceeds the largest block",
        /// Frames are left, but a [`Reserve`](crate::Reserve) keeps them.
        Floor => "the remaining frames are kept in reserve",
    }
}

error! {
    /// Why a specific block or range could not be taken.
    AtError {
        /// Part of it is not managed by the zone.
        Foreign => "not managed here",
        /// Part of it is not free.
        NotFree => "not free",
        /// The frame is not aligned to the order, or the order is above the largest.
        Misaligned => "not a block of that order",
    }
}

error! {
    /// Why a free was refused.
    FreeError {
        /// Not managed by the zone.
        Foreign => "not managed here",
        /// Free already, possibly waiting in a CPU cache.
        DoubleFree => "free already",
        /// Allocated with another order.
        WrongOrder => "allocated with another order",
        /// Inside an allocated block, not at its start.
        Interior => "inside a block, not at its start",
        /// Reserved, never allocated.
        Reserved => "reserved",
        /// Isolated for free-page reporting.
        Isolated => "isolated for reporting",
        /// Taken for or given to a balloon.
        Ballooned => "in the hands of a balloon",
    }
}

error! {
    /// Why a range could not change hands.
    RangeError {
        /// Part of it is not managed by the zone.
        Foreign => "not managed here",
        /// Part of it is not in the state the call starts from.
        WrongState => "part of the range is in another state",
    }
}
