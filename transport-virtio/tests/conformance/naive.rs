//! A second driver, which shares nothing with this crate's but the rings: a
//! request at a time, as drivers were first written, but ranges where it may give
//! them. It keeps every rule, and breaks the one it is told to.

use core::cell::Cell;

use balloon_core::{FrameCount, FrameRange, InFlight, Kind, Outcome, Pfn, Run, Slots};
use transport_virtio::protocol::{ACTUAL, HINT_COMMAND, NUM_PAGES, POISON_VALUE};
use transport_virtio::testing::conformance::{Driver, Kernel};
use transport_virtio::testing::{self, FakeDevice, FakeMemory};
use transport_virtio::{
    Body, ConfigIo, Device, DeviceStatus, DriverOptions, Features, Handshake, QueueId, QueueIndex,
    Queues, RequestId, RingAddresses, Rings,
};

thread_local! {
    /// The rule that this thread's drivers break, and how if there are several ways.
    static FAULT: Cell<&'static str> = const { Cell::new("") };
}

/// Whether the suite sees that a driver breaks this rule which is to.
pub(crate) fn is_seen_to_break(rule: &'static str) -> bool {
    is_seen_to_break_by(rule, rule)
}

/// Whether the suite sees that a driver breaks this rule which does so by `fault`.
pub(crate) fn is_seen_to_break_by(rule: &'static str, fault: &'static str) -> bool {
    FAULT.set(fault);
    let seen = testing::conformance::breaks::<Naive>(rule);
    FAULT.set("");
    seen
}

fn breaks(rule: &str) -> bool {
    FAULT.get() == rule
}

/// What is with the device.
struct Pending {
    slot: InFlight<'static>,
    queue: QueueId,
    pfns: Vec<u64>,
}

pub(crate) struct Naive {
    rings: Rings<FakeDevice, FakeMemory, 16>,
    accepted: Features,
    slots: &'static Slots<16>,
    first: u64,
    floor: usize,
    poison: bool,
    filled: Vec<Pfn>,
    scattered: bool,
    superpages: bool,
    free: Vec<u64>,
    told: Vec<u64>,
    /// Reported and kept.
    bulk: Vec<u64>,
    gives_in_bulk: bool,
    hinted: Vec<u64>,
    pending: Vec<Pending>,
    command: u32,
    generation: Option<u32>,
    round: bool,
    reports: u32,
    buffers: u32,
    kernel: Kernel,
    /// So often in a row nobody was there.
    absent: u32,
}

const FRAME: u64 = 4096;

impl Naive {
    /// One request; what it says is up to the caller.
    fn send(&mut self, kind: Kind, queue: QueueId, body: Body<'_>, pfns: Vec<u64>) -> bool {
        let Ok(slot) = self.slots.claim(kind) else {
            return false;
        };
        let slot = slot.launch();
        let request = RequestId {
            kind,
            slot: slot.slot(),
        };
        if self.rings.submit(queue, request, body).is_err() {
            drop(slot.revoke());
            return false;
        }
        self.rings.kick(queue, 1);
        self.pending.push(Pending { slot, queue, pfns });
        true
    }

    fn idle(&self, queue: QueueId) -> bool {
        !self.pending.iter().any(|pending| pending.queue == queue)
    }

