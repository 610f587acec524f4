//! A small fuzz engine for the stable toolchain: a corpus of real examples, mutations of them, and a promise for
//! each reader that is more than "does not panic". `docs/explanation/fuzzing.md` says how to use it.
//!
//! ```text
//!  corpus/<target>/* ──▶ as they are ──▶ reader ──▶ accepted: becomes a parent of further mutations
//!        ▲                    ▲            │
//!        │                 mutate ◀────────┘
//!        └── a failing input, shrunk: copied here by whoever repairs it
//! ```
//!
//! The engine is included by the tests of `agent`, too.

pub mod heap;
mod mutate;
mod watch;

use mutate::Mutator;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use watch::Watch;

/// What a reader made of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Accepted,
    Refused,
}

impl From<bool> for Seen {
    fn from(accepted: bool) -> Self {
        if accepted {
            Self::Accepted
        } else {
            Self::Refused
        }
    }
}

/// Which answers a reader has; a target in which one of them never comes tests nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Both,
    /// Whatever it is given means something.
    AcceptsAll,
}

/// A reader of what others wrote, and what it promises.
pub struct Target {
    /// Also the directory of its corpus.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub read: fn(&[u8]) -> Seen,
    pub answers: Answers,
    /// Pieces of the language that no file of the corpus has.
    pub words: &'static [&'static str],
    /// Mutations of an ordinary run, in thousands.
    pub thousands: u64,
}

/// How much is run, from the environment.
#[derive(Clone, Debug)]
pub struct Plan {
    pub only: Option<String>,
    pub runs: Option<u64>,
    pub factor: u64,
    pub seed: u64,
    /// Where failing inputs are written.
    pub failures: PathBuf,
}

/// A long run is so many times an ordinary one.
const LONG_FACTOR: u64 = 100;

impl Plan {
    /// An ordinary run has the same seed each time, so that what it finds is a matter of the change under test; a
    /// long one has a new seed each time.
    pub fn asked(failures: &str) -> Self {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name| text(name).and_then(|text| text.parse().ok());
        let long = text("GARDEN_LONG").is_some();
        let fresh = || if long { fastrand::u64(1..1 << 32) } else { 1 };
        Self {
            only: text("FUZZ_TARGET"),
            runs: number("FUZZ_RUNS"),
            factor: if long { LONG_FACTOR } else { 1 },
            seed: number("FUZZ_SEED").unwrap_or_else(fresh),
            failures: PathBuf::from(failures),
        }
    }
}

/// Different failures of one target that are told.
const FAILURES_MAX: usize = 8;

/// Most parents; above it a new one takes the place of another.
const PARENTS_MAX: usize = 2048;

/// Most attempts to make a failing input smaller, and what they may allocate in all.
const SHRINK_MAX: usize = 4000;
const SHRINK_BYTES_MAX: u64 = 1 << 30;

/// What became of one target.
#[derive(Debug, Default)]
pub struct Report {
    pub runs: u64,
    pub accepted: u64,
    pub refused: u64,
    /// Largest share of what the heap limit allows, in percent.
    pub heap: u64,
    pub failures: BTreeMap<String, String>,
}

