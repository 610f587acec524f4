//! `--validate-config` says the same as the released Patroni, line by line and in the same order, for
//! good and broken files (`validate/*.yml`; the first line of each says what is in it). Differences that
//! are meant are in [`DIFFERENCES`], each with its reason; a difference that is gone fails too.
//!
//! `GARDEN_PATRONI` names Patroni's program. Without it the messages are not compared, but each file
//! must still be judged without a panic, and as good or bad as its name says.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A traceback is many lines; one stands for all of them.
const TRACEBACK: &str = "Traceback (most recent call last):";

/// What differs in one file.
struct Difference {
    file: &'static str,
    /// Lines of Patroni that ours lack.
    theirs: &'static [&'static str],
    /// Lines of ours that Patroni's lack.
    ours: &'static [&'static str],
    /// Ours refuse what Patroni's checks let through.
    stricter: bool,
    why: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        file: "ctl-values.yml",
        theirs: &["ctl.keyfile_password 1 is not a string"],
        ours: &["ctl.keyfile_password *** is not a string"],
        stricter: false,
        why: "a password of the wrong type is still a password",
    },
    Difference {
        file: "postgresql-values.yml",
        theirs: &["postgresql.authentication.replication.password 5 is not a string"],
        ours: &["postgresql.authentication.replication.password *** is not a string"],
        stricter: false,
        why: "a password of the wrong type is still a password",
    },
    Difference {
        file: "good-unknown-keys.yml",
        theirs: &[],
        ours: &[
            "warning: good-unknown-keys.yml: unknown key whatever is ignored",
            "warning: good-unknown-keys.yml: unknown key postgresql.not_a_key is ignored",
        ],
        stricter: false,
        why: "a key that means nothing is told; the status stays 0",
    },
    Difference {
        file: "log-dir-missing.yml",
        theirs: &[],
        ours: &["log-dir-missing.yml: log.dir: expected a directory that exists and is writable"],
        stricter: true,
        why: "what would fail at the start is told by the check",
    },
    Difference {
        file: "other-store.yml",
        theirs: &[
            "consul.host 127.0.0.1:8500 didn't pass validation: 127.0.0.1:8500 is not reachable",
        ],
        ours: &[
            "other-store.yml: section consul: Patroni would use it instead of etcd3; remove it",
        ],
        stricter: false,
        why: "only etcd is supported, so another store is not looked at but refused",
    },
    Difference {
        file: "not-a-mapping.yml",
        theirs: &[
            "not-a-mapping.yml does not contain a dict",
            "invalid config file not-a-mapping.yml",
        ],
        ours: &["not-a-mapping.yml does not contain a mapping: invalid config file"],
        stricter: false,
        why: "the same in one line",
    },
    Difference {
        file: "not-yaml.yml",
        theirs: &[TRACEBACK],
        ours: &[
            "not-yaml.yml: line 3, column 5: did not find expected ',' or ']' while parsing a flow sequence",
        ],
        stricter: false,
        why: "file, place and problem instead of a traceback",
    },
    Difference {
        file: "postgresql-bin-name-number.yml",
        theirs: &[TRACEBACK],
        ours: &["postgresql.bin_name.postgres 5 is not a string"],
        stricter: false,
        why: "a message instead of a traceback",
    },
];

/// Status and lines of standard error and standard output.
#[derive(Debug, PartialEq)]
struct Verdict {
    status: i32,
    errors: Vec<String>,
    printed: String,
}

fn verdict(output: &Output) -> Verdict {
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors = if errors.starts_with(TRACEBACK) {
        vec![TRACEBACK.to_owned()]
    } else {
        errors.lines().map(str::to_owned).collect()
    };
    Verdict {
        status: output.status.code().unwrap_or(-1),
        errors,
        printed: String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate")
}

fn postgres() -> PathBuf {
    std::env::var_os("GARDEN_PG_BIN").map_or_else(
        || PathBuf::from("/usr/lib/postgresql/15/bin"),
        PathBuf::from,
    )
}

/// Runs a program on a file of `dir`, without any `PATRONI_*` variable.
fn run(program: &Path, dir: &Path, file: &str, switches: &[&str]) -> Verdict {
    let path = format!("{}:/usr/bin:/bin", postgres().display());
    let output = Command::new(program)
        .arg("--validate-config")
        .args(switches)
        .arg(file)
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .stdin(Stdio::null())
        .output();
    verdict(&output.unwrap_or_else(|err| panic!("run {}: {err}", program.display())))
}

fn ours(dir: &Path, file: &str, switches: &[&str]) -> Verdict {
    run(
        Path::new(env!("CARGO_BIN_EXE_garden-agent")),
        dir,
        file,
        switches,
    )
}

fn patroni() -> Option<PathBuf> {
    let found = std::env::var_os("GARDEN_PATRONI").map(PathBuf::from);
    if found.is_none() {
        println!("GARDEN_PATRONI is not set: nothing is compared with the released Patroni");
    }
    found
}

fn files() -> Vec<String> {
    let entries = std::fs::read_dir(directory()).expect("the files to validate");
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".yml")).collect();
    names.sort();
    assert!(names.len() > 25, "the files to validate");
    names
}

