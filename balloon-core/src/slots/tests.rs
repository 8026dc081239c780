use super::*;

static SLOTS: Slots<2> = Slots::new();

#[test]
fn a_slot_lives_through_one_request() {
    let slots = Slots::<1>::new();
    let slot = slots.claim(Kind::Inflate).unwrap();
    assert_eq!(slots.claim(Kind::Inflate), Err(Exhausted(Kind::Inflate)));
    assert_eq!(slots.answer(Kind::Inflate, slot), None);
    let done = slots.completer();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(WrongState)
    );
    slots.launch(Kind::Inflate, slot).unwrap();
    assert_eq!(slots.launch(Kind::Inflate, slot), Err(WrongState));
    assert_eq!(slots.release(Kind::Inflate, slot), Err(WrongState));
    done.complete(Kind::Inflate, slot, Outcome::Partial(FrameCount::new(7)))
        .unwrap();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(WrongState),
        "twice"
    );
    assert_eq!(
        slots.revoke(Kind::Inflate, slot),
        Err(WrongState),
        "the answer came first"
    );
    let outcome = slots.answer(Kind::Inflate, slot);
    assert_eq!(outcome, Some(Outcome::Partial(FrameCount::new(7))));
    assert_eq!(slots.answer(Kind::Inflate, slot), None, "delivered once");
    slots.release(Kind::Inflate, slot).unwrap();
    assert_eq!(slots.claim(Kind::Inflate), Ok(slot));
}

#[test]
fn kinds_share_nothing() {
    while SLOTS.claim(Kind::Inflate).is_ok() {}
    let slot = SLOTS
        .claim(Kind::Hint)
        .expect("a hint never waits for an inflation");
    SLOTS.launch(Kind::Hint, slot).unwrap();
    let done = SLOTS.completer();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(WrongState)
    );
    assert_eq!(
        done.complete(Kind::Report, slot, Outcome::Whole),
        Err(WrongState)
    );
    done.complete(Kind::Hint, slot, Outcome::Whole).unwrap();
    assert_eq!(SLOTS.answer(Kind::Hint, slot), Some(Outcome::Whole));
}

#[test]
fn slots_that_do_not_exist_are_refused() {
    let slots = Slots::<2>::new();
    for index in [2, 3, u16::MAX] {
        let slot = SlotId::new(index);
        for kind in [Kind::Inflate, Kind::Statistics] {
            assert_eq!(slots.launch(kind, slot), Err(WrongState));
            assert_eq!(
                slots.completer().complete(kind, slot, Outcome::Whole),
                Err(WrongState)
            );
            assert_eq!(slots.answer(kind, slot), None);
        }
    }
}

#[test]
fn outcomes_never_exceed_what_was_asked() {
    let asked = FrameCount::new(10);
    assert_eq!(Outcome::Whole.frames(asked), asked);
    assert_eq!(Outcome::Partial(FrameCount::new(3)).frames(asked).get(), 3);
    assert_eq!(Outcome::Partial(FrameCount::MAX).frames(asked), asked);
    let slots = Slots::<1>::new();
    let slot = slots.claim(Kind::Report).unwrap();
    slots.launch(Kind::Report, slot).unwrap();
    slots
        .completer()
        .complete(Kind::Report, slot, Outcome::Partial(FrameCount::MAX))
        .unwrap();
    assert_eq!(slots.answer(Kind::Report, slot), Some(Outcome::Whole));
}
