//! Is a page one word repeated? The inner loop of every reclaim.
//!
//! Words combined without a branch are as fast as explicit vector code when the page comes from
//! memory (`cargo xtask bench pod` measures both in one run), so there is no SIMD here. A page
//! that holds data differs in its first cache line almost always, hence the exit there.

/// Words of a 4 KiB page.
pub const PAGE_WORDS: usize = 512;

/// A page as the scan wants it.
pub type Page = [u64; PAGE_WORDS];

/// Words before the first exit: one cache line.
const LINE: usize = 8;

/// Words before each later exit.
const CHUNK: usize = 128;

/// Words a peek looks at behind the first line, one in each quarter of the page. They tell sparse
/// pages from empty ones better than a second line, and cost a page with data nothing.
const SAMPLES: [usize; 4] = [67, 173, 337, 511];

/// Whether the page is `word` repeated.
#[must_use]
#[inline]
pub fn is_filled(page: &Page, word: u64) -> bool {
    // Comparing with zero is cheaper than with a variable, and zero is what is asked for.
    if word == 0 {
        repeats(page, 0)
    } else {
        repeats(page, word)
    }
}

/// Whether the page is all zero.
#[must_use]
#[inline]
pub fn is_zero(page: &Page) -> bool {
    repeats(page, 0)
}

/// The word the page repeats, if it does.
#[must_use]
#[inline]
pub fn same_filled(page: &Page) -> Option<u64> {
    let word = *page.first()?;
    is_filled(page, word).then_some(word)
}

/// First word, unless the first line or a few words further on already differ from it.
///
/// Reads one cache line of a page that has data there.
#[must_use]
#[inline]
pub fn peek(page: &Page) -> Option<u64> {
    let word = *page.first()?;
    (differs(page.get(..LINE)?, word) == 0 && samples_agree(page, word)).then_some(word)
}

/// A function of its own, or the compiler loads the samples before it knows the first line.
#[cold]
#[inline(never)]
fn samples_agree(page: &Page, word: u64) -> bool {
    SAMPLES.iter().all(|i| page.get(*i) == Some(&word))
}

#[inline(always)]
fn repeats(page: &Page, word: u64) -> bool {
    let line = page.get(..LINE).unwrap_or_default();
    differs(line, word) == 0 && page.chunks_exact(CHUNK).all(|c| differs(c, word) == 0)
}

/// Non-zero if any word differs.
#[inline(always)]
fn differs(words: &[u64], word: u64) -> u64 {
    let mut lanes = [0_u64; 8];
    for chunk in words.chunks_exact(8) {
        for (lane, w) in lanes.iter_mut().zip(chunk) {
            *lane |= w ^ word;
        }
    }
    lanes.iter().fold(0, |all, lane| all | lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_bit_anywhere_is_seen() {
        for word in [0, 0xaaaa_aaaa_aaaa_aaaa] {
            let mut page = [word; PAGE_WORDS];
            assert_eq!(same_filled(&page), Some(word));
            assert!(is_filled(&page, word));
            for i in (0..PAGE_WORDS).step_by(if cfg!(miri) { 61 } else { 1 }) {
                page[i] ^= 1 << (i % 64);
                assert!(!is_filled(&page, word), "word {i}");
                assert_eq!(same_filled(&page), None);
                assert_eq!(peek(&page).is_none(), i < LINE || SAMPLES.contains(&i));
                page[i] = word;
            }
        }
    }
}
