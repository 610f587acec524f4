use super::wire::{Greeting, Kept, Message, Request, Start};
use super::*;
use proptest::prelude::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn at(millis: u64) -> MonoTime {
    MonoTime(millis * 1_000_000)
}

/// Both clocks show the same time.
fn moment(millis: u64) -> Moment {
    Moment {
        boot: at(millis),
        raw: at(millis),
    }
}

/// S2: what was ordered while a deadline stood does not start a server after it.
#[test]
fn a_bounded_start_needs_a_deadline() {
    let mut clock = FenceClock::default();
    assert_eq!(clock.may_start(true), Err(Refusal::NoDeadline));
    assert_eq!(clock.may_start(false), Ok(()), "a standby, or in pause");
    assert!(clock.arm(moment(100), Epoch(3), at(500)).is_ok());
    assert_eq!(clock.may_start(true), Ok(()));
    assert_eq!(clock.poll(moment(500)), Verdict::Fence);
    for bounded in [true, false] {
        assert_eq!(clock.may_start(bounded), Err(Refusal::Fencing));
    }
    clock.emptied();
    assert_eq!(clock.may_start(true), Err(Refusal::NoDeadline));
    assert!(clock.arm(moment(600), Epoch(4), at(900)).is_ok());
    assert_eq!(clock.may_start(true), Ok(()), "of the next tenure");
}

/// The request of an agent that does not know of it ends before the field.
#[test]
fn a_start_of_an_older_agent_is_not_bounded() {
    let mut bytes = Vec::new();
    let start = Start {
        argv: vec![b"/postgres".to_vec()],
        bounded: true,
        ..Start::default()
    };
    let request = Request::Start(start.clone());
    assert_eq!(request.encode(7, &mut bytes), Ok(()));
    assert_eq!(Request::decode(&bytes), Ok((7, request)));
    bytes.pop();
    let older = Start {
        bounded: false,
        ..start
    };
    assert_eq!(Request::decode(&bytes), Ok((7, Request::Start(older))));
}

#[test]
fn table_of_transitions() {
    let mut clock = FenceClock::default();
    assert_eq!(clock.poll(moment(0)), Verdict::Idle);
    assert_eq!(
        clock.arm(moment(100), Epoch(3), at(50)),
        Err(Refusal::Passed)
    );
    assert!(clock.arm(moment(100), Epoch(3), at(8100)).is_ok());
    assert_eq!(
        clock.poll(moment(100)),
        Verdict::Wait {
            wake: ms(4000),
            backstop: ms(7360 + 40)
        }
    );
    let lower = Refusal::LowerEpoch {
        asked: Epoch(2),
        known: Epoch(3),
    };
    assert_eq!(clock.arm(moment(200), Epoch(2), at(9000)), Err(lower));
    assert_eq!(clock.disarm(Epoch(2), Basis::InRecovery, true), Err(lower));
    assert_eq!(
        clock.disarm(Epoch(3), Basis::Unknown, true),
        Err(Refusal::MayBeWritable)
    );
    assert_eq!(
        clock.armed(),
        Some(Armed {
            epoch: Epoch(3),
            deadline: at(8100)
        })
    );

    assert_eq!(clock.disarm(Epoch(3), Basis::InRecovery, true), Ok(()));
    assert_eq!(clock.poll(moment(9000)), Verdict::Idle);

    assert!(clock.arm(moment(9000), Epoch(4), at(9100)).is_ok());
    assert_eq!(
        clock.poll(moment(9099)),
        Verdict::Wait {
            wake: ms(1),
            backstop: ms(1) * 23 / 25 + ms(40)
        }
    );
    assert_eq!(clock.poll(moment(9100)), Verdict::Fence);
    assert_eq!(
        clock.arm(moment(9100), Epoch(5), at(20_000)),
        Err(Refusal::Fencing)
    );
    assert_eq!(
        clock.disarm(Epoch(5), Basis::Paused, false),
        Err(Refusal::Fencing)
    );
    assert_eq!(clock.poll(moment(9200)), Verdict::Fence);
    clock.emptied();
    assert_eq!(clock.poll(moment(9300)), Verdict::Idle);
    assert!(
        clock.arm(moment(9300), Epoch(4), at(20_000)).is_ok(),
        "a late renewal is good again"
    );
}

