use super::*;
use crate::core::sync::world::{World, world};
use serde_json::json;
use std::collections::{BTreeSet, HashMap, HashSet};

fn names(list: &str) -> Names {
    list.chars().map(String::from).collect()
}

/// `V q S n A c w`, names as single letters and `-` for none.
fn state(text: &str) -> QuorumState {
    let words: Vec<&str> = text.split_whitespace().collect();
    let set = |i: usize| names(words[i].trim_matches('-'));
    let number = |i: usize| words[i].parse().expect("a number");
    QuorumState {
        voters: set(0),
        quorum: number(1),
        names: set(2),
        count: number(3),
        active: set(4),
        confirmed: number(5),
        wanted: number(6),
    }
}

fn show(change: &Change) -> String {
    let list = |names: &Names| names.iter().cloned().collect::<String>();
    match change {
        Change::Names { count, names } => format!("S{count}({})", list(names)),
        Change::Key { quorum, voters } => format!("K{quorum}({})", list(voters)),
    }
}

/// All changes in a row, as if nothing else happened meanwhile.
fn plan(state: &QuorumState) -> Vec<Change> {
    let mut now = state.clone();
    let mut changes = Vec::new();
    while let Some(change) = next_change(&now) {
        now.apply(&change);
        changes.push(change);
        assert!(changes.len() < 30, "no end from {state:?}: {changes:?}");
    }
    changes
}

fn check(text: &str, expected: &str) {
    let shown: Vec<String> = plan(&state(text)).iter().map(show).collect();
    assert_eq!(shown.join(" "), expected, "{text}");
}

#[test]
fn changes_follow_the_published_vectors() {
    check("- 0 - 0 BC 0 1", "S1(BC)");
    check("- 0 BC 1 BC 1 1", "K1(BC)");
    check("BC 1 BC 1 BCD 2 1", "K2(BCD) S1(BCD)");
    check("BC 1 BC 1 B 1 1", "S1(B) K0(B)");
    check("BC 1 BC 1 - 0 1", "K0() S0()");
    check("BC 1 BC 1 BC 2 2", "S2(BC) K0(BC)");
    check("BC 0 BC 2 BC 2 1", "K1(BC) S1(BC)");
    check("BC 0 BC 2 B 1 2", "K0(B) S1(B)");
    check("BCD 1 BCD 2 BD 2 2", "S2(BD) K0(BD)");
    check("AC 1 AC 1 C 1 1", "S1(C) K0(C)");
    check("BCD 2 BC 1 BCD 2 1", "S1(BCD)");
    check("B 0 C 1 C 1 1", "K0(C)");
}

#[test]
fn a_removed_voter_takes_its_share_of_the_promise_along() {
    // One commit may be on C alone, and B has proved nothing.
    check("BC 1 BC 1 B 0 1", "S1(B)");
    check("BCD 1 BCD 2 B 0 2", "S2(BD) K1(BD) S1(B)");
}

#[test]
fn an_addition_keeps_what_the_key_promises_without_new_proof() {
    check("B 0 B 1 BC 0 2", "S2(BC) K1(BC)");
    check("BC 1 BC 1 BCD 0 1", "K2(BCD) S1(BCD)");
}

/// Every state that can be told apart by how many nodes are in which of the sets.
fn all_states(nodes: usize, mut visit: impl FnMut(QuorumState)) {
    let pool: Vec<String> = "BCDEFG".chars().take(nodes).map(String::from).collect();
    let mut classes = vec![0_u8; nodes];
    loop {
        let within = |bit: u8| -> Names {
            pool.iter()
                .zip(&classes)
                .filter(|(_, c)| **c & bit != 0)
                .map(|(n, _)| n.clone())
                .collect()
        };
        let (voters, listed, active) = (within(1), within(2), within(4));
        let serving = size(&(&listed & &active));
        for quorum in 0..=size(&voters) {
            for count in u32::from(!listed.is_empty())..=size(&listed) {
                for confirmed in 0..=serving {
                    for wanted in 1..=u32::try_from(nodes).expect("few") {
                        visit(QuorumState {
                            voters: voters.clone(),
                            quorum,
                            names: listed.clone(),
                            count,
                            active: active.clone(),
                            confirmed,
                            wanted,
                        });
                    }
                }
            }
        }
        // The next non-decreasing row of classes: nodes of one class are alike.
        let Some(at) = classes.iter().rposition(|c| *c < 7) else {
            return;
        };
        let next = classes[at] + 1;
        classes[at..].fill(next);
    }
}

