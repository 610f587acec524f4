//! Bad histories, each of which must be seen for what it is, and good ones beside them.

use super::*;

fn append(key: i64, value: i64) -> Op {
    Op::Append { key, value }
}

fn read(key: i64, list: &[i64]) -> Op {
    let list = list.to_vec();
    Op::Read { key, list }
}

fn txn(at: u64, ops: &[Op]) -> Txn {
    Txn {
        outcome: Outcome::Committed,
        ops: ops.to_vec(),
        began: Duration::from_millis(at),
        ended: Duration::from_millis(at + 5),
        timeline: 1,
    }
}

fn with(outcome: Outcome, mut txn: Txn) -> Txn {
    txn.outcome = outcome;
    txn
}

fn last(lists: &[(i64, &[i64])]) -> BTreeMap<i64, Vec<i64>> {
    let lists = lists.iter();
    lists.map(|(key, list)| (*key, list.to_vec())).collect()
}

fn found(txns: &[Txn], lists: &[(i64, &[i64])], isolation: Isolation) -> Vec<Anomaly> {
    check(txns, &last(lists), isolation).anomalies
}

fn kinds(txns: &[Txn], lists: &[(i64, &[i64])], isolation: Isolation) -> Vec<CycleKind> {
    let found = found(txns, lists, isolation).into_iter();
    found
        .map(|anomaly| match anomaly {
            Anomaly::Cycle(cycle) => cycle.kind,
            other => panic!("not a cycle: {other}"),
        })
        .collect()
}

#[test]
fn a_good_history_shows_nothing() {
    let history = [
        txn(0, &[append(1, 10), read(1, &[10])]),
        txn(10, &[read(1, &[10]), append(1, 11), read(1, &[10, 11])]),
        with(Outcome::Failed, txn(20, &[append(1, 12)])),
        with(Outcome::Unknown, txn(30, &[append(1, 13)])),
        with(Outcome::Unknown, txn(35, &[append(1, 14)])),
        txn(40, &[read(1, &[10, 11, 14]), read(2, &[])]),
    ];
    let findings = check(
        &history,
        &last(&[(1, &[10, 11, 14])]),
        Isolation::Serializable,
    );
    assert_eq!(findings.anomalies, []);
    assert_eq!(findings.stale, []);
    assert_eq!(findings.committed, 3);
}

#[test]
fn a_committed_append_that_is_gone_is_lost_and_one_of_unknown_outcome_is_not() {
    let history = [
        txn(0, &[append(1, 10)]),
        with(Outcome::Unknown, txn(10, &[append(1, 11)])),
    ];
    let lost = Anomaly::Lost {
        key: 1,
        value: 10,
        txn: 0,
    };
    assert_eq!(found(&history, &[], Isolation::RepeatableRead), [lost]);
}

#[test]
fn a_value_that_was_seen_and_is_gone_makes_two_histories() {
    let history = [
        with(Outcome::Unknown, txn(0, &[append(1, 10)])),
        txn(1, &[read(1, &[10])]),
        txn(9, &[append(1, 11)]),
    ];
    let forked = Anomaly::Forked {
        key: 1,
        txns: [1, 3],
    };
    assert_eq!(
        found(&history, &[(1, &[11])], Isolation::RepeatableRead),
        [forked]
    );
}

#[test]
fn doubled_and_invented_values_are_seen() {
    let history = [txn(0, &[append(1, 10)])];
    let doubled = Anomaly::Doubled { key: 1, value: 10 };
    let invented = Anomaly::Invented { key: 1, value: 99 };
    let all = found(&history, &[(1, &[10, 10, 99])], Isolation::RepeatableRead);
    assert_eq!(all, [doubled, invented]);
}

