//! The guest's own program: uses memory, and notices when it is not its own.

use anyhow::{Result, bail, ensure};
use balloon_core::Pfn;
use buddy_alloc::{Frame, Order, Preference, Zone};

use crate::host::Host;
use crate::rng::Rng;

/// A block the program uses.
#[derive(Clone, Copy, Debug)]
struct Block {
    frame: Frame,
    order: Order,
    tag: u64,
}

/// What the program has allocated.
#[derive(Debug)]
pub(crate) struct Guest {
    blocks: Vec<Block>,
    next_tag: u64,
    frames: u64,
}

impl Guest {
    pub(crate) const fn new() -> Self {
        Self {
            blocks: Vec::new(),
            next_tag: 1,
            frames: 0,
        }
    }

    /// Frames in use.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    pub(crate) fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Allocates one block and writes to it; false if memory is short.
    pub(crate) fn allocate(&mut self, order: Order, zone: &mut Zone<'_>, host: &mut Host) -> bool {
        let Ok(frame) = zone.allocate(order, Preference::Populated) else {
            return false;
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let block = Block { frame, order, tag };
        for pfn in frames(block) {
            host.touch(pfn);
            host.memory.write(pfn, tag);
        }
        self.frames += order.frames();
        self.blocks.push(block);
        true
    }

    /// Checks one block and frees it.
    pub(crate) fn free(
        &mut self,
        rng: &mut Rng,
        zone: &mut Zone<'_>,
        host: &mut Host,
    ) -> Result<()> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let block = self.blocks.swap_remove(rng.index(self.blocks.len()));
        verify(block, host)?;
        self.frames -= block.order.frames();
        if let Err(error) = zone.free(block.frame, block.order) {
            bail!(
                "the allocator does not take {:#x} back: {error}",
                block.frame.get()
            );
        }
        Ok(())
    }

    /// Checks everything the program wrote.
    pub(crate) fn verify(&self, host: &mut Host) -> Result<()> {
        self.blocks
            .iter()
            .try_for_each(|&block| verify(block, host))
    }

    /// The blocks in use: first frame, and one past the last.
    pub(crate) fn used(&self) -> impl Iterator<Item = (u64, u64)> {
        let span = |block: &Block| (block.frame.get(), block.frame.get() + block.order.frames());
        self.blocks.iter().map(span)
    }
}

fn frames(block: Block) -> impl Iterator<Item = Pfn> {
    let start = block.frame.get();
    (start..start + block.order.frames()).map(Pfn::new)
}

fn verify(block: Block, host: &mut Host) -> Result<()> {
    for pfn in frames(block) {
        let tag = host.memory.read(pfn);
        ensure!(
            tag == block.tag,
            "frame {:#x} in use holds {tag}, the program wrote {}",
            pfn.get(),
            block.tag
        );
    }
    Ok(())
}