#[test]
fn every_change_from_every_sound_state_is_sound() {
    for nodes in 1..=5 {
        all_states(nodes, |state| {
            if !state.is_sound() {
                return;
            }
            if let Some(change) = next_change(&state) {
                let mut after = state.clone();
                after.apply(&change);
                assert!(after.is_sound(), "{state:?} {change:?}");
                assert_ne!(after, state, "{change:?} changes nothing");
            }
        });
    }
}

#[test]
fn a_broken_state_is_repaired_by_the_first_change() {
    for nodes in 1..=4 {
        all_states(nodes, |state| {
            if !state.is_sound() {
                let mut after = state.clone();
                after.apply(&next_change(&state).expect("a repair"));
                assert!(after.is_sound(), "{state:?}");
            }
        });
    }
}

#[test]
fn sequences_end_where_they_should_from_every_state() {
    for nodes in 1..=4 {
        all_states(nodes, |state| {
            // Every standby proves itself between two changes.
            let mut now = state.clone();
            now.confirmed = size(&(&now.names & &now.active));
            let mut left = 30;
            while let Some(change) = next_change(&now) {
                now.apply(&change);
                now.confirmed = size(&(&now.names & &now.active));
                left -= 1;
                assert_ne!(left, 0, "no end from {state:?}");
            }
            let n = now.wanted.min(size(&now.active));
            assert_eq!(
                (&now.names, &now.voters),
                (&now.active, &now.active),
                "{state:?}"
            );
            assert_eq!(
                (now.count, now.quorum),
                (n, size(&now.active) - n),
                "{state:?}"
            );
            // Nobody proves anything: it must end all the same.
            plan(&state);
        });
    }
}

/// A model of what is on which standby, to check the claim itself rather than the arithmetic.
///
/// A commit is a set of standbys that hold it. It is acknowledged once it is on any `n` of `S` that
/// stream, and the worst case is that no other standby gets it. A standby proves itself by holding all
/// commits from before the last change of the names. At every moment, whoever collects `q` votes
/// besides its own must find every acknowledged commit among the voters; and who does, may take over.
///
/// Sets of nodes are bits of a number; so are sets of such sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Model {
    voters: u8,
    quorum: u32,
    names: u8,
    count: u32,
    active: u8,
    proved: u8,
    wanted: u32,
    /// Holders of commits from before the last change of names, and of those since.
    before: u8,
    since: u8,
}

const NODES: u8 = 3;

fn members(sets: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |set| sets & (1 << set) != 0)
}

/// Only the smallest sets matter.
fn minimal(sets: u8) -> u8 {
    let covered = |set: u8| members(sets).any(|other| other != set && other & set == other);
    members(sets)
        .filter(|set| !covered(*set))
        .map(|set| 1 << set)
        .sum()
}

/// All commits reach `node`.
fn spread(sets: u8, node: u8) -> u8 {
    minimal(members(sets).fold(0, |all, set| all | 1 << (set | node)))
}

fn letters(mask: u8) -> Names {
    (0..NODES)
        .filter(|i| mask & (1 << i) != 0)
        .map(|i| char::from(b'B' + i).to_string())
        .collect()
}

fn mask(names: &Names) -> u8 {
    names.iter().map(|n| 1 << (n.as_bytes()[0] - b'B')).sum()
}

type Known = HashMap<(u8, u32, u8, u32, u8, u32, u32), Option<Change>>;

impl Model {
    fn safe(&self) -> bool {
        let missing = |holders: u8| (self.voters & !holders).count_ones() <= self.quorum;
        self.voters == 0 || members(self.before | self.since).all(missing)
    }

