//! The generated tables of `docs/reference` are those of the code, and every test that a page names
//! exists. `UPDATE_DOCS=1` writes the tables.

mod rest_support;

use garden_agent::clock;
use garden_agent::exit::Exit;
use garden_agent::manual;
use proto::core::reason::Reason;
use rest_support::{FakeEtcd, leader};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const END: &str = "<!-- end -->";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The page's table is `table`, or is made so when asked.
fn generated(page: &str, name: &str, table: &str) {
    let path = root().join("docs/reference").join(page);
    let text = read(&path);
    let begin = format!("<!-- generated: {name} -->");
    let (before, rest) = text.split_once(&begin).expect("the mark where it begins");
    let (_, after) = rest.split_once(END).expect("the mark where it ends");
    let wanted = format!("{before}{begin}\n{table}{END}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("write the page");
        return;
    }
    assert!(
        text == wanted,
        "docs/reference/{page} is out of date: UPDATE_DOCS=1 cargo test -p garden-agent --test docs"
    );
}

#[test]
fn rules_are_those_of_the_code() {
    let mut table = String::from("| rule | sentence |\n|---|---|\n");
    let mut seen = BTreeSet::new();
    for (id, sentence) in Reason::RULES {
        assert!(seen.insert(id), "two rules are called {id}");
        let sentence = sentence.replace('|', "\\|");
        writeln!(table, "| `{id}` | {sentence} |").expect("text");
    }
    generated("rules.md", "rules", &table);
}

#[test]
fn metrics_are_those_of_the_code() {
    let mut published = leader(&FakeEtcd::default());
    published.rule = String::from("leading");
    let page = proto::rest::metrics::page(&published, true, clock::now());
    let mut helps = BTreeMap::new();
    let mut table = String::from("| series | type | |\n|---|---|---|\n");
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            helps.insert(name, help);
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            let help = helps.get(name).expect("a help before the type");
            writeln!(table, "| `{name}` | {kind} | {help} |").expect("text");
        }
    }
    generated("metrics.md", "metrics", &table);
}

#[test]
fn exit_codes_are_those_of_the_code() {
    let mut table = String::from("| code | meaning |\n|---|---|\n");
    for (exit, meaning) in [
        (Exit::Success, "ended as asked"),
        (
            Exit::Failure,
            "could not start or go on, the reason is the last line of the log; or the configuration \
             did not pass `--validate-config`; or `replay` found another decision",
        ),
        (Exit::Usage, "the command line is not understood"),
        (
            Exit::LogLost,
            "ended as asked, but the last log records could not be written",
        ),
    ] {
        writeln!(table, "| {} | {meaning} |", exit.code()).expect("text");
    }
    generated("exit-codes.md", "exit-codes", &table);
}

#[test]
fn keys_are_those_of_the_code() {
    let mut table = String::from("| key | default | |\n|---|---|---|\n");
    for described in garden_agent::config::keys::all() {
        let key = described.key;
        let default = match key.default {
            "" => String::new(),
            "required" => String::from("required"),
            text => format!("`{text}`"),
        };
        writeln!(
            table,
            "| `{}` | {default} | {} |",
            described.path, key.meaning
        )
        .expect("text");
    }
    generated("configuration.md", "keys", &table);
}

#[test]
fn options_are_those_of_the_code() {
    generated(
        "gardenctl.md",
        "gardenctl",
        &manual::markdown(garden_agent::ctl::command()),
    );
    generated(
        "gardenctl.md",
        "garden-agent",
        &manual::markdown(garden_agent::cli::command()),
    );
}

/// Files below `dir` with this extension.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

/// `file.rs::test_name` wherever a page has it.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in text.split('`') {
        if let Some((file, test)) = part.split_once(".rs::") {
            found.push((format!("{file}.rs"), test.to_owned()));
        }
    }
    found
}

#[test]
fn every_test_that_a_page_names_exists() {
    let sources = files(&root(), "rs").into_iter().map(|path| {
        let text = read(&path);
        (path, text)
    });
    let sources: Vec<(PathBuf, String)> = sources.collect();
    let exists = |file: &str, test: &str| {
        let function = format!("fn {test}(");
        let mut all = sources.iter().filter(|(path, _)| path.ends_with(file));
        all.any(|(_, text)| text.contains(&function))
    };
    let mut missing = Vec::new();
    let mut named = 0;
    for page in files(&root().join("docs"), "md") {
        for (file, test) in named_tests(&read(&page)) {
            named += 1;
            if !exists(&file, &test) {
                missing.push(format!("{}: {file}::{test}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    assert!(named > 40, "pages name their tests: {named}");
}

/// Rules that a page explains must be rules.
#[test]
fn rules_that_are_explained_exist() {
    let known: BTreeSet<&str> = Reason::RULES.iter().map(|(id, _)| *id).collect();
    let mut wrong = Vec::new();
    for (page, column) in [
        ("docs/how-to/troubleshoot.md", 0),
        ("docs/explanation/failover-step-by-step.md", usize::MAX),
    ] {
        for line in read(&root().join(page))
            .lines()
            .filter(|line| line.starts_with("| "))
        {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let cell = cells
                .get(column)
                .or(cells.last())
                .copied()
                .unwrap_or_default();
            for word in cell.split('`').skip(1).step_by(2) {
                let looks_like_a_rule = word.contains('-') && !word.contains([' ', '_', '/', '.']);
                if looks_like_a_rule && !known.contains(word) {
                    wrong.push(format!("{page}: {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no such rules:\n{}", wrong.join("\n"));
}

/// Series that dashboards and alerts use must exist.
#[test]
fn dashboards_and_alerts_use_series_that_exist() {
    let mut published = leader(&FakeEtcd::default());
    published.rule = String::from("leading");
    let page = proto::rest::metrics::page(&published, true, clock::now());
    let known: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let dir = root().join("deploy/monitoring");
    let mut wrong = Vec::new();
    for file in files(&dir, "yml").into_iter().chain(files(&dir, "json")) {
        let text = read(&file);
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        for name in text.split(word) {
            let series = name.starts_with("patroni_") || name.starts_with("garden_agent_");
            if series && !known.contains(name) {
                wrong.push(format!("{}: {name}", file.display()));
            }
        }
        if file.extension().is_some_and(|e| e == "json") {
            serde_json::from_str::<serde_json::Value>(&text).expect("valid JSON");
        } else {
            garden_agent::config::yaml::from_str(&text).expect("valid YAML");
        }
    }
    assert!(wrong.is_empty(), "no such series:\n{}", wrong.join("\n"));
}
