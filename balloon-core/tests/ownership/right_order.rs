//! The order that the other cases break.

use balloon_core::{Claimed, FrameCount, FrameRange, Via, Kind, Outcome, Pfn, Run, Slots};

fn main() {
    let slots = Slots::<1>::new();
    let range = FrameRange::new(Pfn::new(0x100), FrameCount::new(2)).unwrap();
    let runs = [Run::new(range).unwrap()];
    let claimed: Claimed<'_> = slots.claim(Kind::Inflate).unwrap();
    let in_flight = claimed.launch();
    let request = in_flight.request(Via::Inflate, &runs);
    let completer = slots.completer();
    completer
        .complete(request.kind, request.slot, Outcome::Whole)
        .unwrap();
    let (claimed, outcome) = in_flight.answer().unwrap();
    assert_eq!(outcome, Outcome::Whole);
    drop(claimed);
}