    /// Page numbers on the inflate or deflate queue.
    fn tell(&mut self, queue: QueueId, pfns: Vec<u64>) -> bool {
        let mut numbers: Vec<u32> = pfns.iter().map(|&p| u32::try_from(p).unwrap()).collect();
        numbers.sort_unstable();
        if breaks("R3") {
            numbers.reverse();
        }
        if breaks("20") {
            numbers.push(u32::MAX);
        }
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|&number| {
                if breaks("7") {
                    number.to_be_bytes()
                } else {
                    number.to_le_bytes()
                }
            })
            .collect();
        let kind = if queue == QueueId::Inflate {
            Kind::Inflate
        } else {
            Kind::Deflate
        };
        self.send(kind, queue, Body::Bytes(&bytes), pfns)
    }

    /// Ranges of neighbours that rise.
    fn ranges(&mut self, kind: Kind, queue: QueueId, pfns: Vec<u64>) -> bool {
        let run = |pfns: &[u64]| {
            let count = FrameCount::new(pfns.len() as u64);
            FrameRange::new(Pfn::new(*pfns.first()?), count).and_then(Run::new)
        };
        let runs = pfns.chunk_by(|a, b| a + 1 == *b);
        let runs: Vec<Run> = runs.map(|pfns| run(pfns).unwrap()).collect();
        self.send(kind, queue, Body::Ranges(&runs), pfns)
    }

    /// Up to so many free neighbours, from below.
    fn take_run(&mut self, most: usize) -> Vec<u64> {
        self.free
            .sort_unstable_by_key(|pfn| core::cmp::Reverse(*pfn));
        let mut run: Vec<u64> = Vec::new();
        while run.len() < most
            && let Some(next) = self
                .free
                .pop_if(|pfn| run.last().is_none_or(|last| last + 1 == *pfn))
        {
            run.push(next);
        }
        run
    }

    fn home(&mut self, pfns: &[u64]) {
        self.free.extend(pfns);
        if self.poison && !breaks("38") && !breaks("40") {
            self.filled.extend(pfns.iter().map(|&pfn| Pfn::new(pfn)));
        }
    }

    const fn size(&self) -> usize {
        self.told.len() + self.bulk.len()
    }

    fn write_actual(&mut self) {
        let size = match FAULT.get() {
            "19" => self.size().saturating_sub(1),
            "19 told only" => self.told.len(),
            _ => self.size(),
        };
        self.rings
            .write_config(ACTUAL, u32::try_from(size).unwrap());
    }

    fn reap(&mut self) {
        for queue in QueueId::ALL {
            while let Ok(Some(_)) = self.rings.pop(queue) {
                let place = self.pending.iter().position(|p| p.queue == queue).unwrap();
                let pending = self.pending.remove(place);
                let (kind, slot) = (pending.slot.kind(), pending.slot.slot());
                let done = self.slots.completer();
                done.complete(kind, slot, Outcome::Whole).unwrap();
                drop(pending.slot.answer());
                let believed = breaks("21") && self.rings.counters().odd_lengths > 0;
                match queue {
                    QueueId::Inflate if believed => self.free.extend(pending.pfns),
                    QueueId::Inflate => {
                        if !breaks("17") {
                            self.told.extend(pending.pfns);
                        }
                        self.write_actual();
                    }
                    QueueId::Deflate => {
                        if !breaks("16") {
                            self.home(&pending.pfns);
                        }
                        self.write_actual();
                    }
                    QueueId::Hint if breaks("36") => self.home(&pending.pfns),
                    QueueId::Hint => self.hinted.extend(pending.pfns),
                    QueueId::Reporting if kind == Kind::Inflate => {
                        if breaks("17 if lied to") && self.rings.counters().spurious_answers > 0 {
                            self.free.extend(&pending.pfns);
                        }
                        self.bulk.extend(pending.pfns);
                        self.write_actual();
                    }
                    QueueId::Reporting if breaks("39") => {}
                    _ => self.free.extend(pending.pfns),
                }
            }
        }
    }

    fn read(&mut self, offset: u16) -> Option<u32> {
        if breaks("6") {
            return Some(self.rings.read_config(offset));
        }
        let before = self.rings.generation();
        let value = self.rings.read_config(offset);
        (self.rings.generation() == before).then_some(value)
    }

    fn resize(&mut self, target: usize) {
        let spare = self.free.len().saturating_sub(self.floor);
        let spare = if breaks("R12") {
            self.free.len()
        } else {
            spare
        };
        let most = match FAULT.get() {
            "R2" => 300,
            "R4" => 256,
            _ if self.superpages => 512,
            _ => 256,
        };
        let give = target.saturating_sub(self.size()).min(spare).min(most);
        let give = if breaks("11") { give.min(16) } else { give };
        let back = self.size().saturating_sub(target).min(256);
        let (give, back) = match FAULT.get() {
            "12" if back > 0 => (spare.min(1), 0),
            "13" if self.free.is_empty() => (0, 1),
            "14" if give == 0 && self.accepted.contains(Features::DEFLATE_ON_OOM) => (0, 1),
            _ => (give, back),
        };
        if breaks("11") && give > 0 && self.size() > 64 {
            return;
        }
        if give > 0 && self.gives_in_bulk {
            if self.idle(QueueId::Reporting) {
                let pfns = self.take_run(give);
                self.ranges(Kind::Inflate, QueueId::Reporting, pfns);
            }
        } else if give > 0 && self.idle(QueueId::Inflate) && self.idle(QueueId::Deflate) {
            self.free
                .sort_unstable_by_key(|pfn| core::cmp::Reverse(*pfn));
            if self.scattered {
                self.free.sort_by_key(|pfn| pfn % 2);
            }
            let pfns = self.free.split_off(self.free.len() - give);
            if breaks("17") {
                self.told.extend(&pfns);
                self.free.extend(pfns.iter().take(8));
            }
            if breaks("18") {
                self.tell(QueueId::Inflate, pfns.clone());
                self.tell(QueueId::Deflate, pfns);
                return;
            }
            self.tell(QueueId::Inflate, pfns);
        } else if back > 0 {
            self.take_back(back);
        }
    }

    fn take_back(&mut self, most: usize) {
        if !self.bulk.is_empty() {
            // A size that does not count them is all it takes.
            let left = self.bulk.len().saturating_sub(most);
            let pfns = self.bulk.split_off(left);
            if !breaks("19 not back") {
                self.write_actual();
            }
            self.free.extend(pfns);
        } else if self.idle(QueueId::Deflate) && self.idle(QueueId::Inflate) {
            let left = self.told.len().saturating_sub(most);
            let pfns = self.told.split_off(left);
            if pfns.is_empty() {
                return;
            }
            if breaks("15") {
                self.free.extend(pfns);
                return self.write_actual();
            }
            if breaks("16") {
                self.free.extend(&pfns);
            }
            if breaks("22") {
                self.filled.extend(pfns.iter().map(|&pfn| Pfn::new(pfn)));
            }
            self.tell(QueueId::Deflate, pfns);
        }
    }

    fn statistics(&mut self) {
        let wanted = self.accepted.contains(Features::STATS_VQ);
        if !wanted || !self.idle(QueueId::Statistics) && !breaks("23") {
            return;
        }
        if breaks("24") && self.buffers > 0 {
            return;
        }
        self.buffers += 1;
        if breaks("23") && !self.idle(QueueId::Statistics) {
            // Our rings hold one filled buffer; they do not mind a range.
            self.ranges(Kind::Statistics, QueueId::Statistics, vec![self.first]);
            return;
        }
        let tags: &[u16] = match FAULT.get() {
            "25" => &[4, 4],
            "26" if self.buffers > 1 => &[4],
            _ => &[4, 5],
        };
        let mut bytes: Vec<u8> = tags
            .iter()
            .flat_map(|tag| tag.to_le_bytes().into_iter().chain([0; 8]))
            .collect();
        if breaks("27") {
            bytes.pop();
        }
        self.send(
            Kind::Statistics,
            QueueId::Statistics,
            Body::Bytes(&bytes),
            Vec::new(),
        );
    }

    fn hints(&mut self) {
        if !self.accepted.contains(Features::FREE_PAGE_HINT) {
            return;
        }
        let generation = Some(self.rings.generation());
        // Firecracker's never moves.
        if (self.generation != generation || !self.round)
            && let Some(command) = self.read(HINT_COMMAND)
        {
            self.generation = generation;
            if command != self.command {
                self.command = command;
                let goes_on = match command {
                    0 => breaks("32 not stopped"),
                    1 => breaks("32 not done"),
                    _ => true,
                };
                self.round = goes_on && (self.round || command > 1);
                match command {
                    0 if goes_on => {}
                    0 => drop(self.command_to_device(0)),
                    1 => {}
                    _ => {
                        self.command_to_device(command);
                        if breaks("31") {
                            self.command_to_device(command);
                        }
                    }
                }
            }
        }
        if self.command == 1 {
            let hinted = core::mem::take(&mut self.hinted);
            self.home(&hinted);
        }
        if breaks("32") && !self.round && self.command == 1 {
            self.hint_one();
        }
        if !self.round {
            return;
        }
        if self.free.len() > self.floor {
            self.hint_one();
        } else if !breaks("33") {
            self.round = false;
            self.command_to_device(0);
        }
    }

    fn hint_one(&mut self) {
        let Some(pfn) = self.free.pop() else { return };
        if breaks("34") {
            self.free.push(pfn);
        }
        if !self.ranges(Kind::Hint, QueueId::Hint, vec![pfn]) {
            self.free.push(pfn);
        }
    }

    fn command_to_device(&mut self, command: u32) -> bool {
        let bytes = command.to_le_bytes();
        let bytes: &[u8] = if breaks("30") { &bytes[..2] } else { &bytes };
        self.send(Kind::Hint, QueueId::Hint, Body::Bytes(bytes), Vec::new())
    }

    /// Whether there is no device, or none that works; what one had that is gone comes home.
    fn is_alone(&mut self) -> bool {
        let status = self.rings.status();
        let absent = status.is_empty() || status.bits() == u8::MAX;
        self.absent = if absent { self.absent + 1 } else { 0 };
        if self.absent > 100 {
            let pfns = self.take_all();
            self.home(&pfns);
        }
        absent || status.contains(DeviceStatus::NEEDS_RESET)
    }

    /// All that is or was with the device.
    fn take_all(&mut self) -> Vec<u64> {
        let pending = core::mem::take(&mut self.pending);
        let mut pfns: Vec<u64> = pending
            .into_iter()
            .flat_map(|pending| pending.pfns)
            .collect();
        pfns.append(&mut self.told);
        pfns.append(&mut self.bulk);
        pfns.append(&mut self.hinted);
        pfns
    }

    fn report(&mut self) {
        let wanted = self.accepted.contains(Features::PAGE_REPORTING);
        if !wanted || !self.idle(QueueId::Reporting) || self.free.len() <= self.floor {
            return;
        }
        self.reports += 1;
        if !self.reports.is_multiple_of(4) {
            return;
        }
        let most = if breaks("41") { 1 } else { 64 };
        let pfns = self.take_run(most.min(self.free.len() - self.floor));
        if breaks("39") {
            self.free.extend(&pfns);
        }
        if !self.ranges(Kind::Report, QueueId::Reporting, pfns.clone()) {
            self.free.extend(pfns);
        }
    }
}

