use balloon_core::{Kind, Slots};

fn main() {
    let slots = Slots::<1>::new();
    let in_flight = slots.claim(Kind::Hint).unwrap().launch();
    if let Ok((claimed, _)) = in_flight.answer() {
        drop(claimed);
        let _ = in_flight.answer();
    }
}