#[test]
fn a_shortened_lease_ends_sooner() {
    let mut clock = FenceClock::default();
    assert!(clock.arm(moment(0), Epoch(1), at(8000)).is_ok());
    assert!(clock.arm(moment(1000), Epoch(1), at(3000)).is_ok());
    assert_eq!(clock.poll(moment(3000)), Verdict::Fence);
    let mut clock = FenceClock::default();
    assert!(clock.arm(moment(0), Epoch(1), at(8000)).is_ok());
    assert!(clock.arm(moment(4000), Epoch(1), at(3000)).is_ok());
    assert_eq!(
        clock.poll(moment(4000)),
        Verdict::Fence,
        "its end has already passed"
    );
}

#[test]
fn a_compatible_lease_has_no_epoch_to_compare() {
    let mut clock = FenceClock::default();
    assert!(clock.arm(moment(0), Epoch(7), at(8000)).is_ok());
    assert!(clock.arm(moment(1), Epoch(0), at(30_000)).is_ok());
    let lower = Refusal::LowerEpoch {
        asked: Epoch(6),
        known: Epoch(7),
    };
    assert_eq!(
        clock.arm(moment(2), Epoch(6), at(30_000)),
        Err(lower),
        "the highest stays known"
    );
}

#[test]
fn the_clock_that_saw_more_time_pass_decides() {
    let mut clock = FenceClock::default();
    assert!(clock.arm(moment(0), Epoch(1), at(8000)).is_ok());
    let mut slewed = clock;
    assert_eq!(
        slewed.poll(Moment {
            boot: at(7400),
            raw: at(8000)
        }),
        Verdict::Fence
    );
    let mut suspended = clock;
    assert_eq!(
        suspended.poll(Moment {
            boot: at(8000),
            raw: at(10)
        }),
        Verdict::Fence
    );
}

/// One step in the life of a guardian.
#[derive(Clone, Debug)]
enum Step {
    Arm { epoch: u64, ahead: u64 },
    Disarm { epoch: u64, basis: u8, alive: bool },
    Fence,
    Emptied,
    Sleep { boot: u64, raw: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u64..4, 0u64..9000).prop_map(|(epoch, ahead)| Step::Arm { epoch, ahead }),
        (0u64..4, 0u8..3, any::<bool>()).prop_map(|(epoch, basis, alive)| Step::Disarm {
            epoch,
            basis,
            alive
        }),
        Just(Step::Fence),
        Just(Step::Emptied),
        (0u64..4000, 0u64..4000).prop_map(|(boot, raw)| Step::Sleep { boot, raw }),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever happens, an armed clock fences as soon as either clock has reached the deadline that
    /// was last confirmed, and only an accepted request changes that deadline.
    #[test]
    fn nothing_but_an_accepted_request_moves_the_deadline(steps in steps()) {
        let mut clock = FenceClock::default();
        let mut now = Moment::default();
        let mut confirmed: Option<Moment> = None;
        let mut highest = 0;
        for step in steps {
            let before = clock;
            match step {
                Step::Arm { epoch, ahead } => {
                    let deadline = now.boot + ms(ahead);
                    if clock.arm(now, Epoch(epoch), deadline).is_ok() {
                        prop_assert!(epoch == 0 || epoch >= highest);
                        highest = highest.max(epoch);
                        confirmed = Some(Moment { boot: deadline, raw: now.raw + ms(ahead) });
                    } else {
                        prop_assert_eq!(clock, before);
                    }
                }
                Step::Disarm { epoch, basis, alive } => {
                    let basis = [Basis::Unknown, Basis::InRecovery, Basis::Paused][usize::from(basis)];
                    if clock.disarm(Epoch(epoch), basis, alive).is_ok() {
                        prop_assert!(!alive || basis != Basis::Unknown);
                        confirmed = None;
                    } else {
                        prop_assert_eq!(clock, before);
                    }
                }
                Step::Fence => clock.fence(),
                Step::Emptied => {
                    clock.emptied();
                    if before.is_fencing() {
                        confirmed = None;
                    }
                }
                Step::Sleep { boot, raw } => {
                    now = Moment { boot: now.boot + ms(boot), raw: now.raw + ms(raw) };
                }
            }
            let was_fencing = clock.is_fencing();
            let passed = confirmed.is_some_and(|d| now.boot >= d.boot || now.raw >= d.raw);
            match clock.poll(now) {
                Verdict::Fence => prop_assert!(was_fencing || passed),
                Verdict::Idle => prop_assert!(confirmed.is_none() && !was_fencing),
                Verdict::Wait { wake, backstop } => {
                    prop_assert!(!passed && !was_fencing);
                    let left = clock.remaining(now).unwrap_or_default();
                    prop_assert!(!wake.is_zero() && wake <= left);
                    prop_assert!(wake < backstop, "an awake guardian acts before the kernel timer");
                    prop_assert!(backstop.mul_f64(1.0834) <= left + ms(44), "a stopped one is dead in time");
                }
            }
        }
    }

