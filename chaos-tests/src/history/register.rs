//! Linearizability of one register (Wing and Gong 1993, with Lowe's memory of states that led nowhere).
//!
//! Registers are independent, so each is checked by itself (a history is linearizable exactly when its
//! part for every register is: Herlihy and Wing 1990), and the harness takes a new register before the
//! old one has had too many operations. The search is bounded; when the bound is reached, nothing is
//! known, and that is said.

use std::collections::BTreeSet;
use std::time::Duration;

/// What was asked, and what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The value that was read; none: never written.
    Read(Option<i64>),
    /// A value was written.
    Write(i64),
    /// A value was to be replaced by another if it was there, and whether it was.
    Cas {
        /// The old value.
        from: i64,
        /// The new value.
        to: i64,
        /// Whether it was replaced; means nothing when the outcome is unknown.
        swapped: bool,
    },
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What.
    pub call: Call,
    /// When it was asked.
    pub began: Duration,
    /// When it was answered; none: never, it may take effect at any time after it began, or not at all.
    pub ended: Option<Duration>,
    /// Timeline of the server that answered, 0 when unknown.
    pub timeline: u32,
}

/// The result for one register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is an order that explains all answers.
    Linearizable,
    /// There is none; so many of the answered calls could be explained at most.
    Impossible {
        /// Calls explained by the best try.
        explained: usize,
        /// Calls that were answered.
        answered: usize,
    },
    /// The bound was reached first.
    GaveUp,
}

/// Places in the search that are visited at most.
const STATES_MAX: usize = 300_000;

/// Looks for an order of the calls in which each takes effect between its begin and its end.
pub fn check(operations: &[Operation]) -> Answer {
    check_bounded(operations, STATES_MAX)
}

fn check_bounded(operations: &[Operation], states_max: usize) -> Answer {
    // A read without an answer says nothing.
    let useful = |op: &&Operation| op.ended.is_some() || !matches!(op.call, Call::Read(_));
    let mut all: Vec<Operation> = operations.iter().filter(useful).copied().collect();
    all.sort_by_key(|op| op.began);
    let answered = all.iter().filter(|op| op.ended.is_some()).count();
    let mut search = Search {
        all: &all,
        seen: BTreeSet::new(),
    };
    let mut best = 0;
    let mut pending = vec![(Done::new(all.len()), None)];
    while let Some((done, value)) = pending.pop() {
        if search.seen.len() > states_max {
            return Answer::GaveUp;
        }
        let explained = all.iter().enumerate();
        let explained = explained.filter(|(i, op)| op.ended.is_some() && done.holds(*i));
        let explained = explained.count();
        best = best.max(explained);
        if explained == answered {
            return Answer::Linearizable;
        }
        // The last one pushed is tried first: calls in the order in which they began.
        let mut next = search.next(&done, value);
        next.reverse();
        pending.extend(next);
    }
    Answer::Impossible {
        explained: best,
        answered,
    }
}

/// A set of calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Done(Vec<u64>);

impl Done {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)])
    }

    fn holds(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn with(&self, index: usize) -> Self {
        let mut more = self.clone();
        if let Some(word) = more.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
        more
    }
}

struct Search<'a> {
    all: &'a [Operation],
    seen: BTreeSet<(Done, Option<i64>)>,
}

impl Search<'_> {
    /// What may take effect next: a call that began before every pending one was answered.
    fn next(&mut self, done: &Done, value: Option<i64>) -> Vec<(Done, Option<i64>)> {
        let open = self.all.iter().enumerate().filter(|(i, _)| !done.holds(*i));
        let first_end = open.clone().filter_map(|(_, op)| op.ended).min();
        let first_end = first_end.unwrap_or(Duration::MAX);
        let mut next = Vec::new();
        for (index, op) in open.take_while(|(_, op)| op.began <= first_end) {
            if let Some(after) = effects(op, value) {
                let state = (done.with(index), after);
                if self.seen.insert(state.clone()) {
                    next.push(state);
                }
            }
        }
        next
    }
}

