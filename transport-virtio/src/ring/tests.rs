use super::*;
use crate::testing::FakeMemory;
use balloon_core::{Kind, SlotId};

const SIZE: u16 = 8;

fn areas() -> Areas {
    Areas::place(0, SIZE.into()).0
}

fn ring(event_idx: bool) -> (FakeMemory, Ring<8>) {
    let memory = FakeMemory::new(Areas::place(0, SIZE.into()).1);
    for place in (0..memory.len()).step_by(2) {
        memory.store16(place, 0);
    }
    let ring = Ring::new(&memory, areas(), SIZE, event_idx, true);
    (memory, ring)
}

fn request(slot: u16) -> RequestId {
    RequestId {
        kind: Kind::Inflate,
        slot: SlotId::new(slot),
    }
}

fn submit(
    ring: &mut Ring<8>,
    memory: &FakeMemory,
    slot: u16,
    len: usize,
) -> Result<(), QueueError> {
    let segment = Segment {
        address: 0x1_0000_2000,
        len: 4096,
        access: Access::Write,
    };
    ring.submit(memory, request(slot), std::vec![segment; len].into_iter())
}

/// Writes a used entry as the device would, `index` being the one before.
fn answer(memory: &FakeMemory, index: u16, id: u32) {
    let place = areas().used + 4 + 8 * usize::from(index % SIZE);
    memory.store32(place, id);
    memory.store32(place + 4, 0);
    memory.store16(areas().used + 2, index.wrapping_add(1));
}

fn available_head(memory: &FakeMemory, index: u16) -> u16 {
    memory.load16(areas().available + 4 + 2 * usize::from(index % SIZE))
}

fn pop(ring: &mut Ring<8>, memory: &FakeMemory) -> Option<u16> {
    ring.pop(memory, &mut QueueCounters::default())
        .unwrap()
        .map(|answer| answer.request.slot.get())
}

#[test]
fn areas_are_aligned_and_apart() {
    for size in [1, 2, 64, 128, 32768] {
        let (first, end) = Areas::place(7, size);
        assert_eq!(
            (first.descriptors % 16, first.available % 2, first.used % 4),
            (0, 0, 0)
        );
        assert!(first.descriptors >= 7 && first.available >= first.descriptors + 16 * size);
        assert!(first.used >= first.available + 6 + 2 * size && end >= first.used + 6 + 8 * size);
    }
}

#[test]
fn chains_are_written_as_the_device_reads_them() {
    let (memory, mut ring) = ring(false);
    submit(&mut ring, &memory, 3, 2).unwrap();
    let at = |place| areas().descriptors + place;
    assert_eq!((memory.load32(at(0)), memory.load32(at(4))), (0x2000, 1));
    assert_eq!(
        (
            memory.load32(at(8)),
            memory.load16(at(12)),
            memory.load16(at(14))
        ),
        (4096, 3, 1)
    );
    assert_eq!(
        (memory.load16(at(16 + 12)), memory.load16(at(16 + 14))),
        (2, 0)
    );
    assert_eq!(memory.load16(areas().available + 2), 1);
}

#[test]
fn descriptors_come_back_and_the_ring_never_overfills() {
    let (memory, mut ring) = ring(false);
    assert_eq!(submit(&mut ring, &memory, 0, 9), Err(QueueError::TooLong));
    assert_eq!(submit(&mut ring, &memory, 0, 0), Err(QueueError::TooLong));
    submit(&mut ring, &memory, 0, 5).unwrap();
    assert_eq!(submit(&mut ring, &memory, 1, 4), Err(QueueError::Full));
    submit(&mut ring, &memory, 1, 3).unwrap();
    assert_eq!(ring.spare().next(), None);
    answer(&memory, 0, available_head(&memory, 1).into());
    assert_eq!(pop(&mut ring, &memory), Some(1));
    submit(&mut ring, &memory, 2, 3).unwrap();
    answer(&memory, 1, available_head(&memory, 0).into());
    answer(&memory, 2, available_head(&memory, 2).into());
    assert_eq!(
        (pop(&mut ring, &memory), pop(&mut ring, &memory)),
        (Some(0), Some(2))
    );
    submit(&mut ring, &memory, 4, 8).unwrap();
}

