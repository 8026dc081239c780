#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| balloon_fuzz::buddy_zone::run(data));