    fn step(self, known: &mut Known) -> Option<Self> {
        let Self {
            voters,
            quorum,
            names,
            count,
            active,
            wanted,
            ..
        } = self;
        let confirmed = (self.proved & names & active).count_ones();
        let change = known
            .entry((voters, quorum, names, count, active, confirmed, wanted))
            .or_insert_with(|| {
                next_change(&QuorumState {
                    voters: letters(voters),
                    quorum,
                    names: letters(names),
                    count,
                    active: letters(active),
                    confirmed,
                    wanted,
                })
            });
        Some(match change.clone()? {
            Change::Key { quorum, voters } => Self {
                quorum,
                voters: mask(&voters),
                ..self
            },
            Change::Names { count, names } => Self {
                count,
                names: mask(&names),
                proved: 0,
                before: minimal(self.before | self.since),
                since: 0,
                ..self
            },
        })
    }

    /// `node` becomes the primary. From now on its bit means the old primary, which holds everything.
    fn takeover(self, node: u8) -> Option<Self> {
        let votes = self.voters.count_ones() - u32::from(self.voters & node != 0);
        let needed = self.quorum + u32::from(self.voters & node == 0);
        let voters = self.voters | node;
        let count = voters.count_ones().saturating_sub(self.quorum);
        (self.voters != 0 && votes >= needed && count > 0).then(|| Self {
            voters,
            names: voters,
            count,
            active: 0,
            proved: 0,
            before: spread(self.before | self.since, node),
            since: 0,
            ..self
        })
    }

    fn moves(self, known: &mut Known) -> Vec<Self> {
        let mut moves: Vec<Self> = self.step(known).into_iter().collect();
        for holders in 0..1_u8 << NODES {
            let streaming = holders & self.names & self.active == holders;
            if streaming && holders.count_ones() == self.count {
                moves.push(Self {
                    since: minimal(self.since | 1 << holders),
                    ..self
                });
            }
        }
        for node in (0..NODES).map(|i| 1 << i) {
            moves.push(Self {
                active: self.active ^ node,
                ..self
            });
            moves.extend(self.takeover(node));
            if self.active & node != 0 && self.proved & node == 0 {
                let proved = self.proved | node;
                moves.push(Self {
                    proved,
                    before: spread(self.before, node),
                    ..self
                });
            }
        }
        moves.extend((1..=2).map(|wanted| Self { wanted, ..self }));
        moves
    }
}

