//! The engine against readers with a known fault: it must find each, make the input small, and call a target that
//! tests nothing by its name.

use crate::fuzz::{Answers, Example, Plan, Report, Seen, Target, run, run_all};
use std::path::PathBuf;

fn plan(runs: u64) -> Plan {
    Plan {
        only: None,
        runs: Some(runs),
        factor: 1,
        seed: 1,
        failures: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("planted"),
    }
}

fn target(read: fn(&[u8]) -> Seen) -> Target {
    Target {
        name: "planted",
        read,
        answers: Answers::Both,
        words: &["cascade"],
        thousands: 1,
    }
}

fn examples(texts: &[&str]) -> Vec<Example> {
    let example = |text: &&str| ((*text).to_owned(), text.as_bytes().to_vec());
    texts.iter().map(example).collect()
}

/// `name = number;` and `name { … }`, nested; the fault is three levels down, behind a word and a large number.
fn grammar(mut rest: &str, depth: u32) -> Option<&str> {
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with('}') {
            return Some(rest);
        }
        let (name, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic())?);
        let after = after.trim_start();
        if let Some(inside) = after.strip_prefix('{').filter(|_| depth < 50) {
            rest = grammar(inside, depth + 1)?.strip_prefix('}')?;
        } else {
            let (number, next) = after.strip_prefix('=')?.split_once(';')?;
            let number: u64 = number.trim().parse().ok()?;
            assert!(
                depth < 3 || name != "cascade" || number <= u64::from(u32::MAX),
                "the planted fault"
            );
            rest = next;
        }
    }
}

fn nested(input: &[u8]) -> Seen {
    let read = std::str::from_utf8(input)
        .ok()
        .and_then(|text| grammar(text, 0));
    Seen::from(read == Some(""))
}

fn planted() -> Report {
    run(
        &target(nested),
        &examples(&["a = 1; b { c = 2; d { e = 3; } }", "port = 5432;"]),
        &plan(60_000),
    )
}

#[test]
fn a_fault_deep_in_a_grammar_is_found_and_made_small() {
    let report = planted();
    let (_, told) = report.failures.first_key_value().expect("found");
    assert!(told.contains("the planted fault"), "{told}");
    let path = told
        .split("input ")
        .nth(1)
        .and_then(|rest| rest.split(": ").next());
    let input = std::fs::read(path.expect("a path")).expect("the input is kept");
    // `a{a{a{cascade=4294967296;`, or as short.
    assert!(input.len() <= 36, "{:?}", String::from_utf8_lossy(&input));
}

#[test]
fn the_same_seed_gives_the_same_course() {
    assert_eq!(format!("{:?}", planted()), format!("{:?}", planted()));
}

/// Copies what it has each time that it meets a `,`.
fn quadratic(input: &[u8]) -> Seen {
    let mut copies = 0;
    for (at, _) in input.iter().enumerate().filter(|(_, byte)| **byte == b',') {
        copies += std::hint::black_box(input[..at].to_vec()).len();
    }
    Seen::from(copies > 0)
}

#[test]
fn work_that_grows_with_the_square_is_found() {
    let report = run(&target(quadratic), &examples(&["a,b,c"]), &plan(3_000));
    assert!(report.failures.contains_key("heap limit"), "{report:?}");
}

#[test]
fn a_corpus_that_is_read_otherwise_than_its_names_say_is_told() {
    let good: Vec<Example> = vec![(String::from("bad-one"), b"a = 1;".to_vec())];
    let report = run(&target(nested), &good, &plan(100));
    assert!(
        report
            .failures
            .contains_key("corpus file bad-one is Accepted"),
        "{report:?}"
    );
}

#[test]
#[should_panic(expected = "does not bite")]
fn a_target_that_refuses_everything_fails() {
    let refuses = target(|_| Seen::Refused);
    let dir = plan(0).failures.join("corpus");
    std::fs::create_dir_all(dir.join("planted")).expect("a directory");
    std::fs::write(dir.join("planted/bad-anything"), "x").expect("a file");
    run_all(&[refuses], &dir, &plan(100));
}