/// Reset to `FEATURES_OK`, and what was accepted.
fn negotiate(device: &mut FakeDevice, kernel: &Kernel) -> Option<(Features, Features)> {
    device.set_status(DeviceStatus::empty());
    device.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let offered = device.offered_features();
    if !offered.contains(Features::VERSION_1) && !breaks("28") {
        return None;
    }
    let mut wanted =
        Features::VERSION_1 | Features::MUST_TELL_HOST | Features::DEFLATE_ON_OOM | kernel.services;
    wanted |= Features::ACCESS_PLATFORM;
    if kernel.translated && !breaks("R13") {
        wanted -= Features::PAGE_REPORTING | Features::FREE_PAGE_HINT;
    }
    if kernel.poison.is_some() {
        wanted |= Features::PAGE_POISON;
        if !offered.contains(Features::PAGE_POISON) && !breaks("5") {
            wanted -= Features::PAGE_REPORTING;
        }
    }
    match FAULT.get() {
        "3" => wanted -= Features::MUST_TELL_HOST,
        "4" => wanted |= Features::PAGE_POISON,
        "R10" => wanted -= Features::ACCESS_PLATFORM,
        "R11" => wanted |= Features::from_bits_retain(1 << 43),
        _ => {}
    }
    let accepted = offered & wanted;
    device.accept_features(accepted);
    device.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
    Some((offered, accepted))
}