/// Patroni's verdict as ours must be: each difference that is known is put in, where it is.
fn expected(theirs: &Verdict, known: Option<&Difference>) -> Result<Verdict, String> {
    let Some(known) = known else {
        return Ok(Verdict {
            errors: theirs.errors.clone(),
            printed: theirs.printed.clone(),
            ..*theirs
        });
    };
    let mut errors = theirs.errors.clone();
    let at = match known.theirs.first() {
        None => errors.len(),
        Some(first) => errors
            .iter()
            .position(|line| line == first)
            .ok_or_else(|| format!("Patroni does not say any more: {first}"))?,
    };
    let end = at + known.theirs.len();
    if errors
        .get(at..end)
        .is_none_or(|lines| lines != known.theirs)
    {
        return Err(format!("Patroni does not say any more: {:?}", known.theirs));
    }
    errors.splice(at..end, known.ours.iter().map(|line| (*line).to_owned()));
    let status = if known.stricter { 1 } else { theirs.status };
    Ok(Verdict {
        status,
        errors,
        printed: theirs.printed.clone(),
    })
}

#[test]
fn messages_and_status_are_those_of_the_released_patroni() {
    let Some(patroni) = patroni() else { return };
    let known: BTreeMap<&str, &Difference> = DIFFERENCES.iter().map(|d| (d.file, d)).collect();
    let mut wrong = Vec::new();
    let mut same = 0;
    for file in files() {
        let theirs = run(&patroni, &directory(), &file, &[]);
        let ours = ours(&directory(), &file, &[]);
        match expected(&theirs, known.get(file.as_str()).copied()) {
            Ok(expected) if expected == ours => same += usize::from(theirs == ours),
            Ok(expected) => wrong.push(format!(
                "{file}:\n  expected {expected:?}\n  ours     {ours:?}"
            )),
            Err(gone) => wrong.push(format!("{file}: {gone}")),
        }
    }
    println!(
        "{same} files with the same lines and status; {} with differences:",
        known.len()
    );
    for difference in DIFFERENCES {
        println!("  {:<32} {}", difference.file, difference.why);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_port_in_use_is_told_unless_it_may_be_and_the_merged_file_is_printed_alike() {
    let Some(patroni) = patroni() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    let text = std::fs::read_to_string(directory().join("good-full.yml")).expect("a good file");
    let dir = std::env::temp_dir().join(format!("garden-validate-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("a.yml"), text.replace("31998", &port.to_string())).expect("write");
    for switches in [
        &[][..],
        &["-i"],
        &["-i", "-p"],
        &["--ignore-listen-port", "--print"],
    ] {
        let mut theirs = run(&patroni, &dir, "a.yml", switches);
        // Patroni prints passwords, ours are hidden.
        for secret in ["secret-one", "secret-two", "secret-three"] {
            theirs.printed = theirs.printed.replace(secret, "'***'");
        }
        assert_eq!(ours(&dir, "a.yml", switches), theirs, "{switches:?}");
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn good_files_pass_and_broken_ones_do_not() {
    let lenient = [
        "threads-sane-stack.yml",
        "watchdog-off.yml",
        "postgresql-two-addresses.yml",
    ];
    for file in files() {
        let verdict = ours(&directory(), &file, &[]);
        let good = file.starts_with("good-") || lenient.contains(&file.as_str());
        assert_eq!(verdict.status == 0, good, "{file}: {:?}", verdict.errors);
        assert!(
            good || !verdict.errors.is_empty(),
            "{file} is refused without a word"
        );
        let told = verdict.errors.join("\n");
        assert!(
            !told.contains("secret-"),
            "{file}: a password is shown: {told}"
        );
    }
}
