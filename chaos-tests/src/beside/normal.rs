//! The normal form of an answer: fields by name, and for what must differ between two clusters one name
//! in both.

use super::probe::Reply;
use crate::http::Answer;
use crate::ports::Ports;
use serde_json::Value;
use std::collections::BTreeMap;

/// Headers that clients look at.
const HEADERS: &[&str] = &[
    "content-type",
    "www-authenticate",
    "server",
    "x-extra",
    "lsn",
    "retry-after",
    "location",
    "allow",
];

/// Series of the documentation that the release lacks; they have no place in the order of the others.
const LATER_SERIES: &[&str] = &[
    "patroni_failsafe_member",
    "patroni_failsafe_mode_enabled",
    "patroni_failover_priority",
];

/// Members have so many ports of each kind at most.
const MEMBERS: u16 = 3;

/// Names for the ports of a cluster, where they follow a colon or a `"port": `.
pub fn ports(text: &str, ports: &Ports) -> String {
    let mut text = text.to_owned();
    for member in 0..MEMBERS {
        for (kind, first) in [("postgres", ports.postgres), ("rest", ports.rest)] {
            let (port, name) = (first + member, format!("{kind}{}", member + 1));
            text = text.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{name}"));
            text = text.replace(
                &format!("\"port\": {port}"),
                &format!("\"port\": \"{name}\""),
            );
        }
    }
    text
}

/// The fields of a reply, by name.
pub fn fields(reply: &Reply) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Reply::Answer(answer) = reply else {
        found.insert("status".to_owned(), "none".to_owned());
        return found;
    };
    found.insert("status".to_owned(), answer.status.to_string());
    for (name, value) in &answer.headers {
        if HEADERS.contains(&name.as_str()) {
            let value = if name == "lsn" { "<lsn>" } else { value };
            found.insert(format!("header {name}"), value.to_owned());
        }
    }
    body(answer, &mut found);
    found
}

fn body(answer: &Answer, found: &mut BTreeMap<String, String>) {
    let text = answer.body.as_str();
    if text.starts_with("# HELP") {
        return metrics(text, found);
    }
    match serde_json::from_str(text) {
        Ok(json @ (Value::Object(_) | Value::Array(_))) => document("", &json, found),
        _ if text.contains("<title>") => {
            for line in text.lines().map(str::trim) {
                if line.contains("Error code") || line.contains("Message:") {
                    let line = line.trim_start_matches("<p>").trim_end_matches("</p>");
                    let name = line.split(':').next().unwrap_or_default();
                    found.insert(format!("page {name}"), line.to_owned());
                }
            }
        }
        _ => {
            found.insert("body".to_owned(), text.to_owned());
        }
    }
}

/// The values of a document by path, and the order of the keys of each object.
fn document(path: &str, json: &Value, found: &mut BTreeMap<String, String>) {
    match json {
        Value::Object(map) => {
            let mut map = map.clone();
            if map.get_mut("replication").is_some_and(only_lookers) {
                map.shift_remove("replication");
            }
            let mut order: Vec<&str> = map.keys().map(String::as_str).collect();
            if path.is_empty() && members_by_address(&map) {
                order.sort_unstable();
            }
            found.insert(format!("{path} keys"), order.join(" "));
            for (key, value) in &map {
                document(&format!("{path}.{key}"), value, found);
            }
        }
        Value::Array(list) => {
            found.insert(format!("{path} length"), list.len().to_string());
            let mut list: Vec<&Value> = list.iter().collect();
            // The order of WAL senders is unspecified.
            if path.ends_with(".replication") {
                list.sort_by_key(|sender| sender.get("application_name").map(Value::to_string));
            }
            let history = path.is_empty() && list.iter().all(|entry| entry.is_array());
            for (index, value) in list.into_iter().enumerate() {
                match value {
                    Value::Array(entry) if history => line(index, entry, found),
                    value => document(&format!("{path}[{index}]"), value, found),
                }
            }
        }
        value => {
            found.insert(path.to_owned(), scalar(path, value));
        }
    }
}

/// Whether this is `GET /failsafe`: the members in the order in which the leader of the moment had read
/// them, which is another after each change of leader.
fn members_by_address(map: &serde_json::Map<String, Value>) -> bool {
    let address = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("http"));
    !map.is_empty() && map.values().all(address)
}

/// Removes the sessions by which an agent of Patroni asks its own server for the timeline, which stand in
/// the list when they are there at the same moment; whether nothing is left.
fn only_lookers(replication: &mut Value) -> bool {
    let Value::Array(list) = replication else {
        return false;
    };
    list.retain(|sender| sender.get("application_name") != Some(&Value::from("")));
    list.is_empty()
}

/// A line of the history: timeline, position, reason, moment, leader.
fn line(index: usize, entry: &[Value], found: &mut BTreeMap<String, String>) {
    for (column, value) in entry.iter().enumerate() {
        let text = match column {
            1 if value.is_u64() => "<lsn>".to_owned(),
            3 if value.as_str().is_some_and(|text| moment(text, 'T')) => "<moment>".to_owned(),
            _ => value.to_string(),
        };
        found.insert(format!("[{index}][{column}]"), text);
    }
}