const NOWHERE: RingAddresses = RingAddresses {
    descriptors: 0x10,
    driver: 0x10,
    device: 0x10,
};

impl Driver for Naive {
    const DMA_BYTES: usize = Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES;

    fn binds_to(device_type: u16) -> bool {
        device_type == 5 || device_type == 13 && breaks("1")
    }

    fn bring_up(mut device: FakeDevice, memory: FakeMemory, kernel: &Kernel) -> Option<Self> {
        let (offered, accepted) = negotiate(&mut device, kernel)?;
        if breaks("2") {
            let _ = device.set_queue(QueueIndex::new(2), 16, NOWHERE);
        }
        if breaks("R5") {
            // A private queue, where there is one.
            let _ = device.set_queue(QueueIndex::new(5), 2, NOWHERE);
            let _ = device.set_queue(QueueIndex::new(4), 2, NOWHERE);
        }
        if breaks("R6") && device.max_queue_size(QueueIndex::new(0)) < 32 {
            return None;
        }
        let options = DriverOptions::new();
        let options = if kernel.superpages {
            options.with_host_superpages()
        } else {
            options
        };
        let options = if accepted.contains(Features::PAGE_POISON) {
            options.with_poison(kernel.poison.unwrap_or(0))
        } else {
            options
        };
        // All that there is to the rings: their queues are those accepted.
        let options = options.with_statistics().with_hints().with_reporting();
        let rings = Rings::attach(device, memory, offered, accepted, &options);
        let mut rings = rings.map_err(|refused| refused.error).ok()?;
        let device = rings.device_mut();
        if breaks("9") {
            device.notify(QueueIndex::new(0));
        }
        let ready = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        device.set_status(ready | DeviceStatus::DRIVER_OK);
        if breaks("10") {
            device.write_config(POISON_VALUE, 1);
        }
        Some(Self {
            rings,
            accepted,
            slots: Box::leak(Box::default()),
            first: kernel.frames.start().address() / FRAME,
            floor: usize::try_from(kernel.floor.get()).unwrap(),
            poison: kernel.poison.is_some(),
            filled: Vec::new(),
            scattered: kernel.scattered,
            superpages: kernel.superpages,
            free: kernel.frames.frames().map(Pfn::get).collect(),
            told: Vec::new(),
            bulk: Vec::new(),
            gives_in_bulk: accepted.contains(Features::PAGE_REPORTING)
                && !accepted.intersects(Features::MUST_TELL_HOST | Features::PAGE_POISON),
            hinted: Vec::new(),
            pending: Vec::new(),
            command: 0,
            generation: None,
            round: false,
            reports: 0,
            buffers: 0,
            kernel: kernel.clone(),
            absent: 0,
        })
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.rings.device_mut()
    }

