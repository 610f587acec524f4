//! `pg_hba.conf` and `pg_ident.conf`: replaced as a whole by the configured lines, or left alone
//! (`configuration.md` 8.5).

use crate::config::{ConfRole, Credentials, PostgresConfig};
use std::path::Path;

const HEADER: &str = "# Written by garden-agent: changes made here are lost.\n\
                      # Change the agent's configuration instead.\n";

/// The first line of the rules that hold while a custom bootstrap runs.
pub const BOOTSTRAP_HEADER: &str = "# Written by garden-agent for the time of the bootstrap only.";

/// The content of `pg_hba.conf`; `None`: not ours.
pub fn hba(pg: &PostgresConfig, role: ConfRole) -> Option<String> {
    let by_role = pg.pg_hba_by_role.get(&role);
    managed(pg, "hba_file", "pg_hba.conf")
        .then(|| content(by_role, pg.pg_hba.as_ref()))
        .flatten()
}

/// The content of `pg_ident.conf`; `None`: not ours.
pub fn ident(pg: &PostgresConfig, role: ConfRole) -> Option<String> {
    let by_role = pg.pg_ident_by_role.get(&role);
    managed(pg, "ident_file", "pg_ident.conf")
        .then(|| content(by_role, pg.pg_ident.as_ref()))
        .flatten()
}

/// Whether the file is where we would write it: an operator who put it elsewhere keeps it.
fn managed(pg: &PostgresConfig, setting: &str, default: &str) -> bool {
    match pg
        .parameters
        .get(setting)
        .and_then(|value| value.as_str())
        .filter(|p| !p.is_empty())
    {
        None => true,
        Some(path) => pg.config_dir.join(path) == pg.config_dir.join(default),
    }
}

/// An empty list of a role means "do not write", so the file of the previous role stays
/// (`configuration.md` 7.5).
fn content(by_role: Option<&Vec<String>>, base: Option<&Vec<String>>) -> Option<String> {
    let lines = by_role.or(base).filter(|lines| !lines.is_empty())?;
    let mut text = String::from(HEADER);
    for line in lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Some(text)
}

/// Rules while a custom bootstrap runs: whoever is on this machine may be the superuser or the
/// replication user, and nobody else gets in (`ha-behaviour.md` 12.3).
pub fn bootstrap_hba(superuser: &str, replication: &Credentials) -> String {
    let mut text = format!("{BOOTSTRAP_HEADER}\n");
    let mut rule = |database: &str, user: &str| {
        let user = quote(user);
        text.push_str(&format!("local {database} {user} trust\n"));
        for net in ["127.0.0.1/32", "::1/128"] {
            text.push_str(&format!("host {database} {user} {net} trust\n"));
        }
    };
    rule("all", superuser);
    rule("replication", superuser);
    if let Some(user) = replication
        .username
        .as_deref()
        .filter(|user| *user != superuser)
    {
        rule("replication", user);
        rule("all", user);
    }
    text
}

/// A name in quotes, so that `all` or `+admins` is a name and nothing else.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether the file holds the rules of [`bootstrap_hba`].
pub fn is_bootstrap_hba(path: &Path) -> bool {
    let text = super::pgdata::read_small(path)
        .ok()
        .flatten()
        .unwrap_or_default();
    text.starts_with(BOOTSTRAP_HEADER.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_role_replaces_the_list_and_an_empty_one_writes_nothing() {
        let base = vec![String::from("local all all trust")];
        let role = vec![String::from("host all all 10.0.0.0/8 md5\n")];
        let written = content(Some(&role), Some(&base)).expect("written");
        assert!(
            written.ends_with("instead.\nhost all all 10.0.0.0/8 md5\n"),
            "{written}"
        );
        assert_eq!(content(Some(&Vec::new()), Some(&base)), None);
        assert_eq!(content(None, None), None);
        assert!(content(None, Some(&base)).is_some());
    }

    #[test]
    fn bootstrap_rules_admit_the_two_users_of_this_machine_only() {
        let replication = Credentials {
            username: Some("rep\"l".into()),
            ..Credentials::default()
        };
        expect![[r#"
            # Written by garden-agent for the time of the bootstrap only.
            local all "postgres" trust
            host all "postgres" 127.0.0.1/32 trust
            host all "postgres" ::1/128 trust
            local replication "postgres" trust
            host replication "postgres" 127.0.0.1/32 trust
            host replication "postgres" ::1/128 trust
            local replication "rep""l" trust
            host replication "rep""l" 127.0.0.1/32 trust
            host replication "rep""l" ::1/128 trust
            local all "rep""l" trust
            host all "rep""l" 127.0.0.1/32 trust
            host all "rep""l" ::1/128 trust
        "#]]
        .assert_eq(&bootstrap_hba("postgres", &replication));
    }
}