#[test]
fn reads_of_rolled_back_and_of_half_done_work_are_seen() {
    let history = [
        with(Outcome::Failed, txn(0, &[append(1, 10)])),
        txn(5, &[read(1, &[10])]),
    ];
    let aborted = Anomaly::Aborted { txn: 1, writer: 0 };
    let seen = found(&history, &[(1, &[10])], Isolation::RepeatableRead);
    assert!(seen.contains(&aborted), "{seen:?}");

    let history = [
        txn(0, &[append(1, 10), append(1, 11)]),
        txn(5, &[read(1, &[10])]),
    ];
    let intermediate = Anomaly::Intermediate { txn: 1, writer: 0 };
    let seen = found(&history, &[(1, &[10, 11])], Isolation::RepeatableRead);
    assert!(seen.contains(&intermediate), "{seen:?}");
}

#[test]
fn a_transaction_that_does_not_see_itself_is_seen() {
    let internal = [Anomaly::Internal { txn: 0 }];
    let own = [txn(0, &[append(1, 10), read(1, &[])])];
    assert_eq!(
        found(&own, &[(1, &[10])], Isolation::RepeatableRead),
        internal
    );
    let moved = [
        txn(0, &[read(1, &[]), read(1, &[10])]),
        txn(0, &[append(1, 10)]),
    ];
    assert_eq!(
        found(&moved, &[(1, &[10])], Isolation::RepeatableRead),
        internal
    );
}

#[test]
fn cycles_are_seen_and_classified() {
    let g0 = [
        txn(0, &[append(1, 10), append(2, 20)]),
        txn(0, &[append(1, 11), append(2, 21)]),
    ];
    let crossed: [(i64, &[i64]); 2] = [(1, &[10, 11]), (2, &[21, 20])];
    assert_eq!(
        kinds(&g0, &crossed, Isolation::RepeatableRead),
        [CycleKind::G0]
    );

    let g1c = [
        txn(0, &[append(1, 10), read(2, &[20])]),
        txn(0, &[append(2, 20), read(1, &[10])]),
    ];
    let both: [(i64, &[i64]); 2] = [(1, &[10]), (2, &[20])];
    assert_eq!(
        kinds(&g1c, &both, Isolation::RepeatableRead),
        [CycleKind::G1c]
    );

    // Half of the second transaction is seen.
    let fractured = [
        txn(0, &[append(1, 10), append(2, 20)]),
        txn(0, &[read(1, &[10]), read(2, &[])]),
    ];
    assert_eq!(
        kinds(&fractured, &both, Isolation::RepeatableRead),
        [CycleKind::GSingle]
    );

    // Lost update: both read the same and both wrote.
    let lost = [
        txn(0, &[read(1, &[]), append(1, 10)]),
        txn(0, &[read(1, &[]), append(1, 11)]),
    ];
    assert_eq!(
        kinds(&lost, &[(1, &[10, 11])], Isolation::RepeatableRead),
        [CycleKind::GSingle]
    );
}

#[test]
fn write_skew_is_forbidden_only_to_serializable() {
    let skew = [
        txn(0, &[read(1, &[]), append(2, 20)]),
        txn(0, &[read(2, &[]), append(1, 10)]),
    ];
    let both: [(i64, &[i64]); 2] = [(1, &[10]), (2, &[20])];
    assert_eq!(kinds(&skew, &both, Isolation::RepeatableRead), []);
    assert_eq!(
        kinds(&skew, &both, Isolation::Serializable),
        [CycleKind::G2Item]
    );
}

#[test]
fn a_read_that_lacks_what_was_acknowledged_before_is_stale() {
    let history = [
        txn(0, &[append(1, 10)]),
        txn(10, &[append(1, 11)]),
        // Overlaps with the append: either answer is right.
        txn(12, &[read(1, &[10])]),
        txn(20, &[read(1, &[10])]),
    ];
    let findings = check(
        &history,
        &last(&[(1, &[10, 11])]),
        Isolation::RepeatableRead,
    );
    assert_eq!(findings.anomalies, []);
    let stale: Vec<usize> = findings.stale.iter().map(|stale| stale.txn).collect();
    assert_eq!(stale, [3]);
}
