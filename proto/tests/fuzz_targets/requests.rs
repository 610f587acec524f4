//! What REST is asked: the part behind `?`, and bodies.

use super::{object, text};
use crate::fuzz::Seen;
use proto::dcs::FailoverRecord;
use proto::ids::Revision;
use proto::rest::requests::{ReinitBody, failsafe_caller};
use proto::rest::{HandoverKind, HandoverRequest, Query, Reply, RestartBody};
use proto::time::{MonoTime, WallTime};

pub const WORDS: &[&str] = &[
    "\"schedule\"",
    "\"scheduled_at\"",
    "\"leader\"",
    "\"candidate\"",
    "\"member\"",
    "\"role\"",
    "\"timeout\"",
    "\"postgres_version\"",
    "\"restart_pending\"",
    "\"force\"",
    "\"from-leader\"",
    "\"9999-12-30T22:00:00Z\"",
    "\"2031-01-01T00:00+25:00\"",
    "\"5min\"",
    "\"9.6.3\"",
    "\"15.1\"",
];

/// In July 2026: examples have moments before and after it.
const NOW: WallTime = WallTime(1_784_887_932_000);

/// An answer is a short page with a code that the interface has.
fn refused(reply: &Reply, input: &[u8]) {
    assert!([400, 412, 422, 500, 503].contains(&reply.code), "{reply:?}");
    assert!(reply.text.len() <= 2 * input.len() + 200, "{reply:?}");
}

pub fn query(input: &[u8]) -> Seen {
    let text = text(input);
    let query = Query::parse(&text);
    let mut expected = std::collections::BTreeMap::new();
    for (name, value) in text.split('&').filter_map(|part| part.split_once('=')) {
        if !value.is_empty() {
            expected
                .entry(decoded(name))
                .or_insert_with(|| decoded(value));
        }
    }
    for (name, value) in &expected {
        assert_eq!(query.get(name), Some(value.as_str()), "{name:?}");
        if name == "lag" || name == "replication_state" {
            let _ = proto::rest::size::bytes(value);
        }
    }
    Seen::Accepted
}

/// Written another way than the code under test: by pieces between the `%`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    for (index, piece) in text.replace('+', " ").split('%').enumerate() {
        let code = piece
            .as_bytes()
            .get(..2)
            .filter(|code| code.iter().all(u8::is_ascii_hexdigit));
        let code =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match (index, code) {
            (0, _) => bytes.extend(piece.bytes()),
            (_, Some(byte)) => {
                bytes.push(byte);
                bytes.extend(&piece.as_bytes()[2..]);
            }
            (_, None) => {
                bytes.push(b'%');
                bytes.extend(piece.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `/restart`; the same body is also tried as that of `/reinitialize` and of `/failsafe`, which refuse nothing.
pub fn restart(input: &[u8]) -> Seen {
    let Some(body) = object(input) else {
        return Seen::Refused;
    };
    let _ = ReinitBody::parse(&body);
    if let Some(caller) = failsafe_caller(&body, MonoTime(5)) {
        assert_eq!(
            body.get("name").and_then(|name| name.as_str()),
            Some(caller.name.as_str())
        );
    }
    let paused = RestartBody::parse(&body, true, NOW);
    assert!(paused.is_err() || !body.contains_key("schedule"));
    match RestartBody::parse(&body, false, NOW) {
        Err(reply) => {
            refused(&reply, input);
            Seen::Refused
        }
        Ok(read) => {
            assert!(read.timeout.is_none_or(|seconds| seconds > 0));
            assert!(read.below_version.is_none_or(|version| version < 1_000_000));
            assert_eq!(read.raw.len(), body.len());
            if let Some((shown, at)) = &read.schedule {
                assert_moment(shown, *at);
            }
            Seen::Accepted
        }
    }
}

/// `/switchover` and `/failover`: what is accepted is stored, and every member reads the same request again.
pub fn handover(input: &[u8]) -> Seen {
    let Some(body) = object(input) else {
        return Seen::Refused;
    };
    let mut accepted = false;
    for kind in [HandoverKind::Switchover, HandoverKind::Failover] {
        for paused in [false, true] {
            match HandoverRequest::parse(kind, &body, paused, NOW) {
                Err(reply) => refused(&reply, input),
                Ok(request) => {
                    assert_stored(&request);
                    accepted = true;
                }
            }
        }
    }
    Seen::from(accepted)
}

fn assert_stored(request: &HandoverRequest) {
    assert!(request.leader.is_none() || request.leader != request.candidate);
    assert_eq!(
        request.leader.is_some(),
        request.kind == HandoverKind::Switchover
    );
    let read = FailoverRecord::parse(&request.to_value(), Revision(1)).expect("our own text");
    let read = read.expect("somebody is named");
    assert_eq!(
        (&read.leader, &read.candidate),
        (&request.leader, &request.candidate)
    );
    let schedule = read
        .scheduled_at
        .map(|schedule| (schedule.text, schedule.at));
    match (&request.scheduled_at, schedule) {
        (None, None) => {}
        (Some(shown), Some((text, Some(at)))) => {
            assert_eq!(*shown, text);
            assert_moment(shown, at);
        }
        (wanted, found) => panic!("{wanted:?} is stored, {found:?} is read"),
    }
}

/// A moment that was accepted is ahead, and means the same to the readers of the record.
fn assert_moment(shown: &str, at: WallTime) {
    assert!(at >= NOW, "{shown} is past");
    assert_eq!(WallTime::parse(shown), Some(at), "{shown}");
}