    fn step(&mut self) {
        if !breaks("R14") && self.is_alone() {
            return;
        }
        self.reap();
        if breaks("8") {
            self.rings.generation();
            self.rings.read_config(16);
            self.rings.generation();
        }
        if let Some(target) = self.read(NUM_PAGES) {
            self.resize(target as usize);
        }
        self.statistics();
        self.hints();
        self.report();
    }

    fn allocate(&mut self) -> Option<Pfn> {
        self.free.pop().map(Pfn::new)
    }

    fn free(&mut self, frame: Pfn) {
        assert!(frame.get() >= self.first);
        self.free.push(frame.get());
        if self.poison {
            self.filled.push(frame);
        }
    }

    fn relieve(&mut self) {
        let hinted = core::mem::take(&mut self.hinted);
        if breaks("35") {
            self.free.extend(hinted);
        } else {
            self.home(&hinted);
        }
        if self.accepted.contains(Features::DEFLATE_ON_OOM) {
            self.take_back(16);
        }
    }

    fn restart(&mut self) {
        let failed = self.rings.status().contains(DeviceStatus::NEEDS_RESET);
        if !failed || breaks("R15") {
            return;
        }
        let (device, memory) = testing::pair::<16>(self.kernel.profile);
        let (offered, accepted) = (device.profile().offered(), Features::VERSION_1);
        let rings = Rings::attach(device, memory, offered, accepted, &DriverOptions::new());
        let rings = rings.map_err(|refused| refused.error).unwrap();
        let (device, memory) = core::mem::replace(&mut self.rings, rings).into_parts();
        if let Some(mut fresh) = Self::bring_up(device, memory, &self.kernel) {
            fresh.free = core::mem::take(&mut self.free);
            fresh.home(&self.take_all());
            *self = fresh;
        }
    }

    fn is_waiting(&self) -> bool {
        let waits = !self.idle(QueueId::Inflate) || !self.idle(QueueId::Reporting);
        waits && !breaks("R8")
    }

    fn take_filled(&mut self) -> Vec<Pfn> {
        core::mem::take(&mut self.filled)
    }
}
