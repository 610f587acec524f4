//! What can happen next, and what it does.

use super::super::etcd::{At, Claimed, Promise, Sent, Val};
use super::rules::{self, Step};
use super::{Act, Mutation, Names, Node, State, Votes, Wal};

pub fn offer(model: &Votes, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = state.node(n);
    if node.primary.is_some() {
        primary(model, state, n, actions);
    } else {
        standby(model, state, n, actions);
    }
    if node.fence.is_some() {
        actions.extend([Act::CommitFence(n), Act::LoseFence(n)]);
    }
    if node.stray.is_some() {
        actions.push(Act::CommitStray(n));
    }
    if node.claim.is_some() {
        actions.push(Act::CommitClaim(n));
    }
    if node.sync.is_some() {
        actions.push(Act::CommitSync(n));
        if state.losses > 0 {
            actions.push(Act::LoseSync(n));
        }
    }
    if node.late_sync.is_some() {
        actions.push(Act::CommitLateSync(n));
    }
    if state.restarts > 0 {
        actions.push(Act::Restart(n));
    }
}

fn primary(model: &Votes, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = state.node(n);
    if state.writes > 0 {
        actions.push(Act::Write(n));
    }
    let taking = state.store.sync().is_some_and(|key| key.leader != n);
    let due = !model.on && node.sync.is_none() && (taking || state.changes > 0);
    if due && next_step(model, state, n).is_some() {
        actions.push(Act::ChangeSync(n));
    }
    if node.former.is_some() {
        actions.push(Act::NamesRead(n));
    }
}

/// The step of a primary that believes it leads. One of an older epoch writes in vain.
fn next_step(model: &Votes, state: &State, n: u8) -> Option<Step> {
    let node = state.node(n);
    if node.primary != Some(state.record().epoch) {
        return None;
    }
    let streaming = |b: &u8| state.node(*b).from == Some(n);
    let active = (0..3).filter(streaming).fold(0, |mask, b| mask | 1 << b);
    let proved = |b: &u8| {
        let b = state.node(*b);
        node.former.is_none() && rules::lsn(&b.wal) >= node.changed_at
    };
    let counted = (0..3).filter(|b| active & node.names.of & 1 << b != 0);
    let confirmed = u8::try_from(counted.filter(proved).count()).unwrap();
    rules::step(model, state, n, active, confirmed)
}

fn standby(model: &Votes, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = state.node(n);
    let epoch = state.record().epoch;
    match node.from {
        Some(p) => {
            let source = &state.node(p).wal;
            if source.len() > node.wal.len() && source.starts_with(&node.wal) {
                actions.push(Act::Receive(n));
            }
            if state.changes > 0 {
                actions.push(Act::Break(n));
            }
        }
        None => streams(model, state, n, actions),
    }
    if node.from == Some(state.record().owner) && node.wal_epoch < epoch {
        actions.push(Act::NoteEpoch(n));
    }
    let promised = node.promised == Some(epoch);
    if model.votes && !promised && epoch < model.epochs && rules::may_vote(model, state, n) {
        actions.push(Act::Promise(n));
    }
    let published = state.store.promise(n).is_some_and(|p| p.epoch == epoch);
    if promised && !published && node.fence.is_none() {
        actions.push(Act::Publish(n));
    }
    let over = node.promised.is_some_and(|promised| promised < epoch);
    if node.fence.is_none() && (over || (promised && state.withdrawals > 0)) {
        actions.push(Act::Withdraw(n));
    }
    if node.claim.is_none() && node.won.is_none() && epoch < model.epochs {
        claims(model, state, n, promised && published, actions);
    }
    if node.won.is_some() {
        actions.push(Act::Promote(n));
    }
}

fn streams(_: &Votes, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = state.node(n);
    if node.promised.is_some() || node.won.is_some() {
        return;
    }
    for p in (0..3).filter(|p| *p != n) {
        let source = state.node(p);
        let leads = state.record().owner == p;
        if source.primary >= Some(node.known) && (leads || source.wal.starts_with(&node.wal)) {
            actions.push(Act::Stream(n, p));
        }
    }
}

