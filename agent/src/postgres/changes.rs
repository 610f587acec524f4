//! What a changed configuration means for a running server (`configuration.md` 8.6).

use super::guc::{self, Setting};
use super::settings::Settings;
use std::collections::BTreeMap;

/// How the wanted settings differ from those of the running server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A reload is enough: old and new value for people; no new value means "removed".
    pub reload: BTreeMap<String, (String, Option<String>)>,
    /// A restart is needed: the same.
    pub restart: BTreeMap<String, (String, Option<String>)>,
}

impl Changes {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.reload.is_empty() && self.restart.is_empty()
    }
}

/// Compares the wanted settings with `pg_settings`, by type and unit (`configuration.md` 8.6).
/// `before` are the settings that were wanted last: one that vanished counts as removed. Names with a
/// dot are compared with what was wanted before, since the server may not know them.
pub fn changed_settings(
    wanted: &Settings,
    before: &Settings,
    running: &BTreeMap<String, Setting>,
) -> Changes {
    let mut changes = Changes::default();
    let plain = |name: &str| name != "hot_standby" && !guc::is_recovery_setting(name);
    for (name, value) in wanted.iter().filter(|(name, _)| plain(name)) {
        match running.get(name) {
            Some(row) if row.context == "internal" => {}
            Some(row) if same_with_defaults(name, value, row, running) => {}
            Some(row) => {
                let new = Some(guc::human(value, row));
                changes.note(name, row, new);
            }
            None if name.contains('.') && before.get(name) != Some(value) => {
                let old = before.get(name).cloned().unwrap_or_default();
                changes
                    .reload
                    .insert(name.clone(), (old, Some(value.clone())));
            }
            None => {}
        }
    }
    for name in before
        .keys()
        .filter(|name| plain(name) && !wanted.contains_key(*name))
    {
        match running.get(name) {
            Some(row) if row.boot_value.as_deref() != Some(&row.setting) => {
                changes.note(name, row, None);
            }
            Some(_) | None => {}
        }
    }
    changes
}

impl Changes {
    fn note(&mut self, name: &str, row: &Setting, new: Option<String>) {
        let old = guc::human(&row.setting, row);
        let kind = if row.context == "postmaster" {
            &mut self.restart
        } else {
            &mut self.reload
        };
        kind.insert(name.to_owned(), (old, new));
    }
}

/// `wal_buffers = -1` means 1/32 of `shared_buffers`, at least 8 blocks and at most one segment.
fn same_with_defaults(
    name: &str,
    value: &str,
    row: &Setting,
    running: &BTreeMap<String, Setting>,
) -> bool {
    if name == "wal_buffers" && guc::parse_int(value, row.unit.as_deref()) == Some(-1) {
        let number = |name: &str| {
            running
                .get(name)
                .and_then(|row| row.setting.parse::<i64>().ok())
        };
        let segment_blocks = number("wal_segment_size").unwrap_or(16 << 20) / 8192;
        let automatic = number("shared_buffers")
            .map(|buffers| (buffers / 32).max(8).min(segment_blocks.max(8)));
        return automatic.is_some() && automatic == number("wal_buffers");
    }
    guc::same_value(value, row)
}

/// `pg_settings` of a running server, by name.
pub async fn running_settings(
    client: &tokio_postgres::Client,
) -> Result<BTreeMap<String, Setting>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT pg_catalog.lower(name), setting, unit, vartype, context, boot_val \
             FROM pg_catalog.pg_settings",
            &[],
        )
        .await?;
    let text = |row: &tokio_postgres::Row, column: usize| -> Option<String> {
        row.try_get(column).ok().flatten()
    };
    Ok(rows
        .iter()
        .filter_map(|row| {
            let setting = Setting {
                setting: text(row, 1).unwrap_or_default(),
                unit: text(row, 2),
                vartype: text(row, 3).unwrap_or_default(),
                context: text(row, 4).unwrap_or_default(),
                boot_value: text(row, 5),
            };
            Some((text(row, 0)?, setting))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(setting: &str, vartype: &str, unit: Option<&str>, context: &str) -> Setting {
        Setting {
            setting: setting.into(),
            unit: unit.map(str::to_owned),
            vartype: vartype.into(),
            context: context.into(),
            boot_value: Some(String::from("0")),
        }
    }

    fn map<V: Clone>(pairs: &[(&str, V)]) -> BTreeMap<String, V> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    }

    #[test]
    fn changes_are_told_by_what_they_need() {
        let running = map(&[
            (
                "max_connections",
                setting("100", "integer", None, "postmaster"),
            ),
            ("work_mem", setting("4096", "integer", Some("kB"), "user")),
            (
                "log_connections",
                setting("on", "bool", None, "superuser-backend"),
            ),
            (
                "statement_timeout",
                setting("5000", "integer", Some("ms"), "user"),
            ),
            ("block_size", setting("8192", "integer", None, "internal")),
        ]);
        let text = |pairs: &[(&str, &str)]| -> Settings {
            map(pairs)
                .into_iter()
                .map(|(name, value)| (name, value.to_owned()))
                .collect()
        };
        let wanted = text(&[
            ("max_connections", "0x65"),
            ("work_mem", "4MB"),
            ("log_connections", "True"),
            ("block_size", "4096"),
            ("my.setting", "2"),
            ("same.setting", "1"),
        ]);
        let before = text(&[
            ("my.setting", "1"),
            ("same.setting", "1"),
            ("statement_timeout", "5s"),
        ]);
        let changes = changed_settings(&wanted, &before, &running);
        let changed = |old: &str, new: Option<&str>| (old.to_owned(), new.map(str::to_owned));
        assert_eq!(
            changes.restart,
            map(&[("max_connections", changed("100", Some("101")))])
        );
        assert_eq!(
            changes.reload,
            map(&[
                ("my.setting", changed("1", Some("2"))),
                ("statement_timeout", changed("5s", None))
            ])
        );
        assert!(!changes.is_empty());
    }

    #[test]
    fn automatic_wal_buffers_are_no_change() {
        let running = map(&[
            (
                "wal_buffers",
                setting("512", "integer", Some("8kB"), "postmaster"),
            ),
            (
                "shared_buffers",
                setting("16384", "integer", Some("8kB"), "postmaster"),
            ),
            (
                "wal_segment_size",
                setting("16777216", "integer", Some("B"), "internal"),
            ),
        ]);
        let wanted = |value: &str| Settings::from([("wal_buffers".to_owned(), value.to_owned())]);
        assert!(changed_settings(&wanted("-1"), &Settings::new(), &running).is_empty());
        assert!(!changed_settings(&wanted("8MB"), &Settings::new(), &running).is_empty());
    }
}
