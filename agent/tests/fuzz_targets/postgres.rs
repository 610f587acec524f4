//! Output and files of PostgreSQL's programs, of the kernel, and what we send to PostgreSQL.

use super::text;
use crate::fuzz::Seen;
use garden_agent::config::RECOVERY;
use garden_agent::foreign;
use garden_agent::postgres::guc::{self, Setting};
use garden_agent::postgres::{controldata as control, pgdata};
use proto::wal::Lsn;
use std::path::Path;

pub fn controldata(input: &[u8]) -> Seen {
    let text = text(input);
    match control::parse(&text) {
        Ok(read) => {
            assert!(read.settings.len() <= 5);
            let id = read.data.system_id.to_string();
            assert!(text.contains(&id), "{id}");
            for length in [0, 114, 1 << 20, u64::MAX] {
                let end = foreign::end_of_record(
                    read.data.checkpoint,
                    length,
                    read.wal_page,
                    read.wal_segment,
                );
                assert!(end.is_none_or(|end| end >= read.data.checkpoint));
            }
            Seen::Accepted
        }
        Err(error) => {
            assert!(error.to_string().len() < 200);
            Seen::Refused
        }
    }
}

pub fn waldump(input: &[u8]) -> Seen {
    let text = text(input);
    let Some(length) = foreign::record_length(&text) else {
        return Seen::Refused;
    };
    assert!(text.contains(&length.to_string()), "{length}");
    let (page, segment) = (8192, 16 << 20);
    for start in [40, page - 8, segment - 8, u64::MAX - 7] {
        if let Some(end) = foreign::end_of_record(Lsn(start), length, page, segment) {
            assert!(
                end.0 % 8 == 0 && end.0 - start >= length,
                "{length} bytes from {start} to {}",
                end.0
            );
            assert!(end.0 - start <= length + 8 + 40 * (2 + length / (page - 40)));
        }
    }
    Seen::Accepted
}

/// The file itself, since whether a postmaster runs is also asked of `/proc`.
pub fn postmaster_pid(input: &[u8]) -> Seen {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz/postmaster_pid");
    std::fs::write(dir.join("postmaster.pid"), input).expect("written");
    let read = pgdata::read_postmaster_pid(&dir).expect("a short file");
    assert_eq!(read, foreign::postmaster_pid(&text(input)));
    let running = pgdata::running_postmaster(&dir);
    let Some(read) = read else {
        assert_eq!(running, None);
        return Seen::Refused;
    };
    assert!(read.pid > 0);
    assert!(running.is_none_or(|pid| pid == read.pid && !read.single_user));
    Seen::Accepted
}

/// Two readers, one of which must not allocate: both see the same parent, in what the kernel could have written.
pub fn proc_stat(input: &[u8]) -> Seen {
    let guardian = foreign::process(input);
    let driver = std::str::from_utf8(input).ok().and_then(foreign::parent_of);
    let fields = input
        .rsplit(|byte| *byte == b')')
        .next()
        .unwrap_or_default();
    let blanks = fields
        .trim_ascii_end()
        .iter()
        .filter(|byte| byte.is_ascii_whitespace())
        .all(|byte| *byte == b' ');
    if let (Some(process), Some((parent, _)), true) = (guardian, driver, blanks) {
        assert_eq!(process.parent, parent);
    }
    Seen::from(guardian.is_some())
}

pub fn complaint(input: &[u8]) -> Seen {
    let text = text(input);
    let found = text.lines().find_map(foreign::complaint);
    assert!(
        found
            .as_ref()
            .is_none_or(|shown| shown.len() <= 6 * text.len() + 200)
    );
    Seen::from(found.is_some())
}

/// Only whole lines go, only those of recovery settings, and all of those.
pub fn auto_conf(input: &[u8]) -> Seen {
    let text = text(input);
    let cleaned = foreign::without_recovery_settings(&text);
    assert_eq!(foreign::without_recovery_settings(&cleaned), cleaned);
    let mut kept = cleaned.split_inclusive('\n').peekable();
    for line in text.split_inclusive('\n') {
        if kept.next_if_eq(&line).is_none() {
            let name = line.trim_start().to_ascii_lowercase();
            assert!(
                RECOVERY.iter().any(|setting| name.starts_with(setting)),
                "{line:?} is gone"
            );
        }
    }
    assert_eq!(kept.next(), None);
    let sets = |line: &str, name: &str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let left = cleaned
        .lines()
        .find(|line| RECOVERY.iter().any(|name| sets(line.trim_start(), name)));
    assert_eq!(left, None);
    Seen::Accepted
}

