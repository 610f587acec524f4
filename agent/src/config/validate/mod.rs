//! `--validate-config`: Patroni's checks with its messages, and after them our own reading of the same
//! file (`configuration.md` 13.4).
//!
//! Etcd hosts and listen addresses are really connected to, and programs are looked for.

mod checks;
mod schema;
mod world;

pub(super) use schema::STORES;

pub(super) use world::World;

use super::value::{parse_int, python_text, truthy};
use super::{LocalConfig, yaml};
use crate::exit::Exit;
use schema::{Field, Shape};
use serde_json::{Map, Value};
use std::io::Write as _;

/// The switches that go with `--validate-config`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidateOptions {
    /// Ports in `listen` may be in use.
    pub ignore_listen_port: bool,
    /// Print the merged configuration when it is fine.
    pub print: bool,
}

/// Runs the checks, prints problems to stderr and, when asked, the configuration to stdout.
pub fn run(local: &LocalConfig, options: ValidateOptions) -> Exit {
    let problems = problems(local, options);
    if !problems.is_empty() {
        world::complain(&problems);
        return Exit::Failure;
    }
    let notes: Vec<String> = local
        .notes()
        .iter()
        .map(|note| format!("warning: {note}"))
        .collect();
    world::complain(&notes);
    if options.print {
        let text = yaml::to_string(&Value::Object(printed(local.doc())));
        if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
            return Exit::Failure;
        }
    }
    Exit::Success
}

/// The document as `--print` shows it: a missing `bin_dir` is filled in, and secrets are hidden.
fn printed(doc: &Map<String, Value>) -> Map<String, Value> {
    let mut doc = doc.clone();
    for value in doc.values_mut() {
        hide_secrets(value);
    }
    if let Some(Value::Object(postgresql)) = doc.get_mut("postgresql") {
        postgresql
            .entry("bin_dir")
            .or_insert_with(|| Value::from(""));
    }
    doc
}

/// What is shown instead of a secret.
const HIDDEN: &str = "***";

