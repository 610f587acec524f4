//! What can happen next, and what it does.

use super::super::etcd::{At, HELD, Sent, Store, Val};
use super::{Act, Failsafe, Mutation, Node, State, TTL, rules};

/// Ticks that a renewal earns.
pub fn earned(model: &Failsafe) -> u8 {
    if model.native { 2 } else { TTL }
}

/// What may happen at one node.
pub fn offer(model: &Failsafe, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = &state.nodes[usize::from(n)];
    if node.claim.is_some() {
        actions.push(Act::Commit(n));
    }
    if node.cut.is_some() {
        actions.push(Act::Back(n));
    } else if n > 0
        && state.claims > 0
        && node.claim.is_none()
        && rules::claim(model, state, n).is_some()
    {
        actions.push(Act::Claim(n));
    }
    if renews(model, state, n) {
        actions.push(Act::Renew(n));
    }
    if rules::asks(model, state, n) {
        actions.push(Act::Ask(n));
    }
    if let Some((_, yes)) = node.asked {
        let peers = (0..model.nodes).filter(|peer| *peer != n);
        let open = peers.filter(|peer| model.listed & !yes & (1 << peer) != 0);
        actions.extend(open.map(|peer| Act::Answer(n, peer)));
        if yes != 0 {
            actions.push(Act::Agreed(n));
        }
    }
    if !node.writable && rules::tenure(model, state, n).is_some() {
        actions.push(Act::Promote(n));
    }
    if n == 1 && state.restarts > 0 && !node.writable {
        actions.push(Act::Restart(n));
    }
}

/// It holds the lock, and reaches etcd.
fn renews(model: &Failsafe, state: &State, n: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    let leads = node.cut.is_none() && rules::tenure(model, state, n).is_some();
    let ours = if model.native {
        let record = state
            .store
            .record()
            .filter(|r| r.owner == n && r.state == HELD);
        record.map(|record| record.epoch) == node.hold.map(|(epoch, _)| epoch)
    } else {
        state.store.lease(At::Leader) == n + 1
    };
    leads && ours
}

pub fn carry_out(model: &Failsafe, state: &mut State, action: Act) {
    match action {
        Act::Tick => pass(state),
        Act::Cut(members) => {
            state.cuts -= 1;
            let store = state.store;
            for (node, n) in state.nodes.iter_mut().zip(0..) {
                if members & (1 << n) != 0 {
                    node.cut = Some(store);
                }
            }
        }
        Act::Back(n) => {
            let node = &mut state.nodes[usize::from(n)];
            (node.cut, node.seen) = (None, 0);
        }
        Act::Renew(n) => renew(model, state, n),
        Act::Expire => {
            state.store.delete(At::Leader);
            written(state, At::Leader);
        }
        Act::Ask(n) => state.nodes[usize::from(n)].asked = Some((0, 0)),
        Act::Answer(n, peer) => {
            if rules::promises(model, state, peer, n) {
                state.nodes[usize::from(peer)].promised = Some(0);
                let asked = &mut state.nodes[usize::from(n)].asked;
                *asked = asked.map(|(age, yes)| (age, yes | 1 << peer));
            } else {
                state.nodes[usize::from(n)].asked = None;
            }
        }
        Act::Agreed(n) => agree(model, state, n),
        Act::Claim(n) => {
            let sent = rules::claim(model, state, n).unwrap();
            state.nodes[usize::from(n)].claim = Some((sent, 0));
        }
        Act::Commit(n) => {
            let (sent, age) = state.nodes[usize::from(n)].claim.take().unwrap();
            commit(model, state, n, &sent, age);
        }
        Act::Promote(n) => {
            let left = rules::tenure(model, state, n).unwrap();
            let node = &mut state.nodes[usize::from(n)];
            (node.guard, node.writable) = (left, true);
        }
        Act::Restart(n) => {
            state.restarts -= 1;
            let node = &mut state.nodes[usize::from(n)];
            (node.began, node.promised, node.agreed) = (0, None, None);
            (node.asked, node.hold, node.claim) = (None, None, None);
        }
    }
}

