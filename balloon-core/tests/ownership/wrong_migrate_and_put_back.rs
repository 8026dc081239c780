use balloon_core::{Compactor, Engine, FrameSource, Isolated, Ledger, Migrate, Nanos, Pfn};

fn both<T: Migrate, S: FrameSource + Ledger>(
    compactor: &mut Compactor<Vec<u32>>,
    engine: &mut Engine,
    transport: &mut T,
    source: &mut S,
    isolated: Isolated,
) {
    let new = Pfn::new(1);
    let _ = compactor.migrate(engine, transport, source, isolated, new, Nanos::ZERO);
    let _ = compactor.put_back(engine, source, isolated);
}

fn main() {}
