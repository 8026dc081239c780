//! The device's half, and its books: what it was given is nobody else's.

use anyhow::{Context as _, Result, ensure};
use balloon_core::{FrameRange, Pfn, wire::chunks_v8};
use transport_virtio::testing::{Chain, FakeDevice};
use transport_virtio::{Features, QueueId};

use super::Balloon;
use crate::map::FrameMap;
use crate::rng::Rng;

const FRAME: u64 = 4096;

/// Requests it has taken, and the frames it has.
pub(super) struct Device {
    pub(super) target: u32,
    /// Frames that the guest gave by name.
    pub(super) told: FrameMap,
    /// Whether the guest is to tell before it uses a frame again.
    pub(super) must_tell: bool,
    /// Statistics that it has read.
    pub(super) statistics: u64,
    /// It asks for no list of unused pages.
    pub(super) quiet: bool,
    all: FrameRange,
    chunks: bool,
    pending: Vec<(QueueId, Chain)>,
    /// Requests of its own that it has not made yet.
    kept: Vec<(QueueId, Chain)>,
    command: u32,
    heard: u32,
    /// Notifications of each queue so far, and whether it looks into it.
    bells: [u32; QueueId::ALL.len()],
    listening: [bool; QueueId::ALL.len()],
    /// Bells that it misses, of a thousand, and while it is quiet.
    deafness: u64,
    misses: u64,
    rng: Rng,
}

#[expect(clippy::indexing_slicing, reason = "by queue, one for each")]
impl Device {
    pub(super) fn new(balloon: &Balloon, all: FrameRange, chunks: bool, mut rng: Rng) -> Self {
        Self {
            bells: [0; QueueId::ALL.len()],
            listening: [false; QueueId::ALL.len()],
            deafness: if rng.chance(300) { 100 } else { 0 },
            misses: 0,
            target: 0,
            told: FrameMap::new(all),
            must_tell: balloon.negotiated().contains(Features::MUST_TELL_HOST),
            statistics: 0,
            quiet: false,
            all,
            chunks,
            pending: Vec::new(),
            kept: Vec::new(),
            command: 1,
            heard: 0,
            rng,
        }
    }

    /// It has forgotten the balloon and every request.
    pub(super) fn reset(&mut self) {
        self.told.clear();
        self.pending.clear();
        self.kept.clear();
        self.heard = 0;
        self.bells = [0; QueueId::ALL.len()];
        self.listening = [false; QueueId::ALL.len()];
    }

    /// Writes the target into the configuration.
    pub(super) fn apply(&self, balloon: Option<&mut Balloon>) {
        if let Some(balloon) = balloon {
            balloon.queues_mut().device_mut().set_target(self.target);
        }
    }

    /// A command that begins another round.
    pub(super) const fn next_command(&mut self) -> u32 {
        self.command += 1;
        self.command
    }

    /// Whether it interrupted since the last call.
    pub(super) fn interrupted(&mut self, balloon: Option<&mut Balloon>) -> bool {
        let count = balloon.map_or(0, |balloon| balloon.queues_mut().device_mut().interrupts());
        core::mem::replace(&mut self.heard, count) != count
    }

