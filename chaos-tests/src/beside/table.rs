//! What was compared, and what differs.

use super::explained::{self, Difference};
use super::normal::fields;
use super::probe::{Probe, Reply};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of the differences that one sentence explains.
const ROWS_EXPLAINED: usize = 10;
/// Longest value in the table.
const VALUE_CHARS: usize = 60;

/// The differences of one state.
#[derive(Debug, Default)]
pub struct Seen {
    answers: usize,
    fields: usize,
    differences: Vec<Difference>,
}

impl Seen {
    /// Compares all answers of one state.
    pub fn of(
        state: &str,
        members: &[usize],
        probes: &[Probe],
        theirs: &[Reply],
        ours: &[Reply],
    ) -> Self {
        let mut seen = Self::default();
        let asked = members
            .iter()
            .flat_map(|member| probes.iter().map(move |probe| (*member, probe)));
        for ((member, probe), (theirs, ours)) in asked.zip(theirs.iter().zip(ours)) {
            let (theirs, ours) = (fields(theirs), fields(ours));
            seen.answers += 1;
            let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
            for name in names {
                seen.fields += 1;
                let value = |of: &BTreeMap<String, String>| {
                    of.get(name).cloned().unwrap_or_else(|| "-".to_owned())
                };
                if value(&theirs) != value(&ours) {
                    seen.differences.push(Difference {
                        state: state.to_owned(),
                        member: format!("node{}", member + 1),
                        request: probe.to_string(),
                        field: name.clone(),
                        theirs: value(&theirs),
                        ours: value(&ours),
                    });
                }
            }
        }
        seen
    }

    /// Differences that nothing explains.
    pub fn unexplained(&self) -> usize {
        let open = self
            .differences
            .iter()
            .filter(|one| explained::why(one).is_none());
        open.count()
    }
}

/// All states.
#[derive(Debug, Default)]
pub struct Table {
    states: usize,
    answers: usize,
    fields: usize,
    tools: usize,
    differences: Vec<Difference>,
}

impl Table {
    /// Takes in a state, and says at once what is open in it.
    pub fn add(&mut self, seen: Seen) {
        let open = |one: &&Difference| explained::why(one).is_none();
        print_rows(
            &seen.differences.iter().filter(open).collect::<Vec<_>>(),
            usize::MAX,
        );
        self.states += 1;
        self.answers += seen.answers;
        self.fields += seen.fields;
        self.differences.extend(seen.differences);
    }

    /// Takes in one command of both control tools.
    pub fn tool(&mut self, what: &str, theirs: (Option<i32>, &str), ours: (Option<i32>, &str)) {
        self.tools += 1;
        let (state, request) = what.split_once(": ").unwrap_or((what, ""));
        let mut differ = |field: &str, theirs: String, ours: String| {
            if theirs != ours {
                self.differences.push(Difference {
                    state: state.to_owned(),
                    member: String::from("tool"),
                    request: request.to_owned(),
                    field: field.to_owned(),
                    theirs,
                    ours,
                });
            }
        };
        differ(
            "exit code",
            format!("{:?}", theirs.0),
            format!("{:?}", ours.0),
        );
        differ("output", theirs.1.to_owned(), ours.1.to_owned());
    }

    /// Prints everything; how many differences nothing explains.
    pub fn print(&self) -> usize {
        println!(
            "\n{} comparisons of {} states and lists of requests, {} answers, {} fields; {} commands of the \
             control tools",
            self.states, self.states, self.answers, self.fields, self.tools
        );
        let mut reasons: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
        let mut open = Vec::new();
        for one in &self.differences {
            match explained::why(one) {
                Some(why) => reasons.entry(why).or_default().push(one),
                None => open.push(one),
            }
        }
        println!("\ndifferences that are meant:");
        for (why, all) in &reasons {
            println!("\n* {why} ({} times)", all.len());
            print_rows(all, ROWS_EXPLAINED);
        }
        println!("\ndifferences that nothing explains: {}", open.len());
        print_rows(&open, usize::MAX);
        open.len()
    }
}

/// One row for each request, field and pair of values.
fn print_rows(all: &[&Difference], limit: usize) {
    let mut rows: BTreeMap<(&str, String, String), BTreeMap<&str, BTreeSet<String>>> =
        BTreeMap::new();
    for one in all {
        let key = (one.field.as_str(), shown(&one.theirs), shown(&one.ours));
        let place = format!("{}/{}", one.state, one.member);
        rows.entry(key)
            .or_default()
            .entry(&one.request)
            .or_default()
            .insert(place);
    }
    for ((field, theirs, ours), requests) in rows.into_iter().take(limit) {
        println!("  {field}: Patroni {theirs}, ours {ours}");
        for (request, places) in requests.iter().take(6) {
            let places: Vec<&str> = places.iter().map(String::as_str).take(8).collect();
            println!("      {request}  [{}]", places.join(", "));
        }
        if requests.len() > 6 {
            println!("      and {} more requests", requests.len() - 6);
        }
    }
}

/// A value on one line; a long text of a tool as it is.
fn shown(value: &str) -> String {
    if value.contains('\n') {
        return format!("\n{value}");
    }
    let mut text: String = value.chars().take(VALUE_CHARS).collect();
    if text.len() < value.len() {
        text.push('…');
    }
    text
}