    /// Nothing that arrives makes the decoder panic, and what it accepts it can write again.
    #[test]
    fn any_bytes_are_a_message_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut out = Vec::new();
        if let Ok((id, request)) = Request::decode(&bytes) {
            prop_assert!(request.encode(id, &mut out).is_ok());
            prop_assert_eq!(Request::decode(&out), Ok((id, request)));
        }
        if let Ok((id, message)) = Message::decode(&bytes) {
            prop_assert!(message.encode(id, &mut out).is_ok());
            prop_assert_eq!(Message::decode(&out), Ok((id, message)));
        }
    }
}

#[test]
fn messages_survive_the_wire() {
    let armed = Armed {
        epoch: Epoch(5),
        deadline: at(77),
    };
    let kept = Kept {
        session: "s".into(),
        blob: vec![1, 2, 3],
    };
    let start = Start {
        argv: vec![b"/bin/postgres".to_vec(), b"-D".to_vec()],
        env: vec![(b"A".to_vec(), b"b=c".to_vec())],
        cwd: b"/".to_vec(),
        log: Vec::new(),
        bounded: true,
    };
    let requests = [
        Request::Hello { version: 1 },
        Request::Heartbeat,
        Request::Start(start),
        Request::Adopt { pid: 4 },
        Request::Signal { signal: 2 },
        Request::Arm(armed),
        Request::Disarm {
            epoch: Epoch(1),
            basis: Basis::Paused,
        },
        Request::Fence,
        Request::Keep(kept.clone()),
        Request::Leave,
    ];
    let mut out = Vec::new();
    for (id, request) in (0u32..).zip(requests) {
        assert_eq!(request.encode(id, &mut out), Ok(()));
        assert_eq!(Request::decode(&out), Ok((id, request)));
        for cut in 0..out.len() {
            let _ = Request::decode(&out[..cut]);
        }
    }
    let greeting = Greeting {
        version: 1,
        pid: 9,
        session: "abc".into(),
        postmaster: Some(10),
        is_parent: true,
        armed: Some(armed),
        fit: true,
        measured: ms(3),
        method: "scan".into(),
        kept: Some(kept),
    };
    let messages = [
        Message::Hello(greeting),
        Message::Heartbeat,
        Message::Postmaster { pid: 3 },
        Message::Done,
        Message::Refused { why: "no".into() },
        Message::Armed(armed),
        Message::Disarmed,
        Message::Exited {
            pid: 3,
            status: Some(256),
        },
        Message::Orphans { count: 2 },
        Message::Empty,
        Message::Fenced {
            took: ms(12),
            count: 9,
        },
        Message::Replaced,
        Message::Busy { pid: 5 },
    ];
    for (id, message) in (0u32..).zip(messages) {
        assert_eq!(message.encode(id, &mut out), Ok(()));
        assert_eq!(Message::decode(&out), Ok((id, message)));
    }
    let long = Request::Keep(Kept {
        session: String::new(),
        blob: vec![0; wire::MAX_MESSAGE],
    });
    assert_eq!(long.encode(1, &mut out), Err(wire::Malformed));
}