#[test]
fn answers_that_make_no_sense_are_dropped() {
    let (memory, mut ring) = ring(false);
    submit(&mut ring, &memory, 5, 2).unwrap();
    let mut counters = QueueCounters::default();
    // Out of range, the middle of a chain, a free descriptor, then the real one
    // twice.
    let head = u32::from(available_head(&memory, 0));
    for (index, id) in (0..).zip([8, u32::MAX, head + 1, head + 2, head, head]) {
        answer(&memory, index, id);
    }
    let answer = ring.pop(&memory, &mut counters).unwrap().unwrap();
    assert_eq!(answer.request, request(5));
    assert_eq!(ring.pop(&memory, &mut counters), Ok(None));
    assert_eq!((counters.answers, counters.spurious_answers), (1, 5));
    submit(&mut ring, &memory, 6, 8).unwrap();
}

#[test]
fn an_index_that_runs_away_breaks_the_queue() {
    let (memory, mut ring) = ring(false);
    submit(&mut ring, &memory, 0, 1).unwrap();
    memory.store16(areas().used + 2, SIZE + 1);
    let mut counters = QueueCounters::default();
    assert_eq!(ring.pop(&memory, &mut counters), Err(QueueError::Broken));
    // It stays broken, whatever the device says next.
    memory.store16(areas().used + 2, 1);
    assert_eq!(ring.pop(&memory, &mut counters), Err(QueueError::Broken));
    assert_eq!(submit(&mut ring, &memory, 1, 1), Err(QueueError::Broken));
    assert_eq!(counters.broken, 1);
}

#[test]
fn scribbling_over_shared_memory_changes_nothing() {
    let (memory, mut ring) = ring(true);
    submit(&mut ring, &memory, 0, 3).unwrap();
    submit(&mut ring, &memory, 1, 2).unwrap();
    let second = u32::from(available_head(&memory, 1));
    for place in (0..areas().used).step_by(2) {
        memory.store16(place, 0xa5a5);
    }
    answer(&memory, 0, second);
    assert_eq!(pop(&mut ring, &memory), Some(1));
    answer(&memory, 1, 0);
    assert_eq!(pop(&mut ring, &memory), Some(0));
    submit(&mut ring, &memory, 2, 8).unwrap();
}

#[test]
fn one_kick_for_many_and_none_for_nothing() {
    let (memory, mut ring) = ring(false);
    assert!(!ring.kick(&memory, 1).notify);
    submit(&mut ring, &memory, 0, 1).unwrap();
    submit(&mut ring, &memory, 1, 1).unwrap();
    assert_eq!(
        ring.kick(&memory, 1),
        Kick {
            fresh: true,
            notify: true,
            answered: false
        }
    );
    assert_eq!(
        ring.kick(&memory, 1),
        Kick {
            fresh: false,
            notify: false,
            answered: false
        }
    );
    // A device that is awake says so.
    memory.store16(areas().used, 1);
    submit(&mut ring, &memory, 2, 1).unwrap();
    assert_eq!(
        ring.kick(&memory, 1),
        Kick {
            fresh: true,
            notify: false,
            answered: false
        }
    );
}

#[test]
fn the_interrupt_is_asked_for_where_the_answers_will_be() {
    let (memory, mut ring) = ring(true);
    let used_event = areas().available + 4 + 2 * usize::from(SIZE);
    for slot in 0..4 {
        submit(&mut ring, &memory, slot, 1).unwrap();
    }
    assert!(!ring.kick(&memory, 2).answered);
    assert_eq!(memory.load16(used_event), 1);
    // More than are in flight cannot be waited for.
    ring.kick(&memory, 100);
    assert_eq!(memory.load16(used_event), 3);
    answer(&memory, 0, 0);
    assert!(!ring.kick(&memory, 2).answered);
    answer(&memory, 1, 1);
    assert!(ring.kick(&memory, 2).answered);
}

#[test]
fn a_dropped_answer_does_not_use_up_the_interrupt() {
    let (memory, mut ring) = ring(true);
    let used_event = areas().available + 4 + 2 * usize::from(SIZE);
    for slot in 0..2 {
        submit(&mut ring, &memory, slot, 1).unwrap();
    }
    ring.kick(&memory, 2);
    assert_eq!(memory.load16(used_event), 1);
    // Answers to nothing take the entries the interrupt was asked for at.
    answer(&memory, 0, 7);
    assert_eq!(pop(&mut ring, &memory), None);
    assert_eq!(memory.load16(used_event), 2);
    answer(&memory, 1, 7);
    answer(&memory, 2, 7);
    assert_eq!(pop(&mut ring, &memory), None);
    assert_eq!(memory.load16(used_event), 4);
    // Real answers do not move it: they are what was asked for.
    answer(&memory, 3, 0);
    assert_eq!(pop(&mut ring, &memory), Some(0));
    assert_eq!(memory.load16(used_event), 4);
}

