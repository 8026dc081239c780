use balloon_core::{GivePath, Kind, Request, Run, Slots};

fn submit(_: Request<'_>) {}

fn main() {
    let slots = Slots::<1>::new();
    let runs: [Run; 0] = [];
    let claimed = slots.claim(Kind::Report).unwrap();
    submit(claimed.request(GivePath::Told, &runs));
    submit(Request {
        kind: Kind::Report,
        path: GivePath::Told,
        slot: claimed.slot(),
        runs: &runs,
    });
}