/// The values after the call, if its answer fits to the value before.
fn effects(op: &Operation, value: Option<i64>) -> Option<Option<i64>> {
    match op.call {
        Call::Read(seen) => (seen == value).then_some(value),
        Call::Write(to) => Some(Some(to)),
        Call::Cas { from, to, swapped } => {
            let fits = value == Some(from);
            if op.ended.is_some() && swapped != fits {
                return None;
            }
            Some(if fits { Some(to) } else { value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(call: Call, began: u64, ended: u64) -> Operation {
        Operation {
            call,
            began: Duration::from_millis(began),
            ended: Some(Duration::from_millis(ended)),
            timeline: 1,
        }
    }

    fn open(call: Call, began: u64) -> Operation {
        Operation {
            ended: None,
            ..op(call, began, began)
        }
    }

    fn cas(from: i64, to: i64, swapped: bool) -> Call {
        Call::Cas { from, to, swapped }
    }

    fn impossible(answer: &Answer) -> bool {
        matches!(answer, Answer::Impossible { .. })
    }

    #[test]
    fn overlapping_calls_may_come_in_either_order() {
        let history = [
            op(Call::Write(1), 0, 10),
            op(Call::Write(2), 0, 10),
            op(Call::Read(Some(1)), 11, 12),
            op(cas(1, 3, true), 13, 14),
            op(cas(1, 4, false), 15, 16),
            op(Call::Read(Some(3)), 17, 18),
        ];
        assert_eq!(check(&history), Answer::Linearizable);
    }

    #[test]
    fn a_stale_read_is_impossible() {
        let history = [
            op(Call::Write(1), 0, 1),
            op(Call::Write(2), 2, 3),
            op(Call::Read(Some(1)), 4, 5),
        ];
        let expected = Answer::Impossible {
            explained: 2,
            answered: 3,
        };
        assert_eq!(check(&history), expected);
    }

    #[test]
    fn an_acknowledged_write_that_vanishes_is_impossible() {
        let history = [op(Call::Write(1), 0, 1), op(Call::Read(None), 2, 3)];
        assert!(impossible(&check(&history)));
    }

    #[test]
    fn a_value_read_once_cannot_be_gone_for_the_next_reader() {
        let history = [
            op(Call::Write(1), 0, 1),
            open(Call::Write(2), 2),
            op(Call::Read(Some(2)), 3, 4),
            op(Call::Read(Some(1)), 5, 6),
        ];
        assert!(impossible(&check(&history)));
    }

    #[test]
    fn a_call_without_answer_may_take_effect_late_or_never() {
        let late = [
            op(Call::Write(1), 0, 1),
            open(Call::Write(2), 2),
            op(Call::Read(Some(1)), 3, 4),
            op(Call::Read(Some(2)), 5, 6),
        ];
        assert_eq!(check(&late), Answer::Linearizable);
        assert_eq!(check(&late[..3]), Answer::Linearizable);
        let unknown_cas = [
            op(Call::Write(1), 0, 1),
            open(cas(1, 2, false), 2),
            op(Call::Read(Some(2)), 5, 6),
        ];
        assert_eq!(check(&unknown_cas), Answer::Linearizable);
    }

    #[test]
    fn two_winners_of_one_swap_are_impossible() {
        let history = [
            op(Call::Write(1), 0, 1),
            op(cas(1, 2, true), 2, 9),
            op(cas(1, 3, true), 2, 9),
        ];
        assert!(impossible(&check(&history)));
    }

    #[test]
    fn a_search_that_is_too_large_says_so() {
        let mut history: Vec<_> = (0..40).map(|i| open(Call::Write(i), 0)).collect();
        history.push(op(Call::Read(Some(99)), 1, 2));
        assert_eq!(check_bounded(&history, 1000), Answer::GaveUp);
    }

    #[test]
    fn three_hundred_calls_of_three_clients_are_checked_at_once() {
        let mut history = Vec::new();
        for round in 0..100 {
            let at = round * 10;
            let value = i64::try_from(round).expect("small");
            history.push(op(Call::Write(value), at, at + 8));
            history.push(op(Call::Read(Some(value)), at + 2, at + 9));
            history.push(op(cas(value, value + 1000, false), at, at + 3));
        }
        assert_eq!(check(&history), Answer::Linearizable);
    }
}
