//! The guest's `defmt` channel, decoded with the symbols of its ELF.

use std::path::Path;

use anyhow::{Context as _, Result};
use defmt_decoder::{DecodeError, Table};

/// What came over the channel.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    /// The records, as text.
    pub(crate) records: Vec<String>,
    /// Frames that could not be read.
    pub(crate) malformed: usize,
}

/// Decodes a captured channel.
pub(crate) fn decode(elf: &Path, capture: &Path) -> Result<Decoded> {
    let elf_bytes = std::fs::read(elf).with_context(|| format!("reading {}", elf.display()))?;
    let table = Table::parse(&elf_bytes)?
        .with_context(|| format!("{} holds no defmt symbols", elf.display()))?;
    let bytes = std::fs::read(capture).with_context(|| format!("reading {}", capture.display()))?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(&bytes);
    let mut decoded = Decoded::default();
    loop {
        match decoder.decode() {
            Ok(frame) => decoded.records.push(frame.display(false).to_string()),
            Err(DecodeError::Malformed) => decoded.malformed += 1,
            // The end of the capture; a frame cut off there is the guest's last one.
            Err(DecodeError::UnexpectedEof) => return Ok(decoded),
        }
    }
}
