//! What `cargo deny check licenses bans sources` would say, without a tool that has to be installed:
//! every crate in the tree has a licence that allows us to ship it, comes from the registry, and no
//! crate is there for a job that another one does. Advisories need a database from the network and are
//! left to `cargo deny check advisories` with `.cargo/deny.toml`.

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

/// One of the alternatives of each crate's licence must consist of these.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A second crate for a job that one in the tree does, or one that is not kept any more.
const BANNED: &[&str] = &[
    "serde_yaml",
    "openssl-sys",
    "native-tls",
    "reqwest",
    "insta",
    "chrono",
];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("run cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let document: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    document["packages"]
        .as_array()
        .expect("packages are listed")
        .clone()
}

fn text<'v>(package: &'v Value, key: &str) -> &'v str {
    package[key].as_str().unwrap_or_default()
}

/// Whether one alternative of an SPDX expression is made of allowed licences only. `/` is the old way of
/// writing `OR`.
fn is_allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], " ").replace('/', " OR ");
    flat.split(" OR ").any(|alternative| {
        alternative
            .split(" AND ")
            .all(|licence| ALLOWED.contains(&licence.trim()))
    })
}

#[test]
fn every_crate_may_be_shipped() {
    let refused: Vec<String> = packages()
        .iter()
        .filter(|p| !is_allowed(text(p, "license")))
        .map(|p| {
            format!(
                "{} {}: {}",
                text(p, "name"),
                text(p, "version"),
                text(p, "license")
            )
        })
        .collect();
    assert!(
        refused.is_empty(),
        "licences that are not allowed: {refused:#?}"
    );
}

#[test]
fn every_crate_is_ours_or_from_the_registry() {
    let packages = packages();
    let strangers: Vec<&str> = packages
        .iter()
        .filter(|p| {
            let source = text(p, "source");
            !source.is_empty() && !source.starts_with("registry+")
        })
        .map(|p| text(p, "name"))
        .collect();
    assert!(strangers.is_empty(), "not from the registry: {strangers:?}");
}

#[test]
fn no_crate_does_the_job_of_another() {
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(|p| text(p, "name")).collect();
    let banned: Vec<&&str> = BANNED
        .iter()
        .filter(|name| names.contains(**name))
        .collect();
    assert!(banned.is_empty(), "{banned:?}");
}