fn claims(model: &Votes, state: &State, n: u8, voter: bool, actions: &mut Vec<Act>) {
    if voter {
        let first = |skip: u8| rules::takeover_set(model, state, skip);
        if first(0).first() == Some(&n) {
            actions.push(Act::Claim(n, 0));
        } else if first(1).first() == Some(&n) {
            actions.push(Act::Claim(n, 1));
        }
    }
    let owner = state.record().owner;
    let again = owner == n && !model.again;
    if state.leases == 0 || again || state.node(owner).primary.is_some() {
        return;
    }
    // Who answered changes nothing afterwards, so one set that suffices is enough.
    let sufficient = (0..8_u8)
        .filter(|answering| answering & 1 << n == 0)
        .find(|answering| rules::stands(model, state, n, *answering));
    actions.extend(sufficient.map(|answering| Act::LeaseClaim(n, answering)));
}

/// `None` when nothing changes.
pub fn carry_out(model: &Votes, state: &mut State, action: Act) -> Option<()> {
    match action {
        Act::Write(n) => {
            state.writes -= 1;
            let node = state.node_mut(n);
            node.wal.push(node.primary?);
        }
        Act::Receive(n) => {
            let from = state.node(n).from?;
            let next = state.node(from).wal[state.node(n).wal.len()];
            state.node_mut(n).wal.push(next);
        }
        Act::Stream(n, p) => stream(state, n, p),
        Act::Break(n) => state.node_mut(n).from = None,
        Act::NoteEpoch(n) => {
            // `note_epoch`: only on the branch of the leader.
            let record = state.record();
            let source = state.node(record.owner);
            let leads = source.primary == Some(record.epoch);
            let same = rules::timeline(&state.node(n).wal) == record.epoch;
            if !leads || !same {
                return None;
            }
            let node = state.node_mut(n);
            (node.wal_epoch, node.known) = (record.epoch, record.epoch);
        }
        Act::Promise(n) => promise(model, state, n),
        Act::Publish(n) => {
            let epoch = state.record().epoch;
            let position = rules::position(state.node(n), epoch);
            let sent = rules::fence(model, state, n, Some(position));
            state.node_mut(n).fence = Some((false, sent));
        }
        Act::Withdraw(n) => {
            let epoch = state.record().epoch;
            state.withdrawals -= u8::from(state.node(n).promised == Some(epoch));
            let sent = rules::fence(model, state, n, None);
            let node = state.node_mut(n);
            node.fence = Some((true, sent));
            node.known = epoch;
            if model.is(Mutation::StreamBeforeWithdrawal) {
                node.promised = None;
            }
        }
        Act::Claim(n, skip) => {
            let set = rules::takeover_set(model, state, skip);
            let sent = rules::claim(model, state, n, &set)?;
            let epoch = state.record().epoch + 1;
            state.node_mut(n).claim = Some((epoch, sent));
        }
        Act::LeaseClaim(n, _) => {
            state.leases -= 1;
            let sent = rules::claim(model, state, n, &[])?;
            let epoch = state.record().epoch + 1;
            state.node_mut(n).claim = Some((epoch, sent));
            // The former holder is not writable and cannot become so: its deadline has passed.
            let owner = state.record().owner;
            state.node_mut(owner).won = None;
        }
        _ => at_etcd(model, state, action)?,
    }
    Some(())
}

