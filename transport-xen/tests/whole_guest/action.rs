//! What happens to a guest.

use proptest::collection::vec;
use proptest::prelude::*;
use transport_xen::Errno;
use transport_xen::testing::{Behaviour, Fault};

use crate::world::{FRAMES, MAX_KIB};

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// The target node holds this; half of the time no sensible number.
    Target(Vec<u8>),
    /// It holds each of these for a millisecond, which is less than the guest
    /// needs to get there.
    Storm(Vec<Vec<u8>>),
    /// What a restore may change, and the guest must not follow: `static-max` and
    /// `videoram`.
    Sizes(Vec<u8>, Vec<u8>),
    Behaviour(Behaviour),
    /// Somebody writes to the ring's page.
    Scribble(u16, u32),
    /// What happens to the next hypercalls.
    Faults(Vec<Fault>),
    /// The host can serve extents of this order, and has so many frames.
    Host(u8, u64),
    /// The domain's limit in frames.
    Limit(u64),
    Compact,
    /// The domain is asked to stop, and comes back so if that was a save.
    Shutdown(Vec<u8>, bool),
    /// The kernel allocates so many frames, or frees them.
    Use(u16),
    Free(u16),
    /// Milliseconds pass.
    Wait(u64),
}

fn number() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0..MAX_KIB).prop_map(|kib| kib.to_string().into_bytes()),
        1 => (MAX_KIB..MAX_KIB * 3).prop_map(|kib| kib.to_string().into_bytes()),
        1 => any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        1 => vec(any::<u8>(), 0..24),
        1 => Just(Vec::new()),
    ]
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::Good),
        Just(Behaviour::Silent),
        Just(Behaviour::Gone),
        Just(Behaviour::Late),
        Just(Behaviour::Backwards),
        Just(Behaviour::Babbling),
        Just(Behaviour::Confused),
        Just(Behaviour::Refusing),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::None),
        2 => (1u16..134)
            .prop_map(|number| Fault::Refuse(Errno::from_number(number))),
        2 => prop_oneof![Just(0), 0usize..70].prop_map(Fault::Extents),
        2 => (0u64..1500).prop_map(Fault::Frames),
    ]
}

/// One error number at each of many calls, after some that went well.
fn refusals() -> impl Strategy<Value = Vec<Fault>> {
    let first = prop_oneof![Just(Fault::None), fault()];
    (first, 0..40usize, 1u16..134, 1..40usize).prop_map(|(first, good, number, bad)| {
        let refusal = Fault::Refuse(Errno::from_number(number));
        let good = core::iter::repeat_n(Fault::None, good);
        let bad = core::iter::repeat_n(refusal, bad);
        good.chain([first]).chain(bad).collect()
    })
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    /// The ring's indices, its features, and the state of the connection.
    const INDICES: core::ops::Range<u16> = 2048..2072;
    let request = prop_oneof![
        4 => Just(&b"suspend"[..]),
        1 => Just(&b"reboot"[..]),
        1 => Just(&b"nonsense"[..]),
        1 => Just(&b""[..]),
    ];
    prop_oneof![
        5 => number().prop_map(Action::Target),
        2 => vec(number(), 2..20).prop_map(Action::Storm),
        1 => (number(), number()).prop_map(|(max, video)| Action::Sizes(max, video)),
        2 => behaviour().prop_map(Action::Behaviour),
        1 => (prop_oneof![INDICES, any::<u16>()], any::<u32>())
            .prop_map(|(at, word)| Action::Scribble(at, word)),
        3 => vec(fault(), 1..8).prop_map(Action::Faults),
        2 => refusals().prop_map(Action::Faults),
        1 => (prop_oneof![Just(9u8), Just(4), Just(0)], 0..FRAMES * 2)
            .prop_map(|(order, heap)| Action::Host(order, heap)),
        1 => (FRAMES / 4..FRAMES * 2).prop_map(Action::Limit),
        1 => Just(Action::Compact),
        2 => (request, any::<bool>())
            .prop_map(|(why, restored)| Action::Shutdown(why.to_vec(), restored)),
        1 => (1u16..300).prop_map(Action::Use),
        1 => (1u16..300).prop_map(Action::Free),
        3 => (0u64..100_000).prop_map(Action::Wait),
    ]
}
