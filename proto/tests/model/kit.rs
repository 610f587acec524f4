//! Runs a model to its end, or until a mutation has broken something, and says what that took.

use stateright::{Checker, HasDiscoveries, Model, Path};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::thread::LocalKey;
use std::time::Instant;

/// Answers of real rules to questions that come again in thousands of states. Each search has a thread of
/// its own, so nothing is kept from one model to the next.
pub type Memo<K, V> = RefCell<HashMap<K, V>>;

pub fn memo<K: Hash + Eq, V: Clone>(
    known: &'static LocalKey<Memo<K, V>>,
    question: K,
    answer: impl FnOnce() -> V,
) -> V {
    if let Some(known) = known.with_borrow(|known| known.get(&question).cloned()) {
        return known;
    }
    let answer = answer();
    known.with_borrow_mut(|known| known.insert(question, answer.clone()));
    answer
}

/// Whether the larger sizes are asked for.
pub fn long() -> bool {
    std::env::var_os("GARDEN_LONG").is_some()
}

fn story<S, A: Debug>(path: Path<S, A>) -> String {
    path.into_actions()
        .iter()
        .map(|action| format!("  {action:?}\n"))
        .collect()
}

/// Visits every state. All properties must hold, and whatever is *sometimes* so must have been seen. What is
/// too large even for the long mode ends after [`MOST`] transitions, breadth first, and says so.
pub fn exhaust<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    alone(|| visit_all(name, model));
}

/// In a thread of its own: [`memo`] keeps what it has heard for as long as the thread lives, and the model
/// is asked again here when a trace is told.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let ended = std::thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn visit_all<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let begun = Instant::now();
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(MOST)
        .spawn_bfs()
        .join();
    let whole = if checker.state_count() < MOST {
        ""
    } else {
        " NOT EXHAUSTED:"
    };
    println!(
        "{name}:{whole} {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (property.expectation.discovery_is_failure(), found) {
            (true, Some(path)) => panic!("{name}: not {}\n{}", property.name, story(path)),
            (false, None) => panic!("{name}: {} was never seen", property.name),
            (true, None) => println!("  always {}", property.name),
            (false, Some(path)) => {
                let steps = path.into_actions().len();
                println!(
                    "  sometimes {}, for example after {steps} steps",
                    property.name
                );
            }
        }
    }
}

/// A mutation that has broken nothing after so many transitions is not found.
const HUNT: usize = 12_000_000;

/// Some minutes, and some gigabytes of memory.
const MOST: usize = 60_000_000;

/// What a mutation broke.
pub struct Row {
    mutation: &'static str,
    states: usize,
    /// The property, and the length of the trace that breaks it.
    broken: Option<(&'static str, usize)>,
    story: String,
}

/// Searches for the shortest trace that breaks a property.
pub fn hunt<M>(mutation: &'static str, model: M) -> Row
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    alone(|| search(mutation, model))
}

fn search<M>(mutation: &'static str, model: M) -> Row
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Send + Sync + Clone + PartialEq + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(HUNT)
        .spawn_bfs()
        .join();
    let shortest = checker
        .model()
        .properties()
        .into_iter()
        .filter(|property| property.expectation.discovery_is_failure())
        .filter_map(|property| Some((property.name, checker.discovery(property.name)?)))
        .map(|(name, path)| (name, path.into_actions()))
        .min_by_key(|(_, actions)| actions.len());
    let story = shortest
        .iter()
        .flat_map(|(_, actions)| actions.iter().map(|action| format!(" {action:?}")))
        .collect();
    Row {
        mutation,
        states: checker.unique_state_count(),
        broken: shortest.map(|(name, actions)| (name, actions.len())),
        story,
    }
}

/// Prints what each mutation broke, and fails if one broke nothing.
pub fn table(title: &str, rows: impl Iterator<Item = Row>) {
    let mut lines = vec![
        format!("| mutation of {title} | breaks | states visited | steps |"),
        "|---|---|---|---|".to_owned(),
    ];
    let mut missed = Vec::new();
    for row in rows {
        let (property, steps) = row.broken.map_or_else(
            || ("NOTHING", String::from("–")),
            |(property, steps)| (property, steps.to_string()),
        );
        if row.broken.is_none() {
            missed.push(row.mutation);
        }
        println!("found: {} {property} {}", row.mutation, row.states);
        lines.push(format!(
            "| {} | {property} | {} | {steps} |",
            row.mutation, row.states
        ));
        if std::env::var_os("MODEL_TRACES").is_some() {
            lines.push(format!("  {}", row.story));
        }
    }
    println!("{}", lines.join("\n"));
    assert!(missed.is_empty(), "not found: {missed:?}");
}