fn at_etcd(model: &Votes, state: &mut State, action: Act) -> Option<()> {
    match action {
        Act::CommitFence(n) => {
            let (withdrawn, sent) = state.node_mut(n).fence.take()?;
            if commit(state, &sent) && withdrawn {
                state.node_mut(n).promised = None;
            }
        }
        Act::LoseFence(n) => {
            let (_, sent) = state.node_mut(n).fence.take()?;
            let node = state.node_mut(n);
            if node.stray.is_none() && !sent.refused {
                node.stray = Some(sent);
            }
        }
        Act::CommitStray(n) => {
            let sent = state.node_mut(n).stray.take()?;
            commit(state, &sent);
        }
        Act::CommitClaim(n) => {
            let (epoch, sent) = state.node_mut(n).claim.take()?;
            if commit(state, &sent) {
                state.node_mut(n).won = Some(epoch);
            }
        }
        Act::Promote(n) => promote(model, state, n)?,
        Act::Restart(n) => {
            state.restarts -= 1;
            restart(model, state.node_mut(n));
            for node in &mut state.nodes {
                node.from = node.from.filter(|p| *p != n);
            }
        }
        Act::ChangeSync(n) => change_sync(model, state, n)?,
        Act::CommitSync(n) => {
            let sent = state.node_mut(n).sync.take()?;
            let committed = commit(state, &sent);
            state.node_mut(n).in_doubt = false;
            if committed && model.is(Mutation::TightenAfterKey) {
                tighten(state, n);
            }
        }
        Act::LoseSync(n) => {
            state.losses -= 1;
            let node = state.node_mut(n);
            node.late_sync = node.sync.take();
            node.in_doubt = true;
        }
        Act::CommitLateSync(n) => {
            let sent = state.node_mut(n).late_sync.take()?;
            commit(state, &sent);
        }
        Act::NamesRead(n) => {
            let node = state.node_mut(n);
            (node.former, node.changed_at) = (None, rules::lsn(&node.wal));
        }
        _ => unreachable!("handled before"),
    }
    Some(())
}

fn commit(state: &mut State, sent: &Sent) -> bool {
    if !sent.holds(&state.store) {
        return false;
    }
    for at in sent.apply(&mut state.store) {
        for node in &mut state.nodes {
            let requests = [
                node.fence.as_mut().map(|(_, sent)| sent),
                node.stray.as_mut(),
                node.claim.as_mut().map(|(_, sent)| sent),
                node.sync.as_mut(),
                node.late_sync.as_mut(),
            ];
            requests.into_iter().flatten().for_each(|r| r.written(at));
        }
    }
    true
}

/// Streams, after a rewind where the leader's WAL is another.
fn stream(state: &mut State, n: u8, p: u8) {
    let source = state.node(p).wal.clone();
    let node = state.node_mut(n);
    let common = source
        .iter()
        .zip(&node.wal)
        .take_while(|(a, b)| a == b)
        .count();
    node.wal.truncate(common);
    node.from = Some(p);
}

/// On disk, the stream cut, and only then is the position read.
fn promise(model: &Votes, state: &mut State, n: u8) {
    let epoch = state.record().epoch;
    let early: Option<Promise> = model
        .is(Mutation::VoteBeforeCut)
        .then(|| rules::position(state.node(n), epoch));
    let sent = early.map(|position| rules::fence(model, state, n, Some(position)));
    let node = state.node_mut(n);
    node.promised = Some(epoch);
    match sent {
        // The stream goes on for a moment.
        Some(sent) => node.fence = Some((false, sent)),
        None => node.from = None,
    }
}

fn promote(model: &Votes, state: &mut State, n: u8) -> Option<()> {
    let epoch = state.node(n).won?;
    let (names, key) = rules::promotion(model, &state.store, n);
    if let Some(key) = key
        && !commit(state, &key)
    {
        return None;
    }
    let ours = state
        .store
        .sync()
        .filter(|key| key.leader == n && !model.on);
    if let Some(key) = ours.filter(|_| !model.is(Mutation::KeyOfEarlierLife)) {
        let again = rules::write_key(model, &state.store, n, key);
        if !commit(state, &again) {
            return None;
        }
    }
    // `/history` was written before, by the holder of the lock.
    let claimed = Claimed {
        timeline: epoch - 1,
        by: n,
    };
    state.store.put(At::History, Val::History(claimed), 0);
    let node = state.node_mut(n);
    node.wal.push(epoch);
    node.changed_at = rules::lsn(&node.wal);
    (node.won, node.primary, node.from) = (None, Some(epoch), None);
    (node.names, node.former, node.wal_epoch) = (names, None, epoch);
    Some(())
}

/// The machine starts again: what is not on disk is gone, and what was sent is not.
fn restart(model: &Votes, node: &mut Node) {
    node.primary = None;
    node.from = None;
    node.won = None;
    (node.former, node.names, node.changed_at) = (None, Names::default(), 0);
    if let Some((_, sent)) = node.fence.take()
        && node.stray.is_none()
    {
        node.stray = Some(sent);
    }
    if model.is(Mutation::PromiseForgotten) {
        node.promised = None;
    }
}

