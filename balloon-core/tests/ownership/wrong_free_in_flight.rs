use balloon_core::{Claimed, Kind, Slots};

fn free(_: Claimed<'_>) {}

fn main() {
    let slots = Slots::<1>::new();
    let in_flight = slots.claim(Kind::Deflate).unwrap().launch();
    free(in_flight);
}
