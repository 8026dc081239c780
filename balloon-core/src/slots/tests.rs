use super::*;

static SLOTS: Slots<2> = Slots::new();

#[test]
fn a_slot_lives_through_one_request() {
    let slots = Slots::<1>::new();
    let claimed = slots.claim(Kind::Inflate).unwrap();
    let slot = claimed.slot();
    assert_eq!(
        slots.claim(Kind::Inflate).unwrap_err(),
        Exhausted(Kind::Inflate)
    );
    let done = slots.completer();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(NotInFlight)
    );
    let waiting = claimed.launch().answer().expect_err("not answered");
    done.complete(Kind::Inflate, slot, Outcome::Partial(FrameCount::new(7)))
        .unwrap();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(NotInFlight),
        "twice"
    );
    let waiting = waiting.revoke().expect_err("the answer came first");
    let (claimed, outcome) = waiting.answer().expect("answered");
    assert_eq!(outcome, Outcome::Partial(FrameCount::new(7)));
    assert!(slots.claim(Kind::Inflate).is_err(), "still its taker's");
    drop(claimed);
    assert_eq!(slots.claim(Kind::Inflate).unwrap().slot(), slot);
}

#[test]
fn a_revoked_slot_takes_no_answer() {
    let slots = Slots::<1>::new();
    let claimed = slots
        .claim(Kind::Deflate)
        .unwrap()
        .launch()
        .revoke()
        .expect("unanswered");
    let done = slots.completer();
    assert_eq!(
        done.complete(Kind::Deflate, claimed.slot(), Outcome::Whole),
        Err(NotInFlight)
    );
}

#[test]
fn kinds_share_nothing() {
    let inflations = [SLOTS.claim(Kind::Inflate), SLOTS.claim(Kind::Inflate)];
    assert!(SLOTS.claim(Kind::Inflate).is_err());
    let hint = SLOTS
        .claim(Kind::Hint)
        .expect("a hint never waits for an inflation")
        .launch();
    let slot = hint.slot();
    let done = SLOTS.completer();
    assert_eq!(
        done.complete(Kind::Inflate, slot, Outcome::Whole),
        Err(NotInFlight)
    );
    assert_eq!(
        done.complete(Kind::Report, slot, Outcome::Whole),
        Err(NotInFlight)
    );
    done.complete(Kind::Hint, slot, Outcome::Whole).unwrap();
    assert!(hint.answer().is_ok());
    drop(inflations);
}

#[test]
fn slots_that_do_not_exist_are_refused() {
    let slots = Slots::<2>::new();
    for index in [2, 3, u16::MAX] {
        for kind in [Kind::Inflate, Kind::Statistics, Kind::Migrate] {
            let answer = slots
                .completer()
                .complete(kind, SlotId::new(index), Outcome::Whole);
            assert_eq!(answer, Err(NotInFlight));
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
    let waiting = slots.claim(Kind::Report).unwrap().launch();
    let most = Outcome::Partial(FrameCount::MAX);
    slots
        .completer()
        .complete(Kind::Report, waiting.slot(), most)
        .unwrap();
    assert_eq!(waiting.answer().unwrap().1, Outcome::Whole);
}

#[test]
fn a_torn_pair_is_told() {
    let slots = Slots::<1>::new();
    for pairs in [0, 1, 511, (1 << 28) - 2] {
        let waiting = slots.claim(Kind::Migrate).unwrap().launch();
        let torn = Outcome::Torn(FrameCount::new(pairs));
        let answered = slots
            .completer()
            .complete(Kind::Migrate, waiting.slot(), torn);
        assert_eq!(answered, Ok(()));
        assert_eq!(waiting.answer().unwrap().1, torn);
    }
    let torn = Outcome::Torn(FrameCount::new(3));
    for (asked, (taken, given)) in [(10, (3, 4)), (4, (3, 4)), (3, (3, 3))] {
        let asked = FrameCount::new(asked);
        let answer = (torn.frames(asked).get(), torn.given(asked).get());
        assert_eq!(answer, (taken, given));
    }
}
