//! Rules of the repository, as tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files longer than this are listed, so that drift is noticed; nothing fails for it.
const LINES_MAX: usize = 500;
/// What `proto` may depend on: plain data, and a calendar for the moments that people write down.
const PROTO_DEPENDENCIES: [&str; 4] = ["jiff", "serde", "serde_json", "thiserror"];
/// What `proto` may not use: it is told what happened and what time it is.
const PROTO_FORBIDDEN: [&str; 15] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "HashMap",
    "HashSet",
    "async fn",
    "rand::",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_path_buf()
}

/// All files that the repository tracks or would track, by extension.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir)
            .expect("a readable directory")
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    pending.push(path);
                }
            } else if extensions
                .iter()
                .any(|wanted| path.extension().is_some_and(|e| e == *wanted))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Code without comments; good enough for sources that keep `//` out of strings.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

#[test]
fn proto_depends_on_plain_data_only() {
    let manifest = read(&root().join("proto/Cargo.toml"));
    let section = manifest
        .split("\n[")
        .find_map(|part| part.strip_prefix("dependencies]"));
    let names = section
        .expect("proto has dependencies")
        .lines()
        .filter_map(|line| {
            let name = line.split(['.', '=', ' ']).next()?.trim();
            (!name.is_empty() && !name.starts_with('#')).then_some(name)
        });
    let names: BTreeSet<&str> = names.collect();
    let allowed = BTreeSet::from(PROTO_DEPENDENCIES);
    assert!(
        names.is_subset(&allowed),
        "{names:?} is more than {allowed:?}"
    );
}

#[test]
fn proto_reads_no_clock_no_file_and_no_environment() {
    let mut found = Vec::new();
    let sources = root().join("proto/src");
    for path in files(&["rs"])
        .iter()
        .filter(|path| path.starts_with(&sources))
    {
        // Tests, in a file of their own or at the end of one, may do what they like.
        if path
            .iter()
            .any(|part| part == "tests" || part == "tests.rs")
        {
            continue;
        }
        let text = read(path);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code(text) {
            for word in PROTO_FORBIDDEN.iter().filter(|word| uses(line, word)) {
                found.push(format!("{}:{number}: {word}", shown(path)));
            }
        }
    }
    assert!(
        found.is_empty(),
        "proto must stay pure:\n{}",
        found.join("\n")
    );
}

/// Whether the word stands by itself in the line.
fn uses(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(letter) && (word.ends_with(':') || !after.is_some_and(letter))
    })
}

#[test]
fn nothing_names_a_directory_of_one_machine() {
    let homes = ["/root/", "/home/", "/work/", "/Users/"];
    let mut found = Vec::new();
    for path in files(&["rs", "toml", "md", "sh", "yml", "cfg", "service"]) {
        if path.ends_with("chaos-tests/tests/tidy.rs") {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            if homes.iter().any(|home| names_directory(line, home)) {
                found.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "paths of one machine:\n{}",
        found.join("\n")
    );
}

/// `/root/` as the start of a path, not as a part of `/var/root/` or of an address.
fn names_directory(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || "._-}>/*".contains(c))
    })
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = Vec::new();
    for path in files(&["md"]) {
        let dir = path.parent().expect("a file is in a directory");
        for target in links(&read(&path)) {
            let target = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !outside && !dir.join(target).exists() {
                broken.push(format!("{}: {target}", shown(&path)));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Targets of `[text](target)` outside of code blocks.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else {
                break;
            };
            found.push(target);
            rest = after;
        }
    }
    found
}

#[test]
fn long_files_are_listed() {
    let sizes = files(&["rs"])
        .into_iter()
        .map(|path| (read(&path).lines().count(), path));
    let mut long: Vec<_> = sizes.filter(|(lines, _)| *lines > LINES_MAX).collect();
    long.sort();
    for (lines, path) in long.iter().rev() {
        println!("{lines} lines, think about a cut: {}", shown(path));
    }
    assert!(
        long.len() < 40,
        "{} files are longer than {LINES_MAX} lines",
        long.len()
    );
}

#[test]
fn nothing_is_left_to_do_in_comments() {
    let marks = ["TODO", "FIXME", "XXX"];
    let mut found = Vec::new();
    for path in files(&["rs", "sh"]) {
        if path.ends_with("chaos-tests/tests/tidy.rs") {
            continue;
        }
        // In comments only: a generated configuration says FIXME to its owner, not to us.
        let comment = if path.extension().is_some_and(|e| e == "rs") {
            "//"
        } else {
            "#"
        };
        for (number, line) in read(&path).lines().enumerate() {
            let remark = line.split_once(comment).map_or("", |(_, remark)| remark);
            if marks.iter().any(|mark| uses(remark, mark)) {
                found.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "unfinished:\n{}", found.join("\n"));
}

/// Root's tests run themselves again as another user, by name. With a wrong one nothing would run, and pass.
#[test]
fn a_test_that_runs_itself_again_knows_its_name() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in files(&["rs"]) {
        for (test, name) in names_told(&read(&path)) {
            seen += 1;
            if name != test {
                wrong.push(format!("{}: {test} calls itself {name}", shown(&path)));
            }
        }
    }
    assert!(
        seen > 30,
        "only {seen} were found: is the rule out of date?"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Functions that run themselves again, with the names that they give for themselves.
fn names_told(text: &str) -> Vec<(String, String)> {
    let mut function = "";
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\n') {
        let word = line.trim_start_matches("pub ").trim_start_matches("async ");
        if let Some(name) = word.strip_prefix("fn ") {
            function = name.split('(').next().unwrap_or_default();
        }
        let call = line.trim_start().trim_start_matches("if again::done_");
        let again = call.starts_with("as_postgres(") || call.starts_with("as_postgres_on_a_mount(");
        let argument = rest
            .split_once('(')
            .map(|(_, argument)| argument.trim_start());
        if again && let Some(literal) = argument.and_then(|text| text.strip_prefix('"')) {
            let name = literal.split('"').next().unwrap_or_default();
            found.push((function.to_owned(), name.to_owned()));
        }
        rest = after;
    }
    found
}
