//! What other members say: addresses, answers, journals, certificates; and who may ask.

use super::text;
use crate::fuzz::Seen;
use garden_agent::foreign;
use garden_agent::http::{HttpResponse, sibling_url};
use proto::core::observation::PeerStatus;
use proto::wal::Lsn;
use std::net::{IpAddr, Ipv4Addr};

pub const RULES: &[&str] = &[
    "\"promote\"",
    "\"leading\"",
    "\"follow\"",
    "\"race-claim\"",
    "\"lost-lock\"",
    "\"member\"",
    "\"wall_ms\"",
    "\"detail\"",
];

/// Another endpoint of a member is at the same place.
pub fn url(input: &[u8]) -> Seen {
    let text = text(input);
    let Ok(other) = sibling_url(&text, "/failsafe") else {
        return Seen::Refused;
    };
    assert!(
        other.ends_with("/failsafe") && other.starts_with("http"),
        "{other}"
    );
    let again = sibling_url(&other, "patroni").expect("our own text");
    assert_eq!(
        again.strip_suffix("/patroni"),
        other.strip_suffix("/failsafe")
    );
    Seen::Accepted
}

/// Headers, an empty line, and the body of an answer to `GET /patroni`.
pub fn status(input: &[u8]) -> Seen {
    let text = text(input);
    let (head, body) = text.split_once("\n\n").unwrap_or(("", &text));
    let mut response = HttpResponse {
        status: hyper::StatusCode::OK,
        headers: hyper::HeaderMap::new(),
        body: body.to_owned().into(),
    };
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value.parse()) {
            response.headers.insert(name, value);
        }
    }
    let status = foreign::peer_status(&response);
    assert!(status.timeline.is_none_or(|timeline| timeline.0 > 0));
    if status.agent_only {
        let nothing = PeerStatus {
            agent_only: true,
            tags: status.tags.clone(),
            ..PeerStatus::default()
        };
        let same = PeerStatus {
            watchdog_failed: false,
            age: nothing.age,
            // What the agent knows of itself.
            epoch: nothing.epoch,
            ..status
        };
        assert_eq!(same, nothing, "without a position nothing is said of one");
        return Seen::Refused;
    }
    assert!(!status.is_primary || status.position >= Lsn(0));
    Seen::Accepted
}

/// JSON lines of several members.
pub fn journal(input: &[u8]) -> Seen {
    let Some((steps, told)) = foreign::last_change(&text(input)) else {
        return Seen::Refused;
    };
    assert!((1..=5).contains(&steps));
    assert!(!told.starts_with('-'), "it took {told}");
    Seen::Accepted
}

pub fn certificate(input: &[u8]) -> Seen {
    let Some((begin, end)) = foreign::validity(input) else {
        return Seen::Refused;
    };
    // RFC 5280 has years of four digits; a zone may add or take a day.
    let calendar = -62_167_305_600..253_402_387_200;
    assert!(
        calendar.contains(&begin) && calendar.contains(&end),
        "{begin} {end}"
    );
    Seen::Accepted
}

/// An entry of the allowlist: whoever is named is let in, and a narrow entry lets in no more than a wide one.
pub fn allowlist(input: &[u8]) -> Seen {
    let text = text(input);
    let (address, mask) = text.split_once('/').unwrap_or((&text, ""));
    let Ok(own) = address.trim().parse::<IpAddr>() else {
        assert_eq!(foreign::admits(&text, [127, 0, 0, 1].into()), None);
        return Seen::Refused;
    };
    let Some(admitted) = foreign::admits(&text, own) else {
        return Seen::Refused;
    };
    assert!(admitted, "{text} without itself");
    let stranger = match own {
        IpAddr::V4(v4) => IpAddr::from((!u32::from(v4)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((!u128::from(v6)).to_be_bytes()),
    };
    let mask = mask.trim();
    let wide = mask.parse() == Ok(0u32) || mask.parse() == Ok(Ipv4Addr::UNSPECIFIED);
    assert!(
        wide || foreign::admits(&text, stranger) == Some(false),
        "{text} has {stranger}"
    );
    Seen::Accepted
}
