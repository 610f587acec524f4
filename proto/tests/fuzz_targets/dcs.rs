//! Records in etcd. What is accepted must survive being written by us and read again, since that is what our own
//! agents of another version do with it.

use super::{alike, fits, same, text, told_briefly};
use crate::fuzz::Seen;
use proto::cluster_table;
use proto::config::{ClusterConfig, PermanentSlot, SECONDS_MAX, SyncMode, Tags};
use proto::dcs::*;
use proto::ids::{LeaseId, MemberName, Revision};
use serde_json::Value;

pub const MEMBER_WORDS: &[&str] = &[
    "\"conn_kwargs\"",
    "\"host\"",
    "\"master\"",
    "\"tags\"",
    "\"failover_priority\"",
    "\"replicatefrom\"",
    "\"garden\"",
    "\"scheduled_restart\"",
    "\"pending_restart_reason\"",
    "\"receive_lsn\"",
    "postgres://",
];

pub const CONFIG_WORDS: &[&str] = &[
    "\"profile\"",
    "\"ttl\"",
    "\"fast\"",
    "\"tuned\"",
    "\"safe\"",
    "\"lease_ms\"",
    "\"fence_ms\"",
    "\"wait_ms\"",
    "\"renew_ms\"",
    "\"suspect_ms\"",
    "\"quorum\"",
    "\"permanent_slots\"",
    "\"ignore_slots\"",
    "\"standby_cluster\"",
    "\"member_slots_ttl\"",
    "\"master_start_timeout\"",
    "\"use_slots\"",
    "\"5min\"",
    "\"1d\"",
];

const AT: Revision = Revision(7);

pub fn member(input: &[u8]) -> Seen {
    let Ok(record) = MemberRecord::parse(&text(input)).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    let written = record.to_value();
    fits(&written, input);
    let again = MemberRecord::parse(&written).expect("our own text");
    assert!(same(&again, &record), "{written}");
    assert_ne!(record.role.as_deref(), Some("master"));
    assert!(record.position().is_none_or(|position| position.0 > 0));
    assert!(record.timeline.is_none_or(|timeline| timeline.0 > 0));
    let tags = Tags(record.tags);
    let published = Tags(tags.published());
    assert!(published.0.keys().all(|key| tags.0.contains_key(key)));
    assert_eq!(tags.nofailover(), published.nofailover(), "{:?}", tags.0);
    assert_eq!(tags.nosync(), published.nosync(), "{:?}", tags.0);
    assert_eq!(tags.replicatefrom(), published.replicatefrom());
    Seen::Accepted
}

pub fn initialize(input: &[u8]) -> Seen {
    let value = text(input);
    match Initialize::parse(&value, LeaseId(3)) {
        Initialize::System(id) => {
            let digits = value.trim_start_matches('0');
            assert_eq!(id.to_string(), if digits.is_empty() { "0" } else { digits });
            assert!(value.len() >= 10);
        }
        Initialize::Bootstrapping(lease) => assert!(value.is_empty() && lease == LeaseId(3)),
        Initialize::Invalid(shown) => {
            assert!(shown.chars().count() <= 40 && !shown.is_empty());
            return Seen::Refused;
        }
    }
    Seen::Accepted
}

pub fn config(input: &[u8]) -> Seen {
    let record = ConfigRecord::parse(&text(input), AT);
    assert_eq!(record.modified(), Some(AT));
    match record {
        ConfigRecord::Document { document, .. } => {
            assert_config_fits_together(&ClusterConfig::parse(&document));
            Seen::Accepted
        }
        ConfigRecord::Garbled { problem, .. } => {
            told_briefly(&problem);
            Seen::Refused
        }
        ConfigRecord::Absent => panic!("the key exists"),
    }
}

