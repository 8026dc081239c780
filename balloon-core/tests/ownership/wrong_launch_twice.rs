use balloon_core::{Kind, Slots};

fn main() {
    let slots = Slots::<1>::new();
    let claimed = slots.claim(Kind::Inflate).unwrap();
    let _first = claimed.launch();
    let _second = claimed.launch();
}