fn scalar(path: &str, value: &Value) -> String {
    let key = path.rsplit('.').next().unwrap_or_default();
    match (key, value) {
        // None before the first transaction, and every agent has its own reasons for one.
        ("replayed_timestamp", Value::Null) => "<moment>".to_owned(),
        ("postmaster_start_time" | "replayed_timestamp", Value::String(text))
            if moment(text, ' ') =>
        {
            "<moment>".to_owned()
        }
        ("dcs_last_seen", Value::Number(number)) if number.as_u64() > Some(1_000_000_000) => {
            "<seconds>".to_owned()
        }
        ("database_system_identifier", Value::String(text)) if text.parse::<u64>().is_ok() => {
            "<system>".to_owned()
        }
        ("location" | "received_location" | "replayed_location", Value::Number(n))
            if n.is_u64() =>
        {
            "<lsn>".to_owned()
        }
        ("lsn" | "receive_lsn" | "replay_lsn", Value::String(text)) if text.contains('/') => {
            "<lsn>".to_owned()
        }
        // Whether there is a lag to speak of: leaders publish their position once in a while.
        ("lag" | "receive_lag" | "replay_lag", Value::Number(n)) => {
            let much = n.as_u64().is_some_and(|bytes| bytes > 1 << 20);
            if much {
                "<more than 1 MB>"
            } else {
                "<less than 1 MB>"
            }
            .to_owned()
        }
        _ => value.to_string(),
    }
}

/// `YYYY-MM-DD hh:mm:ss[.ffffff]+hh:mm`, with this between date and time.
fn moment(text: &str, between: char) -> bool {
    let shape = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text.chars().zip(shape.chars()).all(|(c, s)| match s {
                '0' => c.is_ascii_digit(),
                's' => c == '+' || c == '-',
                s => c == s,
            })
    };
    ["0000-00-00_00:00:00", "0000-00-00_00:00:00.000000"]
        .iter()
        .any(|form| {
            let form = form.replace('_', &between.to_string());
            shape(text, &format!("{form}s00:00"))
        })
}

/// Type, labels and, where it is not a position or a moment, the value of every series.
fn metrics(text: &str, found: &mut BTreeMap<String, String>) {
    let mut order = Vec::new();
    for line in text.lines() {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.split_once(' '))
        {
            found.insert(format!("metric {name} type"), kind.to_owned());
            order.push(name);
        } else if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|line| line.split_once(' '))
        {
            found.insert(format!("help metric {name}"), help.to_owned());
        } else if let Some((series, value)) = line.rsplit_once(' ')
            && !line.starts_with('#')
        {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let moving = ["location", "time", "last_seen"]
                .iter()
                .any(|part| name.contains(part));
            let value = match value.parse::<f64>() {
                _ if name == "patroni_xlog_replayed_timestamp" => "<moment>",
                Ok(number) if moving && number > 0.0 => "<positive>",
                _ => value,
            };
            found.insert(format!("metric {name}"), format!("{{{labels} {value}"));
        }
    }
    let common = |name: &&str| name.starts_with("patroni_") && !LATER_SERIES.contains(name);
    let theirs: Vec<&str> = order.into_iter().filter(common).collect();
    found.insert("metrics order".to_owned(), theirs.join(" "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> BTreeMap<String, String> {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        let body = body.to_owned();
        fields(&Reply::Answer(Answer {
            status: 200,
            headers,
            body,
        }))
    }

    #[test]
    fn positions_and_moments_have_one_name_and_wrong_forms_of_them_do_not() {
        let good = of(
            r#"{"xlog": {"location": 5}, "postmaster_start_time": "2026-01-02 03:04:05.000001+00:00"}"#,
        );
        assert_eq!(
            good.get(".xlog.location").map(String::as_str),
            Some("<lsn>")
        );
        assert_eq!(
            good.get(".postmaster_start_time").map(String::as_str),
            Some("<moment>")
        );
        let bad = of(
            r#"{"xlog": {"location": "0/5"}, "postmaster_start_time": "2026-01-02T03:04:05+00:00"}"#,
        );
        assert_eq!(
            bad.get(".xlog.location").map(String::as_str),
            Some("\"0/5\"")
        );
        assert_eq!(
            bad.get(".postmaster_start_time").map(String::as_str),
            Some("\"2026-01-02T03:04:05+00:00\"")
        );
    }

    #[test]
    fn the_order_of_keys_counts() {
        assert_ne!(of(r#"{"a": 1, "b": 2}"#), of(r#"{"b": 2, "a": 1}"#));
    }

    #[test]
    fn the_order_of_members_in_failsafe_does_not_count_and_their_names_do() {
        let one = of(r#"{"a": "http://x/", "b": "http://y/"}"#);
        assert_eq!(one, of(r#"{"b": "http://y/", "a": "http://x/"}"#));
        assert_ne!(one, of(r#"{"b": "http://y/", "c": "http://x/"}"#));
    }

    #[test]
    fn a_metric_has_its_type_labels_and_value() {
        let found = of("# HELP patroni_x X\n# TYPE patroni_x gauge\npatroni_x{scope=\"s\"} 1\n");
        assert_eq!(
            found.get("metric patroni_x type").map(String::as_str),
            Some("gauge")
        );
        assert_eq!(
            found.get("metric patroni_x").map(String::as_str),
            Some("{scope=\"s\"} 1")
        );
        assert_eq!(
            found.get("metrics order").map(String::as_str),
            Some("patroni_x")
        );
    }

    #[test]
    fn ports_are_named_by_whose_they_are() {
        let ports = Ports::block(26_000);
        let text = super::ports(
            r#"{"port": 26012, "api_url": "http://127.0.0.1:26021/patroni"}"#,
            &ports,
        );
        assert_eq!(
            text,
            r#"{"port": "postgres2", "api_url": "http://127.0.0.1:rest1/patroni"}"#
        );
    }
}