fn change_sync(model: &Votes, state: &mut State, n: u8) -> Option<()> {
    let step = next_step(model, state, n)?;
    let key = state.store.sync()?;
    let doubt = state.node(n).in_doubt && key.leader == n && !model.is(Mutation::NamesInDoubt);
    let step = match step {
        // `sync::unless_in_doubt`
        Step::Names(_) if doubt => Step::Key(key),
        step => step,
    };
    let taking = state.store.sync().is_some_and(|key| key.leader != n);
    state.changes -= u8::from(!taking);
    match step {
        Step::Key(key) => {
            let sent = rules::write_key(model, &state.store, n, key);
            state.node_mut(n).sync = Some(sent);
            if model.is(Mutation::LoosenBeforeKey) {
                // What would follow when the key is known to be written.
                let mut after = state.clone();
                after.store.put(At::Sync, Val::Sync(key), 0);
                if let Some(Step::Names(names)) = next_step(model, &after, n) {
                    set_names(state.node_mut(n), names);
                }
            }
        }
        Step::Names(names) if model.is(Mutation::TightenAfterKey) => {
            // The key that would follow comes first.
            let mut after = state.clone();
            set_names(after.node_mut(n), names);
            after.node_mut(n).former = None;
            let Some(Step::Key(key)) = next_step(model, &after, n) else {
                set_names(state.node_mut(n), names);
                return Some(());
            };
            let sent = rules::write_key(model, &state.store, n, key);
            state.node_mut(n).sync = Some(sent);
        }
        Step::Names(names) => set_names(state.node_mut(n), names),
    }
    Some(())
}

fn tighten(state: &mut State, n: u8) {
    if let Some(key) = state.store.sync() {
        let count = u8::try_from(key.standbys.count_ones()).unwrap() - key.quorum;
        let of = key.standbys;
        set_names(state.node_mut(n), Names { count, of });
    }
}

fn set_names(node: &mut Node, names: Names) {
    if node.names != names {
        node.former = Some(node.names);
        node.names = names;
    }
}

/// Every primary acknowledges what it may, at once: whatever is acknowledged has to be kept for ever, so
/// that is the worst. And equal states get one form.
pub fn settle(state: &mut State) {
    for n in 0..3 {
        let node = state.node(n);
        let Some(epoch) = node.primary else { continue };
        let reach = [Some(node.names), node.former]
            .into_iter()
            .flatten()
            .map(|names| acknowledged(state, &node.wal, names))
            .max()
            .unwrap_or(0);
        let wal = node.wal[..reach].to_vec();
        if wal.last() != Some(&epoch) {
            continue;
        }
        match state.acked.iter_mut().find(|w| w.last() == Some(&epoch)) {
            Some(known) if known.len() < wal.len() => *known = wal,
            Some(_) => {}
            None => state.acked.push(wal),
        }
    }
    state.acked.sort();
    for node in &mut state.nodes {
        let dead = |sent: &Sent| sent.refused;
        node.fence = node.fence.take().filter(|(_, sent)| !dead(sent));
        node.stray = node.stray.take().filter(|sent| !dead(sent));
        node.claim = node.claim.take().filter(|(_, sent)| !dead(sent));
        if node.sync.as_ref().is_some_and(dead) {
            (node.sync, node.in_doubt) = (None, false);
        }
        node.late_sync = node.late_sync.take().filter(|sent| !dead(sent));
    }
}

/// How much of this WAL is on as many of the names as a commit waits for.
fn acknowledged(state: &State, wal: &Wal, names: Names) -> usize {
    let mut flushed: Vec<usize> = (0..3)
        .filter(|b| names.of & 1 << b != 0)
        .map(|b| {
            let has = &state.node(b).wal;
            has.iter().zip(wal).take_while(|(a, b)| a == b).count()
        })
        .collect();
    flushed.sort_by(|a, b| b.cmp(a));
    match names.count {
        0 => wal.len(),
        count => flushed.get(usize::from(count) - 1).copied().unwrap_or(0),
    }
}