/// `postgresql.conf` has one line for each setting, and gives back the value, other than bytes that it cannot hold.
pub fn conf_value(input: &[u8]) -> Seen {
    let text = text(input);
    let escaped = foreign::escaped(&text);
    assert!(!escaped.contains(['\n', '\r', '\0']));
    let mut read = String::new();
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\' || c == '\'') {
            (_, false) => read.push(c),
            ('\'', true) => {
                assert_eq!(
                    chars.next(),
                    Some('\''),
                    "a quote ends the value: {escaped:?}"
                );
                read.push('\'');
            }
            (_, true) => read.push(match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                other => other.expect("something behind the backslash"),
            }),
        }
    }
    assert_eq!(read, text.replace('\0', ""));
    Seen::Accepted
}

/// `conn_url` of a member; the second line is the port of a list of hosts.
pub fn conn_url(input: &[u8]) -> Seen {
    let text = text(input);
    let (url, ports) = text.split_once('\n').unwrap_or((&text, ""));
    for list in [
        foreign::addresses(url),
        foreign::addresses_of_list(url, ports),
    ]
    .into_iter()
    .flatten()
    {
        assert!(!list.is_empty() && list.len() <= 1 + url.len());
    }
    if let Some(list) = foreign::addresses_of_list(url, ports) {
        assert!(list.iter().all(|(host, _)| !host.contains(',')));
    }
    Seen::from(foreign::addresses(url).is_some())
}

/// A value and its unit on the second line: what is shown to people means the same.
pub fn setting(input: &[u8]) -> Seen {
    let text = text(input);
    let (value, unit) = text.split_once('\n').unwrap_or((&text, ""));
    let row = Setting {
        setting: value.to_owned(),
        unit: Some(unit.to_owned()).filter(|unit| !unit.is_empty()),
        vartype: String::from("integer"),
        ..Setting::default()
    };
    let number = guc::parse_int(value, row.unit.as_deref());
    assert_eq!(guc::same_value(value, &row), number.is_some());
    let shown = guc::human(value, &row);
    if let Some(number) = number.filter(|number| number.unsigned_abs() < 1 << 40 && unit.len() <= 6)
    {
        assert_eq!(
            guc::parse_int(&shown, row.unit.as_deref()),
            Some(number),
            "{value:?} is shown as {shown}"
        );
    }
    let _ = guc::parse_real(value, row.unit.as_deref());
    let _ = guc::parse_bool(value);
    let _ = foreign::major_version(&text);
    Seen::from(number.is_some())
}

pub fn startup_packet(input: &[u8]) -> Seen {
    let Some(changed) = foreign::startup_packet(input) else {
        return Seen::Refused;
    };
    let length = u32::from_be_bytes(changed[..4].try_into().expect("four bytes"));
    assert_eq!(length as usize, changed.len());
    let added = b"replication\0true\0";
    assert_eq!(changed.len(), input.len() + added.len());
    let end = changed.len() - 1;
    assert!(
        changed[..end].ends_with(added)
            && changed[4..end - added.len()] == input[4..input.len() - 1]
    );
    Seen::Accepted
}

/// A blank and its like are three octal digits behind a backslash (proc(5)); nothing else changes.
pub fn mount_point(input: &[u8]) -> Seen {
    let plain = foreign::mount_point(input);
    let escape = |at: usize| {
        let digits = input.get(at + 1..at + 4).unwrap_or_default();
        input[at] == b'\\'
            && digits.len() == 3
            && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
    };
    let escapes = (0..input.len()).filter(|at| escape(*at)).count();
    assert!(plain.len() + 3 * escapes >= input.len(), "{plain:?}");
    assert!(escapes > 0 || plain == input);
    Seen::Accepted
}
