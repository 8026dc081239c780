use balloon_core::{Kind, Slots};

fn main() {
    let slots = Slots::<1>::new();
    let claimed = slots.claim(Kind::Hint).unwrap();
    let _another = claimed.clone();
    let in_flight = claimed.launch();
    let _another = in_flight.clone();
}