/// Hides passwords, also those in URLs and in the raw form `name:password`.
fn hide_secrets(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key.ends_with("password") || key == "auth" && value.is_string() {
                    *value = Value::from(HIDDEN);
                } else {
                    hide_secrets(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(hide_secrets),
        Value::String(text) => {
            // A password may hold an `@`, so the last one counts, as where such a URL is read.
            if let Some((scheme, rest)) = text.split_once("://")
                && let Some((account, place)) = rest.rsplit_once('@')
                && let Some((name, _)) = account.split_once(':')
            {
                *text = format!("{scheme}://{name}:{HIDDEN}@{place}");
            }
        }
        _ => {}
    }
}

/// All problems, one line each.
pub fn problems(local: &LocalConfig, options: ValidateOptions) -> Vec<String> {
    let doc = local.doc();
    let mut checker = Checker {
        world: World::new(options, doc),
        lines: Vec::new(),
    };
    checker.fields("", doc, schema::BEFORE);
    checker.store(doc);
    checker.postgresql(doc);
    checker.section(doc, "watchdog", schema::WATCHDOG);
    checker.tags(doc);
    let mut lines = checker.lines;
    // What Patroni's checks let through may still not start.
    if let Err(error) = local.effective(&local.bootstrap_dcs().unwrap_or_default()) {
        let key = error.key().unwrap_or_default().to_owned();
        // Also by a line about the whole section that the key is in.
        let told = |line: &String| {
            let path = line.split(' ').next().unwrap_or_default();
            key.is_empty() || path.starts_with(&key) || key.starts_with(&format!("{path}."))
        };
        if !lines.iter().any(told) {
            lines.push(error.line());
        }
    }
    lines
}

struct Checker<'a> {
    world: World<'a>,
    lines: Vec<String>,
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

impl Checker<'_> {
    fn complain(&mut self, path: &str, value: &Value, message: &str) {
        // A password of the wrong type is still a password.
        let value = if path.ends_with("password") {
            HIDDEN.to_owned()
        } else {
            python_text(value)
        };
        self.lines.push(format!("{path} {value} {message}"));
    }

    fn undefined(&mut self, path: &str) {
        self.lines.push(format!("{path}  is not defined."));
    }

    fn fields(&mut self, path: &str, map: &Map<String, Value>, fields: &[Field]) {
        for field in fields {
            let path = join(path, field.key);
            match map.get(field.key) {
                Some(value) => self.value(&path, value, &field.shape),
                None if field.required => self.undefined(&path),
                None => {}
            }
        }
    }

    fn value(&mut self, path: &str, value: &Value, shape: &Shape) {
        match shape {
            Shape::Text if value.is_string() => {}
            Shape::Text => self.complain(path, value, "is not a string"),
            Shape::Boolean if value.is_boolean() => {}
            Shape::Boolean => self.complain(path, value, "is not a boolean"),
            Shape::Mapping if value.is_object() => {}
            Shape::Mapping => self.complain(path, value, "is not a dictionary"),
            Shape::Section(fields) => match value {
                Value::Object(map) => {
                    if path == "bootstrap.dcs.standby_cluster" {
                        self.standby_cluster(path, map);
                    }
                    self.fields(path, map, fields);
                }
                _ => self.complain(path, value, "is not a dictionary"),
            },
            Shape::Texts => self.list(path, value, |checker, path, item| {
                if !item.is_string() {
                    checker.complain(path, item, "is not a string");
                }
            }),
            Shape::Options => self.list(path, value, |checker, path, item| {
                if !item.is_string() && !item.is_object() {
                    checker.complain(path, item, "is not a string");
                    checker.complain(path, item, "is not a dictionary");
                }
            }),
            _ => self.scalar(path, value, shape),
        }
    }

    fn scalar(&mut self, path: &str, value: &Value, shape: &Shape) {
        let in_range = |number: Option<i64>, min: i64, max: i64| {
            number.is_some_and(|number| (min..=max).contains(&number))
        };
        // To Python a boolean is an integer.
        let plain = value.as_bool().map(i64::from).or_else(|| value.as_i64());
        let is_word = |words: &[&str], text: &str| value.is_string() && words.contains(&text);
        let result = match shape {
            Shape::Integer { .. } if plain.is_none() => {
                return self.complain(path, value, "is not an integer");
            }
            Shape::Integer { min, max } => in_range(plain, *min, *max),
            Shape::Amount { min, max, unit } => {
                in_range(parse_int(value, *unit).or(plain), *min, *max)
            }
            Shape::OneOf(words) => is_word(words, &python_text(value)),
            Shape::OneOfAnyCase(words) => is_word(words, &python_text(value).to_lowercase()),
            _ => return self.checked(path, value, shape),
        };
        if !result {
            self.complain(path, value, "didn't pass validation: Wrong value");
        }
    }

    fn checked(&mut self, path: &str, value: &Value, shape: &Shape) {
        let check = match shape {
            Shape::TextChecked(_) | Shape::TextOrList(_)
                if value.is_object() || value.is_number() =>
            {
                self.complain(path, value, "is not a string");
                if matches!(shape, Shape::TextOrList(_)) {
                    self.complain(path, value, "is not a list");
                }
                return;
            }
            Shape::TextOrList(check) if value.is_array() => {
                let check = *check;
                return self.list(path, value, |checker, path, item| {
                    checker.report(path, item, check);
                });
            }
            Shape::TextChecked(_) | Shape::TextOrList(_) if !value.is_string() => {
                return self.complain(path, value, "is not a string");
            }
            Shape::TextChecked(check) | Shape::TextOrList(check) | Shape::Checked(check) => *check,
            _ => return,
        };
        self.report(path, value, check);
    }

    fn report(&mut self, path: &str, value: &Value, check: schema::Check) {
        if let Err(message) = check(value, &self.world) {
            self.complain(path, value, &format!("didn't pass validation: {message}"));
        }
    }

    fn list(&mut self, path: &str, value: &Value, each: impl Fn(&mut Self, &str, &Value)) {
        match value {
            Value::Array(items) if items.is_empty() => {
                self.complain(path, value, "is an empty list");
            }
            Value::Array(items) => {
                for (position, item) in items.iter().enumerate() {
                    each(self, &format!("{path}.{position}"), item);
                }
            }
            _ => self.complain(path, value, "is not a list"),
        }
    }

    fn section(&mut self, doc: &Map<String, Value>, name: &str, fields: &[Field]) {
        match doc.get(name) {
            Some(Value::Object(map)) => self.fields(name, map, fields),
            Some(value) => self.complain(name, value, "is not a dictionary"),
            None => {}
        }
    }

    fn standby_cluster(&mut self, path: &str, map: &Map<String, Value>) {
        let one_of = ["host", "port", "restore_command"];
        if schema::none_of(map, &one_of) {
            for key in one_of {
                self.undefined(&join(path, key));
            }
        }
    }

    fn store(&mut self, doc: &Map<String, Value>) {
        if schema::none_of(doc, &STORES) {
            for kind in STORES {
                self.undefined(kind);
            }
        }
        if let Some(Value::Object(map)) = doc.get("etcd3") {
            let one_of = ["host", "hosts", "srv", "srv_suffix", "url", "proxy"];
            if schema::none_of(map, &one_of) {
                for key in one_of {
                    self.undefined(&join("etcd3", key));
                }
            }
        }
        self.section(doc, "etcd3", schema::ETCD3);
    }

    fn postgresql(&mut self, doc: &Map<String, Value>) {
        match doc.get("postgresql") {
            Some(Value::Object(map)) => {
                self.fields("postgresql", map, schema::POSTGRESQL);
                self.programs();
                self.fields("postgresql", map, schema::POSTGRESQL_AFTER);
            }
            Some(value) => self.complain("postgresql", value, "is not a dictionary"),
            None => self.undefined("postgresql"),
        }
    }

    /// The programs that a member cannot do without.
    fn programs(&mut self) {
        if let Some(dir) = self.world.bin_dir() {
            let path = std::path::Path::new(dir);
            if !path.exists() {
                return self.lines.push(format!(
                    "postgresql.bin_dir  Directory '{dir}' does not exist."
                ));
            }
            if !path.is_dir() {
                return self
                    .lines
                    .push(format!("postgresql.bin_dir  '{dir}' is not a directory."));
            }
        }
        for program in [
            "pg_ctl",
            "initdb",
            "pg_controldata",
            "pg_basebackup",
            "postgres",
            "pg_isready",
        ] {
            let name = self.world.name_of(program);
            if let Some(message) = self.world.missing_program(name) {
                self.lines.push(format!("postgresql.bin_dir  {message}"));
            }
        }
    }

    fn tags(&mut self, doc: &Map<String, Value>) {
        let Some(value) = doc.get("tags").filter(|tags| truthy(tags)) else {
            return;
        };
        let Value::Object(tags) = value else {
            return self.complain("tags", value, "is not a dictionary");
        };
        for group in schema::TAGS {
            match group {
                [flag, priority]
                    if tags.contains_key(flag.key) && tags.contains_key(priority.key) =>
                {
                    self.lines.push(format!(
                        "tags  Multiple of ('{}', '{}') provided",
                        flag.key, priority.key
                    ));
                }
                _ => self.fields("tags", tags, group),
            }
        }
    }
}

#[cfg(test)]
mod tests;