fn pass(state: &mut State) {
    state.lease = state.lease.saturating_sub(1);
    let older = |age: u8| (age + 1).min(TTL);
    for node in &mut state.nodes {
        (node.seen, node.began) = (older(node.seen), older(node.began));
        node.session = older(node.session);
        node.hold = node.hold.map(|(epoch, age)| (epoch, older(age)));
        node.promised = node.promised.map(older);
        node.agreed = node.agreed.map(older);
        node.asked = node.asked.map(|(age, yes)| (older(age), yes));
        if let Some((_, age)) = &mut node.claim {
            *age = older(*age);
        }
        // The deadline lies in this tick, and so does the fencing.
        node.guard = node.guard.saturating_sub(1);
        node.writable &= node.guard > 0;
    }
}

fn renew(model: &Failsafe, state: &mut State, n: u8) {
    let node = &mut state.nodes[usize::from(n)];
    (node.session, node.guard) = (0, node.guard.max(earned(model)));
    if let Some((_, age)) = &mut node.hold {
        *age = 0;
        written(state, At::Record);
    }
    state.lease = TTL;
}

/// The answers are there: what they are worth, the real rules say.
fn agree(model: &Failsafe, state: &mut State, n: u8) {
    let (age, yes) = state.nodes[usize::from(n)].asked.unwrap();
    let needed = model.listed & !(1 << n);
    let all = yes & needed == needed || model.is(Mutation::MajorityIsEnough);
    let from = if model.is(Mutation::FromTheAnswer) {
        0
    } else {
        age
    };
    let agreed = rules::agreed(model, state, n, from, all);
    let node = &mut state.nodes[usize::from(n)];
    (node.asked, node.agreed) = (None, agreed);
    if let Some(left) = rules::tenure(model, state, n) {
        let node = &mut state.nodes[usize::from(n)];
        node.guard = node.guard.max(left);
    }
}

fn commit(model: &Failsafe, state: &mut State, n: u8, sent: &Sent, age: u8) {
    if !sent.holds(&state.store) {
        return;
    }
    state.claims = state.claims.saturating_sub(1);
    for at in sent.apply(&mut state.store) {
        written(state, at);
    }
    state.lease = TTL;
    let record = state.store.record().filter(|_| model.native);
    let node = &mut state.nodes[usize::from(n)];
    node.hold = record.map(|record| (record.epoch, age));
    node.session = age;
    node.agreed = None;
    if let Some(seen) = &mut node.cut {
        // The answer came before it was cut off.
        *seen = state.store;
    }
}

fn written(state: &mut State, at: At) {
    for node in &mut state.nodes {
        if let Some((sent, _)) = &mut node.claim {
            sent.written(at);
        }
        if at == At::Record {
            node.seen = 0;
        }
    }
}

/// Brings equal states to one form.
pub fn settle(model: &Failsafe, state: &mut State) {
    zero_counter(&mut state.store);
    let store = state.store;
    for (node, n) in state.nodes.iter_mut().zip(0..) {
        settle_node(model, node, n, &store);
    }
}

fn settle_node(model: &Failsafe, node: &mut Node, n: u8, store: &Store) {
    if let Some(seen) = &mut node.cut {
        zero_counter(seen);
    }
    let past = |age: &u8| *age < TTL;
    node.promised = node.promised.filter(past);
    node.agreed = node.agreed.filter(past);
    node.asked = node.asked.filter(|(age, _)| past(age) && node.writable);
    let view = node.cut.as_ref().unwrap_or(store);
    if model.native {
        node.session = 0;
        node.seen = node.seen.min(2);
        let ours = view.record().filter(|r| r.owner == n && r.state == HELD);
        let epoch = ours.map(|record| record.epoch);
        node.hold = node.hold.filter(|(held, _)| Some(*held) == epoch);
        if ours.is_some() {
            node.seen = 0;
        }
    } else {
        node.seen = 0;
        if view.leader() != Some(n) {
            node.session = 0;
        }
    }
}

fn zero_counter(store: &mut Store) {
    if let Some(mut record) = store.record() {
        record.seq = 0;
        store.put(At::Record, Val::Record(record), 0);
    }
}
