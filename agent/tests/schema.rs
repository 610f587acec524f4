//! The JSON schema for editors: it takes every good file of `validate/`, refuses what is wrong in others,
//! and the copy in `docs/reference` is that of the code (`UPDATE_DOCS=1` writes it). The part of JSON
//! schema that ours uses is judged here; a word that this does not know fails.

use garden_agent::config::schema::schema;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Where and why a value does not fit, or nothing.
fn problems(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let words = match schema {
        Value::Bool(true) => return,
        Value::Bool(false) => return found.push(format!("{at}: not known")),
        schema => schema.as_object().expect("a schema"),
    };
    for (word, rule) in words {
        let fits = match word.as_str() {
            "$schema" | "$id" | "title" | "description" | "default" => true,
            "type" => {
                let types = rule
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![rule.clone()]);
                types
                    .iter()
                    .any(|one| is_of(value, one.as_str().expect("a name")))
            }
            "enum" => rule.as_array().expect("a list").contains(value),
            "minimum" => value
                .as_i64()
                .is_none_or(|number| Some(number) >= rule.as_i64()),
            // The one pattern there is: a number and perhaps a unit.
            "pattern" => value.as_str().is_none_or(|text| {
                let unit =
                    text.trim_start_matches(|c: char| c.is_ascii_digit() || "-. ".contains(c));
                unit.len() < text.len() && unit.len() <= 3
            }),
            "anyOf" => rule.as_array().expect("a list").iter().any(|one| {
                let mut inner = Vec::new();
                problems(one, value, at, &mut inner);
                inner.is_empty()
            }),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    problems(rule, item, &format!("{at}[{index}]"), found);
                }
                true
            }
            "properties" => true,
            "additionalProperties" => {
                members(schema, rule, value, at, found);
                true
            }
            other => panic!("{at}: this test does not know {other}"),
        };
        if !fits {
            found.push(format!("{at}: {word} {rule}, not {value}"));
        }
    }
}

fn members(schema: &Value, others: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let own = schema.get("properties").and_then(|known| known.get(key));
        problems(own.unwrap_or(others), value, &format!("{at}.{key}"), found);
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        other => panic!("no type of JSON: {other}"),
    }
}

fn judged(text: &str) -> Vec<String> {
    let value = garden_agent::config::yaml::from_str(text).expect("YAML");
    let mut found = Vec::new();
    problems(&schema(), &value, "", &mut found);
    found
}

#[test]
fn good_files_fit_and_the_rest_is_told_where_it_does_not() {
    let mut good = 0;
    for entry in std::fs::read_dir(folder("tests/validate"))
        .expect("a directory")
        .flatten()
    {
        let path = entry.path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        // Keys that mean nothing are good enough for the agent, and what an editor should mark.
        if name.starts_with("good-") && name != "good-unknown-keys.yml" {
            good += 1;
            let text = std::fs::read_to_string(&path).expect("a file");
            assert_eq!(judged(&text), Vec::<String>::new(), "{name}");
        }
    }
    assert!(good >= 3, "{good} good files");
    for (wrong, at) in [
        ("postgresql: {liste: x}", ".postgresql.liste"),
        (
            "restapi: {verify_client: perhaps}",
            ".restapi.verify_client",
        ),
        ("bootstrap: {dcs: {ttl: soon}}", ".bootstrap.dcs.ttl"),
        ("log: {level: loud}", ".log.level"),
        ("tags: {nofailover: 5}", ".tags.nofailover"),
        ("etcd3: [a]", ".etcd3"),
        ("watchdog: {safety_margin: -2}", ".watchdog.safety_margin"),
    ] {
        let found = judged(wrong);
        assert!(
            found.iter().any(|line| line.starts_with(at)),
            "{wrong}: {found:?}"
        );
    }
    for right in [
        "tags: {zone: east, nofailover: true}",
        "postgresql: {barman: {command: x, keep_data: true}}",
        "bootstrap: {dcs: {ttl: 30, synchronous_mode: quorum, garden: {lease_ms: 5000}}}",
    ] {
        assert_eq!(judged(right), Vec::<String>::new(), "{right}");
    }
}

#[test]
fn the_schema_in_the_docs_is_that_of_the_program() {
    let path = folder("../docs/reference/patroni.schema.json");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_garden-agent"))
        .arg("--print-schema")
        .output();
    let output = output.expect("run the agent");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("text");
    let parsed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(
        parsed.get("$schema"),
        Some(&json!("https://json-schema.org/draft/2020-12/schema"))
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &printed).expect("write the schema");
    }
    let kept = std::fs::read_to_string(&path).expect("the schema in the docs");
    assert!(
        kept == printed,
        "docs/reference/patroni.schema.json is out of date: UPDATE_DOCS=1 cargo test -p garden-agent --test schema"
    );
}

#[test]
fn completion_and_man_pages_come_from_both_programs() {
    for program in [
        env!("CARGO_BIN_EXE_garden-agent"),
        env!("CARGO_BIN_EXE_gardenctl"),
    ] {
        let name = Path::new(program)
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        for shell in ["bash", "zsh", "fish"] {
            let output = std::process::Command::new(program)
                .args(["completion", shell])
                .output();
            let output = output.expect("run it");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains(&name),
                "{name} {shell}: {text}"
            );
        }
        let dir = std::env::temp_dir().join(format!("garden-man-{}-{name}", std::process::id()));
        let made = std::process::Command::new(program)
            .arg("man")
            .arg(&dir)
            .status()
            .expect("run it");
        assert!(made.success());
        let page = std::fs::read_to_string(dir.join(format!("{name}.1"))).expect("its page");
        assert!(page.contains(".TH") && page.contains("SYNOPSIS"), "{page}");
        let pages = std::fs::read_dir(&dir).expect("a directory").count();
        assert!(pages > 1, "{pages} pages: one for each command, too");
        std::fs::remove_dir_all(&dir).expect("remove the pages");
    }
}