/// The safety conditions of `ClusterConfig`, by whole numbers of another kind than those of the code.
fn assert_config_fits_together(config: &ClusterConfig) {
    let (ttl, loop_wait) = (
        config.timing.ttl().as_secs(),
        config.timing.loop_wait().as_secs(),
    );
    let retry_timeout = config.timing.retry_timeout().as_secs();
    assert!(u128::from(loop_wait) + 2 * u128::from(retry_timeout) <= u128::from(ttl));
    assert!(
        ttl >= 20 && loop_wait >= 1 && retry_timeout >= 3,
        "{:?}",
        config.timing
    );
    let times = [
        config.timing.ttl(),
        config.primary_start_timeout,
        config.primary_stop_timeout,
        config.primary_race_backoff,
        config.member_slots_ttl,
    ];
    assert!(
        times.iter().all(|time| time.as_secs() <= SECONDS_MAX),
        "{times:?}"
    );
    let native = &config.native;
    let (lease, fence, wait) = (
        native.lease_ms.into(),
        native.fence_ms.into(),
        u128::from(native.wait_ms),
    );
    assert!(
        wait * 999 > u128::saturating_add(lease, fence) * 1001,
        "{native:?}"
    );
    assert!(
        native.renew_ms > 0 && u128::from(native.renew_ms) * 3 <= lease,
        "{native:?}"
    );
    assert!(
        u128::from(native.suspect_ms) >= u128::from(native.renew_ms) * 3,
        "{native:?}"
    );
    assert!(
        (1_000..=600_000).contains(&lease) && fence >= 100,
        "{native:?}"
    );
    assert!(config.standby_cluster.is_none() || config.synchronous_mode == SyncMode::Off);
    assert!(!config.synchronous_mode_strict || config.synchronous_node_count > 0);
    for (name, slot) in &config.slots {
        assert_slot_name(name);
        assert!(
            !matches!(slot, PermanentSlot::Physical { cluster_type: Some(kind) } if kind.len() > 1 << 20)
        );
    }
}

fn assert_slot_name(name: &str) {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    assert!(
        name.len() <= 63 && name.bytes().all(fits),
        "{name:?} is no name of a slot"
    );
}

pub fn status(input: &[u8]) -> Seen {
    let Ok(mut record) =
        StatusRecord::parse(&text(input)).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    assert!(record.optime.is_none_or(|optime| optime.0 > 0));
    let written = record.to_value();
    fits(&written, input);
    record.retain_slots.sort();
    assert_eq!(StatusRecord::parse(&written), Ok(record));
    Seen::Accepted
}

pub fn history(input: &[u8]) -> Seen {
    let Ok(record) =
        HistoryRecord::parse(&text(input)).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    let written = record.to_value();
    fits(&written, input);
    assert_eq!(
        HistoryRecord::parse(&written),
        Ok(record.clone()),
        "{written}"
    );
    let timeline = record.cluster_timeline().expect("the key exists");
    assert!(timeline.0 > 0);
    Seen::Accepted
}

pub fn failover(input: &[u8]) -> Seen {
    let value = text(input);
    let Ok(record) = FailoverRecord::parse(&value, AT).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    if let Some(record) = &record {
        let nobody =
            |name: &Option<MemberName>| name.as_ref().is_some_and(|name| name.as_str().is_empty());
        assert!(record.leader.is_some() || record.candidate.is_some());
        assert!(!nobody(&record.leader) && !nobody(&record.candidate));
        let at = record
            .scheduled_at
            .as_ref()
            .map(|schedule| schedule.text.as_str());
        let written = FailoverRecord::value(record.leader.as_ref(), record.candidate.as_ref(), at);
        fits(&written, input);
        assert_eq!(
            FailoverRecord::parse(&written, AT).as_ref(),
            Ok(&Some(record.clone()))
        );
    }
    Seen::Accepted
}

