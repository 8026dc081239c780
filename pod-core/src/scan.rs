//! Is a page one word repeated? The inner loop of every reclaim.
//!
//! Eight words per turn, combined without a branch, is as fast as explicit vector code when the
//! page comes from memory (`cargo xtask bench pod` measures both in one run), so there is no
//! SIMD here. A page that holds data differs in its first line almost always, hence the early
//! exit after each turn group.

/// Words of a 4 KiB page.
pub const PAGE_WORDS: usize = 512;

/// A page as the scan wants it.
pub type Page = [u64; PAGE_WORDS];

/// Words tested before the first exit: two cache lines.
const HEAD: usize = 16;

/// Words per later exit.
const CHUNK: usize = 64;

/// Whether the page is `word` repeated.
#[must_use]
#[inline]
pub fn is_filled(page: &Page, word: u64) -> bool {
    let (head, rest) = page.split_at(HEAD);
    differs(head, word) == 0 && rest.chunks(CHUNK).all(|c| differs(c, word) == 0)
}

/// Whether the page is all zero.
#[must_use]
#[inline]
pub fn is_zero(page: &Page) -> bool {
    is_filled(page, 0)
}

/// The word the page repeats, if it does.
#[must_use]
#[inline]
pub fn same_filled(page: &Page) -> Option<u64> {
    let word = *page.first()?;
    is_filled(page, word).then_some(word)
}

/// First word, unless the first 128 bytes already differ among themselves.
#[must_use]
#[inline]
pub fn peek(page: &Page) -> Option<u64> {
    let word = *page.first()?;
    (differs(page.get(..HEAD)?, word) == 0).then_some(word)
}

/// Non-zero if any word differs.
#[inline]
fn differs(words: &[u64], word: u64) -> u64 {
    let mut lanes = [0_u64; 8];
    let chunks = words.chunks_exact(8);
    for chunk in chunks {
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
            for i in 0..PAGE_WORDS {
                page[i] ^= 1 << (i % 64);
                assert!(!is_filled(&page, word), "word {i}");
                assert_eq!(same_filled(&page), None);
                assert_eq!(peek(&page).is_none(), i < HEAD);
                page[i] = word;
            }
        }
    }
}
