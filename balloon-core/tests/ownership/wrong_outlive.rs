use balloon_core::{InFlight, Kind, Slots};

fn lose() -> InFlight<'static> {
    let slots = Slots::<1>::new();
    slots.claim(Kind::Hint).unwrap().launch()
}

fn main() {
    let _ = lose();
}