#[test]
fn a_device_that_answers_nothing_without_end_keeps_nobody() {
    struct Babble(FakeMemory, core::cell::Cell<u16>);
    impl Dma for Babble {
        fn address(&self) -> u64 {
            self.0.address()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn load16(&self, offset: usize) -> u16 {
            if offset == areas().used + 2 {
                // One more at every look.
                self.1.set(self.1.get().wrapping_add(1));
                return self.1.get();
            }
            self.0.load16(offset)
        }
        fn store16(&self, offset: usize, value: u16) {
            self.0.store16(offset, value);
        }
    }
    let (memory, mut ring) = ring(true);
    submit(&mut ring, &memory, 0, 1).unwrap();
    memory.store32(areas().used + 4, 7);
    let babble = Babble(memory, core::cell::Cell::new(0));
    for place in (areas().used + 4..areas().used + 4 + 8 * usize::from(SIZE)).step_by(8) {
        babble.store32(place, 7);
    }
    let mut counters = QueueCounters::default();
    assert_eq!(ring.pop(&babble, &mut counters), Ok(None));
    assert!(counters.spurious_answers <= u32::from(SIZE));
}

#[test]
fn without_interrupts_none_is_asked_for() {
    for event_idx in [false, true] {
        let (memory, _) = ring(event_idx);
        let mut ring = Ring::<8>::new(&memory, areas(), SIZE, event_idx, false);
        // With event indices the flag is to stay clear (virtio 1.2 section 2.7.7.1).
        assert_eq!(memory.load16(areas().available), u16::from(!event_idx));
        let used_event = areas().available + 4 + 2 * usize::from(SIZE);
        for index in 0..SIZE {
            submit(&mut ring, &memory, index, 1).unwrap();
            answer(&memory, index, available_head(&memory, index).into());
            let wanted = |memory: &FakeMemory| passed(memory.load16(used_event), index + 1, index);
            assert!(!event_idx || !wanted(&memory));
            assert_eq!(pop(&mut ring, &memory), Some(index));
            ring.kick(&memory, 1);
            // A device that published its answer before, and looks only now.
            assert!(!event_idx || !wanted(&memory));
        }
    }
}

#[test]
fn indices_wrap_past_65536() {
    let (memory, mut ring) = ring(true);
    let used_event = areas().available + 4 + 2 * usize::from(SIZE);
    let avail_event = areas().used + 4 + 8 * usize::from(SIZE);
    // Miri is slow: it starts just before the end of the circle.
    let first = if cfg!(miri) { 65_500 } else { 0u32 };
    let at = u16::try_from(first).unwrap();
    (ring.published, ring.kicked, ring.taken) = (at, at, at);
    memory.store16(areas().used + 2, at);
    let last = if cfg!(miri) { 65_600 } else { 70_000 };
    for round in first..last {
        let index = u16::try_from(round & 0xffff).unwrap();
        submit(&mut ring, &memory, index, 1).unwrap();
        // The device asks for the next entry each time: one kick each.
        memory.store16(avail_event, index);
        assert!(ring.kick(&memory, 1).notify, "round {round}");
        assert_eq!(memory.load16(used_event), index);
        // And if it asks for one further on: none.
        assert_eq!(pop(&mut ring, &memory), None);
        answer(&memory, index, available_head(&memory, index).into());
        assert_eq!(pop(&mut ring, &memory), Some(index));
    }
}

#[test]
fn an_entry_is_passed_once_on_the_circle() {
    assert!(passed(0, 1, 0) && passed(5, 7, 4) && passed(u16::MAX, 0, u16::MAX));
    assert!(!passed(1, 1, 0) && !passed(3, 7, 4) && !passed(7, 7, 4));
    assert!(passed(0xfffe, 2, 0xfffd) && !passed(0xfffc, 2, 0xfffd) && !passed(2, 2, 0xfffd));
}
