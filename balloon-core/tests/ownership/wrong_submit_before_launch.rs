use balloon_core::{Via, Kind, Request, Run, Slots};

fn submit(_: Request<'_>) {}

fn main() {
    let slots = Slots::<1>::new();
    let runs: [Run; 0] = [];
    let claimed = slots.claim(Kind::Report).unwrap();
    submit(claimed.request(Via::Inflate, &runs));
    submit(Request {
        kind: Kind::Report,
        via: Via::Inflate,
        slot: claimed.slot(),
        runs: &runs,
    });
}