pub fn sync(input: &[u8]) -> Seen {
    let Ok(record) =
        SyncRecord::parse(&text(input), AT).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    assert!(record.standbys.is_sorted());
    assert!(
        record
            .standbys
            .iter()
            .all(|name| !name.is_empty() && !name.contains(','))
    );
    assert!(
        record
            .standbys
            .iter()
            .all(|name| record.involves(&MemberName::new(name.clone())))
    );
    match &record.leader {
        Some(leader) => {
            let written = SyncRecord::value(leader, &record.standbys, record.quorum);
            fits(&written, input);
            assert_eq!(SyncRecord::parse(&written, AT), Ok(record.clone()));
            assert!(record.involves(leader));
        }
        None => assert!(record.standbys.is_empty() && record.quorum == 0),
    }
    Seen::Accepted
}

pub fn failsafe(input: &[u8]) -> Seen {
    let Ok(record) =
        FailsafeRecord::parse(&text(input)).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    let written = record.to_value();
    fits(&written, input);
    assert_eq!(FailsafeRecord::parse(&written), Ok(record));
    Seen::Accepted
}

pub fn record(input: &[u8]) -> Seen {
    let Ok(entry) =
        RecordEntry::parse(&text(input), AT).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    let written = entry.record.to_value();
    fits(&written, input);
    assert_eq!(RecordEntry::parse(&written, AT), Ok(entry));
    Seen::Accepted
}

pub fn fence(input: &[u8]) -> Seen {
    let Ok(entry) =
        FenceEntry::parse(&text(input), AT).inspect_err(|problem| told_briefly(problem))
    else {
        return Seen::Refused;
    };
    let written = entry.promise.to_value();
    fits(&written, input);
    assert_eq!(FenceEntry::parse(&written, AT), Ok(entry));
    Seen::Accepted
}

pub fn key(input: &[u8]) -> Seen {
    let suffix = text(input);
    let Some(key) = Key::parse(&suffix) else {
        return Seen::Refused;
    };
    assert_eq!(key.to_string(), suffix, "one key for one path");
    if let Key::Member(name) | Key::Fence(name) = &key {
        assert_slot_name(&name.slot_name());
        assert!(!name.as_str().contains('/'));
    }
    let space = Keyspace::new("//service/", &suffix);
    assert_eq!(space.suffix(&space.path(&key)), Some(&*suffix));
    assert!(!space.prefix().contains("//") && space.prefix().ends_with('/'));
    Seen::Accepted
}

/// All of a cluster: a line is a key, a blank and its value. Then what is told of it to clients and operators.
pub fn snapshot(input: &[u8]) -> Seen {
    let mut snapshot = Snapshot::default();
    for (line, modified) in text(input).lines().zip(1..) {
        let (suffix, value) = line.split_once(' ').unwrap_or((line, ""));
        let (value, modified) = (value.to_owned(), Revision(modified));
        let entry = Entry {
            value,
            lease: LeaseId(modified.0),
            created: AT,
            modified,
        };
        snapshot.apply_put(suffix, entry);
    }
    let view = ClusterView::read(&snapshot);
    for garbled in &view.garbled {
        assert!(snapshot.entries.contains_key(&garbled.key));
        told_briefly(&garbled.problem);
    }
    let record = snapshot.entries.get("record");
    assert_eq!(
        record.is_some(),
        view.record.is_some() || view.record_garbled
    );
    assert!(
        view.members
            .keys()
            .all(|name| snapshot.entries.contains_key(&format!("members/{name}")))
    );
    show(&view);
    Seen::from(view.garbled.is_empty())
}

fn show(view: &ClusterView) {
    let config = view
        .config
        .document()
        .map(ClusterConfig::parse)
        .unwrap_or_default();
    let rows = cluster_table::rows(view, &config);
    assert_eq!(rows.len(), view.members.len());
    assert!(cluster_table::tree(view, &config).len() <= rows.len());
    assert!(cluster_table::footer(view, &config).len() <= 4);
    let document = Value::Object(proto::rest::cluster_document(view, &config, "batman"));
    let shown = proto::rest::json::to_text(&document);
    assert!(shown.is_ascii(), "{shown}");
    let read = serde_json::from_str(&shown).expect("JSON");
    assert!(alike(&read, &document), "{shown}");
}
