//! What each fuzz target does, as functions that `cargo test` replays over the corpus.