    /// All that the guest believes to be out is answered, and nobody was told:
    /// nothing but a clock will wake the guest. The queues, if so.
    pub(super) fn unheard(&mut self, balloon: &mut Balloon) -> Vec<QueueId> {
        let mut out: Vec<QueueId> = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting]
            .into_iter()
            .filter(|&queue| balloon.in_flight(queue) > 0)
            .collect();
        let device = balloon.queues_mut().device_mut();
        for &queue in &out {
            if let Some(chain) = device.take(queue) {
                self.pending.push((queue, chain));
            }
        }
        if !self.pending.is_empty() || device.interrupts() != self.heard {
            out.clear();
        }
        out
    }

    /// What it takes out of its queues, up to `most` of each, and carries out, up
    /// to `most` in all, in any order.
    pub(super) fn work(
        &mut self,
        balloon: &mut Balloon,
        used: &FrameMap,
        most: u64,
        odd: bool,
    ) -> Result<()> {
        let device = balloon.queues_mut().device_mut();
        for queue in QueueId::ALL {
            if queue == QueueId::Statistics && !self.rng.chance(100) {
                continue;
            }
            if !self.hears(device, queue) {
                continue;
            }
            for _ in 0..self.rng.below(most + 1) {
                let Some(chain) = device.take(queue) else {
                    // Until it is told of more.
                    self.listening[queue.index()] = false;
                    break;
                };
                self.pending.push((queue, chain));
            }
        }
        for _ in 0..self.rng.below(most + 1) {
            if self.pending.is_empty() {
                break;
            }
            let (queue, chain) = self.pending.swap_remove(self.rng.index(self.pending.len()));
            if self.chunks && queue == QueueId::Hint && is_room(&chain) {
                if self.quiet || (!odd && !self.rng.chance(20)) {
                    self.kept.push((queue, chain));
                } else {
                    let id = u16::try_from(self.rng.below(1 << 16))?;
                    device.fill_request(&chain, id);
                }
                continue;
            }
            self.carry_out(device, used, queue, &chain)?;
            if odd && self.rng.chance(50) {
                // About a buffer that there is not.
                device.answer(queue, 0xffff_0000, 7);
            }
            let written = if odd && self.rng.chance(50) {
                u32::MAX
            } else {
                0
            };
            device.answer(queue, chain.head.into(), written);
        }
        Ok(())
    }

    /// Whether the guest has told it to look into a queue. It misses some of the bells.
    fn hears(&mut self, device: &FakeDevice, queue: QueueId) -> bool {
        let bells = device.notified(queue);
        let heard = core::mem::replace(&mut self.bells[queue.index()], bells);
        let missed = if self.quiet {
            let missed = self.misses > 0;
            self.misses -= u64::from(missed && heard != bells);
            missed
        } else {
            self.rng.chance(self.deafness)
        };
        if heard != bells && !missed {
            self.listening[queue.index()] = true;
        }
        self.listening[queue.index()]
    }

    /// From now on it asks for nothing, and hears every bell but the first few.
    pub(super) const fn behave(&mut self) {
        self.quiet = true;
        if self.deafness > 0 {
            self.misses = self.rng.below(4);
        }
    }

    /// It may ask again.
    pub(super) fn speak(&mut self) {
        self.quiet = false;
        self.pending.append(&mut self.kept);
    }

    fn carry_out(
        &mut self,
        device: &mut FakeDevice,
        used: &FrameMap,
        queue: QueueId,
        chain: &Chain,
    ) -> Result<()> {
        match queue {
            QueueId::Inflate | QueueId::Deflate => {
                for pfn in self.named(device, chain)? {
                    ensure!(
                        (self.all.start()..self.all.end()).contains(&pfn),
                        "frame {pfn:?} is no memory"
                    );
                    let gives = queue == QueueId::Inflate;
                    ensure!(
                        !gives || !used.contains(pfn),
                        "frame {pfn:?} is given and in use"
                    );
                    ensure!(
                        self.told.set(pfn, gives) != gives,
                        "frame {pfn:?}: {queue:?}, and the device had it {}",
                        if gives { "already" } else { "not" }
                    );
                }
            }
            QueueId::Reporting => {
                for part in &chain.descriptors {
                    let whole = part.address % FRAME == 0 && u64::from(part.len) % FRAME == 0;
                    ensure!(
                        part.writable && whole && part.len > 0,
                        "a report of no whole frames: {part:?}"
                    );
                    for pfn in frames(part.address, part.len) {
                        // Told to return, used early and free again.
                        let early =
                            self.told.contains(pfn) && !self.must_tell && self.returns(device, pfn);
                        ensure!(
                            !used.contains(pfn) && (early || !self.told.contains(pfn)),
                            "frame {pfn:?} is discarded, and somebody's"
                        );
                    }
                }
            }
            QueueId::Hint if self.chunks => {
                for pfn in self.named(device, chain)? {
                    ensure!(
                        !(used.contains(pfn) || self.must_tell && self.told.contains(pfn)),
                        "frame {pfn:?} is named as unused, and somebody's"
                    );
                }
            }
            QueueId::Hint => {
                for part in chain.descriptors.iter().filter(|part| part.writable) {
                    for pfn in frames(part.address, part.len) {
                        ensure!(!used.contains(pfn), "frame {pfn:?} is hinted and in use");
                    }
                }
            }
            _ => self.statistics += 1,
        }
        Ok(())
    }

    /// Whether the frame is on its way back to the guest.
    fn returns(&mut self, device: &mut FakeDevice, pfn: Pfn) -> bool {
        while let Some(chain) = device.take(QueueId::Deflate) {
            self.pending.push((QueueId::Deflate, chain));
        }
        let mut waiting = self.pending.iter();
        waiting.any(|(queue, chain)| {
            *queue == QueueId::Deflate
                && self
                    .named(device, chain)
                    .is_ok_and(|named| named.contains(&pfn))
        })
    }

    /// The frames that a request names.
    fn named(&self, device: &FakeDevice, chain: &Chain) -> Result<Vec<Pfn>> {
        if !self.chunks {
            let pfns = device.pfns(chain).into_iter();
            return Ok(pfns.map(|pfn| Pfn::new(pfn.into())).collect());
        }
        let parts = chain.descriptors.iter();
        let bytes: Vec<u8> = parts.flat_map(|&part| device.content(part)).collect();
        let response = chunks_v8::decode_strict(&bytes).ok().context("no chunks")?;
        Ok(response.chunks().flat_map(|chunk| chunk.frames()).collect())
    }
}

/// A buffer for a request of the device's own.
fn is_room(chain: &Chain) -> bool {
    chain
        .descriptors
        .first()
        .is_some_and(|first| first.writable)
}

fn frames(address: u64, len: u32) -> impl Iterator<Item = Pfn> {
    let first = address / FRAME;
    (first..first + u64::from(len) / FRAME).map(Pfn::new)
}