#[test]
fn no_acknowledged_commit_is_missed_by_an_election() {
    let start = Model {
        voters: 0,
        quorum: 0,
        names: 0,
        count: 0,
        active: 0,
        proved: 0,
        wanted: 1,
        before: 0,
        since: 0,
    };
    let mut known = Known::new();
    let mut seen = HashSet::from([start]);
    let mut open = vec![start];
    let mut quorums = BTreeSet::new();
    while let Some(model) = open.pop() {
        assert!(model.safe(), "{model:?}");
        if model.voters != 0 {
            quorums.insert(model.quorum);
        }
        for next in model.moves(&mut known) {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    assert!(
        quorums.contains(&0) && quorums.contains(&1),
        "the model must hold elections"
    );
    assert!(seen.len() > 10_000, "{} states", seen.len());
}

fn quorum_world(standbys: &[&str], strict: bool) -> World {
    world(
        json!({"synchronous_mode": "quorum", "synchronous_mode_strict": strict}),
        standbys,
    )
}

fn key(standbys: &[&str], quorum: u32) -> SyncStep {
    write_key(standbys.iter().map(|n| (*n).to_owned()).collect(), quorum)
}

fn set(text: &str) -> SyncStep {
    SyncStep::SetNames(text.into())
}

#[test]
fn first_standbys_are_waited_for_then_listed() {
    let mut w = quorum_world(&["a", "b"], false);
    let steps = w.run();
    assert_eq!(steps[..2], [key(&[], 0), set("ANY 1 (a,b)")]);
    assert_eq!(steps.last(), Some(&key(&["a", "b"], 1)));
    assert_eq!(w.step(), SyncStep::Settled);
}

#[test]
fn a_lost_standby_leaves_and_comes_back() {
    let mut w = quorum_world(&["a", "b"], false);
    w.run();
    w.lose("b");
    assert_eq!(w.run().first(), Some(&set("ANY 1 (a)")));
    assert_eq!(
        (w.view.sync.standbys.join(","), w.view.sync.quorum),
        ("a".into(), 0)
    );
    w.connect("b");
    w.run();
    assert_eq!(
        (w.view.sync.standbys.join(","), w.view.sync.quorum),
        ("a,b".into(), 1)
    );
    w.lose("a");
    w.lose("b");
    assert_eq!(w.run(), [key(&[], 0), set("")]);
}

#[test]
fn strict_mode_holds_the_last_names() {
    let mut w = quorum_world(&["a", "b"], true);
    w.run();
    w.lose("a");
    w.run();
    w.lose("b");
    assert_eq!(w.step(), SyncStep::Wait(SyncWait::NoStandby));
    assert_eq!(w.written, "ANY 1 (b)");
    w.connect("a");
    let steps = w.run();
    assert_eq!(steps[..2], [key(&[], 0), set("ANY 1 (a)")]);
    assert_eq!(w.view.sync.standbys, ["a"]);
    let mut alone = quorum_world(&[], true);
    assert_eq!(alone.run(), [key(&[], 0), set(&placeholder())]);
}

#[test]
fn the_first_form_is_turned_into_any() {
    let mut w = quorum_world(&["a"], false);
    w.key(&["a"], 0);
    w.names("a");
    assert_eq!(w.run(), [set("ANY 1 (a)")]);
}

#[test]
fn mode_on_becomes_quorum() {
    let mut w = quorum_world(&["a", "b"], false);
    w.key(&["a", "b"], 0);
    w.names("2 (a,b)");
    w.run();
    assert_eq!(w.written, "ANY 1 (a,b)");
    assert_eq!(w.view.sync.quorum, 1);
}

#[test]
fn a_promise_under_the_placeholder_is_kept() {
    let mut w = quorum_world(&["a"], true);
    w.key(&["a", "b"], 1);
    w.names(&placeholder());
    assert_eq!(w.step(), set("ANY 1 (a,b)"));
}

#[test]
fn members_that_may_not_be_promoted_fill_up_only() {
    let mut w = quorum_world(&["a", "b"], false);
    w.member("b", json!({"nofailover": true}));
    w.run();
    assert_eq!(w.written, "ANY 1 (a)");
    w.config.synchronous_node_count = 2;
    w.run();
    assert_eq!(w.written, "ANY 2 (a,b)");
}

#[test]
fn a_new_primary_takes_the_key_and_gives_standbys_time_to_come_back() {
    let mut w = quorum_world(&[], false);
    w.member("o", json!({}));
    w.member("b", json!({}));
    w.key(&["p", "b"], 1);
    w.view.sync.leader = Some("o".into());
    let me = "p".into();
    let before = pre_promotion(&w.view, &me, false);
    assert_eq!(before, "ANY 1 (b,o)");
    w.names(&before);
    let step = w.step();
    assert_eq!(step, key(&["b", "o"], 1));
    w.apply(&step);
    assert_eq!(w.step(), SyncStep::Wait(SyncWait::NoStandby));
    let mut alone = w.clone();
    alone.pass(RECONNECT_TIME);
    assert_eq!(alone.run(), [key(&[], 0), set("")]);
    w.connect("b");
    assert_eq!(w.run().first(), Some(&set("ANY 1 (b)")));
    assert_eq!(w.view.sync.standbys, ["b"]);
}

#[test]
fn a_new_primary_without_names_sets_them_before_it_takes_the_key() {
    let mut w = quorum_world(&["b"], false);
    w.key(&["p", "b"], 1);
    w.view.sync.leader = Some("o".into());
    assert_eq!(w.step(), set("ANY 1 (b,o)"));
}

#[test]
fn pre_promotion_counts_the_rest() {
    let mut w = quorum_world(&["b", "c"], false);
    let me = "p".into();
    assert_eq!(pre_promotion(&w.view, &me, false), "");
    assert_eq!(pre_promotion(&w.view, &me, true), placeholder());
    w.key(&["b", "c"], 1);
    w.view.sync.leader = Some("o".into());
    assert_eq!(
        pre_promotion(&w.view, &me, false),
        "ANY 2 (b,c,o)",
        "not among them"
    );
    w.key(&["b", "p"], 2);
    w.view.sync.leader = Some("o".into());
    assert_eq!(pre_promotion(&w.view, &me, false), "");
    assert_eq!(pre_promotion(&w.view, &me, true), "ANY 1 (b,o)");
}