/// Runs all targets, prints their table, and fails when a promise was broken, a file of the corpus is not read as
/// its name says, or a target does not bite.
pub fn run_all(targets: &[Target], corpus: &Path, plan: &Plan) {
    let mut lines = Vec::new();
    let mut wrong = strangers(targets, corpus);
    for target in targets {
        if plan
            .only
            .as_deref()
            .is_some_and(|only| !target.name.contains(only))
        {
            continue;
        }
        let report = run(target, &files(&corpus.join(target.name)), plan);
        lines.push(format!(
            "{:<18} {:>9} {:>9} {:>9} {:>5} %",
            target.name, report.runs, report.accepted, report.refused, report.heap
        ));
        wrong.extend(complaints(target, &report, plan));
    }
    let head = format!(
        "{:<18} {:>9} {:>9} {:>9} {:>7}",
        "target", "runs", "accepted", "refused", "heap"
    );
    println!(
        "fuzz, FUZZ_SEED={}\n{head}\n{}",
        plan.seed,
        lines.join("\n")
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn complaints(target: &Target, report: &Report, plan: &Plan) -> Vec<String> {
    let again = format!("FUZZ_TARGET={} FUZZ_SEED={}", target.name, plan.seed);
    let mut wrong: Vec<String> = report
        .failures
        .values()
        .map(|failure| format!("{}: {failure}\n{again}", target.name))
        .collect();
    let blunt = report.accepted == 0 || (report.refused == 0 && target.answers == Answers::Both);
    if blunt && report.failures.is_empty() {
        wrong.push(format!("{}: does not bite: {report:?}", target.name));
    }
    wrong
}

/// Directories of the corpus that belong to no target.
fn strangers(targets: &[Target], corpus: &Path) -> Vec<String> {
    let listed =
        std::fs::read_dir(corpus).unwrap_or_else(|err| panic!("{}: {err}", corpus.display()));
    listed
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !targets.iter().any(|target| target.name == name))
        .map(|name| format!("corpus/{name} belongs to no target"))
        .collect()
}

/// A file of a corpus: its name and content.
pub type Example = (String, Vec<u8>);

fn files(dir: &Path) -> Vec<Example> {
    let listed = std::fs::read_dir(dir).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
    let mut files: Vec<Example> = listed
        .flatten()
        .map(|entry| {
            let content = std::fs::read(entry.path()).expect("a file of the corpus");
            (entry.file_name().to_string_lossy().into_owned(), content)
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    files
}

/// One target: its corpus as it is, then mutations.
pub fn run(target: &Target, examples: &[Example], plan: &Plan) -> Report {
    let mut course = Course {
        target,
        plan,
        watch: Watch::start(place(&plan.failures, target.name).join("current")),
        report: Report::default(),
    };
    for (name, input) in examples {
        course.example(name, input);
    }
    let inputs: Vec<Vec<u8>> = examples.iter().map(|(_, input)| input.clone()).collect();
    let mut mutator = Mutator::new(plan.seed, target.name, target.words, &inputs);
    let mut parents = inputs;
    let runs = plan.runs.unwrap_or(target.thousands * 1000 * plan.factor);
    for _ in 0..runs {
        let input = mutator.next(&parents);
        let seen = course.try_one(&input);
        if seen == Some(Seen::Accepted) && mutator.keeps(&input) {
            if parents.len() < PARENTS_MAX {
                parents.push(input);
            } else {
                // The examples themselves stay.
                let at = mutator.below(parents.len() - examples.len()) + examples.len();
                parents[at] = input;
            }
        }
        if course.report.failures.len() >= FAILURES_MAX {
            break;
        }
    }
    course.report
}

struct Course<'t> {
    target: &'t Target,
    plan: &'t Plan,
    watch: Watch,
    report: Report,
}

impl Course<'_> {
    /// Files whose names begin with `bad-` are refused, all others accepted.
    fn example(&mut self, name: &str, input: &[u8]) {
        let wanted = Seen::from(!name.starts_with("bad-"));
        if let Some(seen) = self.try_one(input).filter(|seen| *seen != wanted) {
            let told = format!("corpus file {name} is {seen:?}");
            self.report.failures.insert(told.clone(), told);
        }
    }

    /// `None` when a promise was broken.
    fn try_one(&mut self, input: &[u8]) -> Option<Seen> {
        self.watch.see(input);
        self.report.runs += 1;
        match attempt(self.target, input) {
            Ok((seen, used)) => {
                self.report.heap = self.report.heap.max(used * 100 / heap::limit(input.len()));
                match seen {
                    Seen::Accepted => self.report.accepted += 1,
                    Seen::Refused => self.report.refused += 1,
                }
                Some(seen)
            }
            Err(fault) => {
                self.fail(&fault, input);
                None
            }
        }
    }

    fn fail(&mut self, fault: &Fault, input: &[u8]) {
        if self.report.failures.contains_key(&fault.place) {
            return;
        }
        let small = shrink(input.to_vec(), |smaller| {
            self.watch.see(smaller);
            attempt(self.target, smaller).is_err_and(|again| again.place == fault.place)
        });
        let path = keep(&self.plan.failures, self.target.name, &small);
        let shown: String = small.escape_ascii().take(600).map(char::from).collect();
        let told = format!(
            "{} at {}\ninput {}: {shown}",
            fault.message,
            fault.place,
            path.display()
        );
        self.report.failures.insert(fault.place.clone(), told);
    }
}

/// A broken promise: what was said, and where.
struct Fault {
    place: String,
    message: String,
}

/// The answer, and the bytes allocated for it; or what went wrong.
fn attempt(target: &Target, input: &[u8]) -> Result<(Seen, u64), Fault> {
    catch_panics();
    WATCHED.set(true);
    let before = heap::allocated();
    let seen = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
    let used = heap::allocated() - before;
    WATCHED.set(false);
    match seen {
        Err(_) => Err(LAST.take().unwrap_or(Fault {
            place: String::from("unknown place"),
            message: String::from("panicked"),
        })),
        // In place of a clock: work that grows faster than its input also allocates so, nearly always.
        Ok(_) if used > heap::limit(input.len()) => Err(Fault {
            place: String::from("heap limit"),
            message: format!("{used} bytes allocated for {} bytes of input", input.len()),
        }),
        Ok(seen) => Ok((seen, used)),
    }
}

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<Fault>> = const { RefCell::new(None) };
}

/// Panics of watched threads are kept in place of being printed: there may be thousands of one kind.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !WATCHED.get() {
                return before(info);
            }
            let payload = info.payload();
            let formatted = || payload.downcast_ref::<String>().map(String::as_str);
            let text = payload.downcast_ref::<&str>().copied().or_else(formatted);
            LAST.set(Some(Fault {
                place: info.location().map(ToString::to_string).unwrap_or_default(),
                message: text.unwrap_or("panicked").chars().take(1500).collect(),
            }));
        }));
    });
}

/// The smallest input that still fails, by leaving out pieces of it.
fn shrink(mut input: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut piece = input.len().div_ceil(2);
    let mut tries = 0;
    let before = heap::allocated();
    while piece > 0 && tries < SHRINK_MAX {
        let mut at = 0;
        while at < input.len() && tries < SHRINK_MAX {
            if heap::allocated() - before > SHRINK_BYTES_MAX {
                return input;
            }
            let end = input.len().min(at + piece);
            let smaller = [&input[..at], &input[end..]].concat();
            tries += 1;
            if fails(&smaller) {
                input = smaller;
            } else {
                at = end;
            }
        }
        piece /= 2;
    }
    input
}

/// Where inputs of a target are written.
fn place(failures: &Path, target: &str) -> PathBuf {
    let dir = failures.join("fuzz").join(target);
    std::fs::create_dir_all(&dir).unwrap_or_else(|err| panic!("{}: {err}", dir.display()));
    dir
}

/// Writes an input to a file named after its content.
fn keep(failures: &Path, target: &str, input: &[u8]) -> PathBuf {
    let path = place(failures, target).join(format!("{:016x}", mutate::hash(input)));
    std::fs::write(&path, input).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    path
}
