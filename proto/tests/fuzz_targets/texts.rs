//! Small languages: PostgreSQL's, people's, and that between agent and guardian.

use super::text;
use crate::fuzz::Seen;
use proto::config::SECONDS_MAX;
use proto::core::sync::{Form, parse_names, render_names};
use proto::fence::wire::{MAX_MESSAGE, Message, Request};
use proto::rest::size;
use proto::rest::stamp::{Stamp, status_form};
use proto::time::WallTime;
use proto::wal::{Lsn, Timeline, TimelineHistory};
use serde_json::Value;
use std::collections::BTreeSet;

/// Above those of the examples.
const TIMELINE: Timeline = Timeline(1000);

pub fn history(input: &[u8]) -> Seen {
    let history = match TimelineHistory::parse(TIMELINE, &text(input)) {
        Ok(history) => history,
        Err(bad) => {
            assert!(bad.line > 0 && bad.text.chars().count() <= 80);
            return Seen::Refused;
        }
    };
    let mut written = String::new();
    let mut before = None;
    for switch in &history.switches {
        assert!(before < Some(switch.parent) && switch.parent < TIMELINE);
        before = Some(switch.parent);
        assert_eq!(history.switch_point(switch.parent), Some(switch.switch));
        assert!(history.contains(switch.parent, switch.switch));
        let beyond = Lsn(switch.switch.0.saturating_add(1));
        assert!(beyond == switch.switch || !history.contains(switch.parent, beyond));
        written.push_str(&format!(
            "{}\t{}\t{}\n",
            switch.parent, switch.switch, switch.reason
        ));
    }
    assert!(history.contains(TIMELINE, Lsn(u64::MAX)));
    assert_eq!(
        TimelineHistory::parse(TIMELINE, &written).as_ref(),
        Ok(&history),
        "{written:?}"
    );
    Seen::Accepted
}

pub fn lsn(input: &[u8]) -> Seen {
    let text = text(input);
    let read = text.parse::<Lsn>();
    let half =
        |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
    let by_grammar = text
        .trim()
        .split_once('/')
        .is_some_and(|(high, low)| half(high) && half(low));
    assert_eq!(read.is_ok(), by_grammar, "{text:?}");
    match read {
        Ok(lsn) => assert_eq!(lsn.to_string().parse(), Ok(lsn)),
        Err(bad) => assert!(bad.0.chars().count() <= 40),
    }
    Seen::from(by_grammar)
}

/// `synchronous_standby_names`: what we write in place of a value enforces the same.
pub fn names(input: &[u8]) -> Seen {
    let text = text(input);
    let Some(parsed) = parse_names(&text) else {
        return Seen::Refused;
    };
    assert_eq!(parsed.count == 0, parsed.names.is_empty(), "{text:?}");
    assert!(parsed.names.len() <= 1 + text.matches(',').count());
    let written = render_names(&parsed.names, parsed.count, parsed.form);
    let again = parse_names(&written).expect("our own text");
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(&again.names), set(&parsed.names), "{written:?}");
    assert_eq!(
        (again.count, again.form),
        (parsed.count, parsed.form),
        "{written:?}"
    );
    assert!(parsed.form == Form::First || text.to_ascii_lowercase().contains("any"));
    Seen::Accepted
}

pub fn moment(input: &[u8]) -> Seen {
    let text = text(input);
    let strict = WallTime::parse(&text);
    if let Some(wall) = strict {
        assert_eq!(
            WallTime::parse(&wall.to_iso()),
            Some(wall),
            "{}",
            wall.to_iso()
        );
    }
    let Some(stamp) = Stamp::parse(&text) else {
        return Seen::Refused;
    };
    let written = stamp.render('T');
    let again = Stamp::parse(&written).expect("our own text");
    assert_eq!(
        again.micros(),
        stamp.micros(),
        "{text:?} is written {written}"
    );
    assert_eq!(again.render('T'), written);
    assert_eq!(status_form(&text), stamp.render(' '));
    if let Some(wall) = stamp.wall() {
        assert_eq!(WallTime::parse(&written), Some(wall), "{written}");
        assert!(
            stamp
                .epoch_text()
                .is_some_and(|shown| shown.parse::<f64>().is_ok())
        );
    }
    Seen::Accepted
}

pub fn size(input: &[u8]) -> Seen {
    let text = text(input);
    let bytes = size::bytes(&text);
    if let Some(bytes) = bytes {
        // Beyond that a number with a fraction does not hold every whole one.
        if bytes.unsigned_abs() < 1 << 53 {
            assert_eq!(size::bytes(&bytes.to_string()), Some(bytes), "{text:?}");
        }
    }
    let seconds = size::positive_seconds(&Value::String(text.clone().into_owned()));
    if let Some(seconds) = seconds {
        assert!((1..=SECONDS_MAX).contains(&seconds), "{text:?}");
        let again = Value::String(format!("{seconds}s"));
        assert_eq!(size::positive_seconds(&again), Some(seconds), "{text:?}");
    }
    Seen::from(bytes.is_some() || seconds.is_some())
}

pub fn guardian_request(input: &[u8]) -> Seen {
    let Ok((id, request)) = Request::decode(input) else {
        return Seen::Refused;
    };
    let mut written = Vec::new();
    request
        .encode(id, &mut written)
        .expect("no longer than what it was read from");
    assert!(written.len() <= input.len().min(MAX_MESSAGE));
    assert_eq!(Request::decode(&written), Ok((id, request)));
    Seen::Accepted
}

pub fn guardian_message(input: &[u8]) -> Seen {
    let Ok((id, message)) = Message::decode(input) else {
        return Seen::Refused;
    };
    let mut written = Vec::new();
    message
        .encode(id, &mut written)
        .expect("no longer than what it was read from");
    assert!(written.len() <= input.len().min(MAX_MESSAGE));
    assert_eq!(Message::decode(&written), Ok((id, message)));
    Seen::Accepted
}
