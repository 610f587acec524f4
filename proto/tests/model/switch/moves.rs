//! What can happen next, and what it does.

use super::super::etcd::{At, COMPATIBLE, HELD, Is, Sent, Store, Val};
use super::rules::{self, Judged};
use super::{
    Act, Ask, F, Hold, ITS_LEASE, Mutation, Node, PATRONI_NUMBER, Patroni, Session, State, Switch,
};

/// What may happen at one of our nodes.
pub fn offer(model: &Switch, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = &state.nodes[usize::from(n)];
    let judged = rules::judge(model, n, node);
    late(state, n, actions);
    if n == 0 && !node.writable && !matches!(judged, Judged::Mine { .. }) && !node.stepping_down {
        // It has lost: what it does after that is what `b` does.
        return;
    }
    if node.current != (true, true) || pending_news(node, n) {
        actions.push(Act::Observe(n));
    }
    match node.session {
        Some(_) => actions.push(Act::Beat(n)),
        None => actions.push(Act::NewSession(n)),
    }
    if node.way.is_none() {
        let asks = asks(model, state, n, judged);
        actions.extend(asks.into_iter().map(|ask| Act::Send(n, ask)));
    }
    if let Judged::Mine { epoch, left, .. } = judged
        && !node.stepping_down
    {
        if node.writable && !confirmed(node, epoch) && left > 0 {
            actions.push(Act::Arm(n));
        } else if !node.writable && left > 0 {
            actions.push(Act::Promote(n));
        }
    }
    if n == 0 && node.writable {
        actions.push(Act::Stop(n));
    }
    if node.armed.is_some_and(|(_, left)| left <= 0) {
        actions.push(Act::Fence(n));
    }
    if n == 0 && state.restarts > 0 {
        actions.push(Act::Restart(n));
    }
}

/// Requests that are on their way.
fn late(state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = &state.nodes[usize::from(n)];
    if node.way.is_some() {
        actions.push(Act::Commit(n));
        if state.unheard > 0 {
            actions.push(Act::GiveUp(n));
        }
    }
    if node.stray.is_some() {
        actions.push(Act::CommitStray(n));
    }
}

/// A look at what is known already would bring something.
fn pending_news(node: &Node, n: u8) -> bool {
    let ours = |node: &Node| {
        let record = node
            .view
            .record()
            .filter(|r| r.owner == n && r.state == HELD);
        record.is_some() && node.hold.is_none() && node.claimed.is_some()
    };
    ours(node) || node.stepping_down
}

/// Its goal is the compatible lease: keepalives need their proof.
fn by_leader(judged: Judged, node: &Node) -> bool {
    matches!(judged, Judged::Mine { native: false, .. }) && !node.stepping_down
}

/// `lead::armed`.
fn confirmed(node: &Node, epoch: u8) -> bool {
    node.armed
        .is_some_and(|(armed, left)| armed == epoch && left > 0)
}

/// `decide::lease_goal`: the deadline of the compatible lease before is longer.
fn outlasts(node: &Node, epoch: u8, left: u8) -> bool {
    node.armed
        .is_some_and(|(armed, longer)| armed != epoch && longer > i8::try_from(left).unwrap())
}

/// What the agent may write now.
fn asks(model: &Switch, state: &State, n: u8, judged: Judged) -> Vec<Ask> {
    let node = &state.nodes[usize::from(n)];
    let next = node.view.record().map_or(0, |record| record.epoch) < model.epochs;
    let mut asks = Vec::new();
    if node.stepping_down {
        if !node.writable {
            asks.push(Ask::Release);
        }
    } else {
        match judged {
            Judged::Mine { native: false, .. } => {
                let on_it = node
                    .session
                    .is_some_and(|s| s.id == node.view.lease(At::Leader));
                let again = node.view.record().map_or(0, |r| r.epoch) < model.natives;
                if again && on_it {
                    asks.push(Ask::GoNative);
                }
            }
            Judged::Mine { epoch, left, .. } => {
                asks.push(Ask::GoCompatible);
                if !outlasts(node, epoch, left) || model.is(Mutation::RenewedBeforeGuardian) {
                    asks.push(Ask::Renew);
                }
            }
            Judged::Free if next || !rules::held_in(&node.view) => asks.push(Ask::Claim),
            Judged::Inherited if node.view.record().is_none_or(|r| r.state == COMPATIBLE) => {
                asks.push(Ask::Inherit);
            }
            _ => {}
        }
    }
    // `b` takes over; the rest is done by `a`.
    asks.retain(|ask| n == 0 || *ask == Ask::Claim);
    asks.retain(|ask| {
        let leased = matches!(ask, Ask::Claim | Ask::Inherit | Ask::GoCompatible);
        (node.session.is_some() || !leased) && rules::request(model, n, *ask, node).is_some()
    });
    asks
}

pub fn offer_etcd(_: &Switch, state: &State, actions: &mut Vec<Act>) {
    for (left, id) in state.leases.iter().zip(1..) {
        if *left == Some(0) {
            actions.push(Act::Expire(id));
        } else if left.is_some()
            && state.revoked > 0
            && id != ITS_LEASE
            && rules::held_in(&state.store)
        {
            actions.push(Act::Revoke(id));
        }
    }
}

/// Patroni takes the lock when it is free by its rules. While a record is in force it must find `/leader`:
/// a holder that has lost its lease in the moment in which Patroni joins is left out here.
pub fn offer_patroni(model: &Switch, state: &State, actions: &mut Vec<Act>) {
    let free = state.store.leader().is_none() && !rules::held_in(&state.store);
    match state.patroni {
        Patroni::Away if model.patroni => actions.push(Act::Joins),
        Patroni::Joined if free => actions.push(Act::ItTakes),
        Patroni::Done if state.store.leader() == Some(PATRONI_NUMBER) => {
            actions.push(Act::ItReleases)
        }
        Patroni::Leads => actions.extend([Act::ItKeeps, Act::ItStops]),
        _ => {}
    }
}

/// Fencing takes at most F; and Patroni is taken to stop in time.
pub fn time_may_pass(state: &State) -> bool {
    let due = |node: &Node| node.writable && node.armed.is_some_and(|(_, left)| left <= -F);
    let its = state.leases[usize::from(ITS_LEASE) - 1].unwrap_or(0);
    let stops = state.patroni == Patroni::Leads && its <= 1;
    !stops && !state.nodes.iter().any(due)
}

pub fn carry_out(model: &Switch, state: &mut State, action: Act) {
    match action {
        Act::Tick => pass(model, state),
        Act::Observe(n) => observe(model, state, n),
        Act::Beat(n) => beat(model, state, n),
        Act::NewSession(n) => new_session(model, state, n),
        Act::Send(n, ask) => {
            let node = &mut state.nodes[usize::from(n)];
            let sent = rules::request(model, n, ask, node).unwrap();
            let epoch = sent.then.iter().find_map(|(_, write)| match write {
                Some((Val::Record(record), _)) => Some(record.epoch),
                _ => None,
            });
            if matches!(ask, Ask::GoNative | Ask::Claim) {
                // The first attempt counts.
                let earlier = node.claimed.filter(|(claimed, _)| {
                    Some(*claimed) == epoch && !model.is(Mutation::SwitchFromLastSend)
                });
                node.claimed = earlier.or(epoch.map(|epoch| (epoch, 0)));
            }
            if ask == Ask::Release {
                (node.stepping_down, node.kept) = (true, None);
            }
            node.way = Some((ask, sent, 0));
        }
        Act::Commit(n) => {
            let (ask, sent, age) = state.nodes[usize::from(n)].way.take().unwrap();
            if commit(state, &sent) {
                heard(model, state, n, ask, &sent, age);
            } else {
                observe(model, state, n);
            }
        }
        Act::GiveUp(n) => {
            state.unheard -= 1;
            give_up(&mut state.nodes[usize::from(n)]);
        }
        Act::CommitStray(n) => {
            let sent = state.nodes[usize::from(n)].stray.take().unwrap();
            commit(state, &sent);
        }
        _ => at_node(model, state, action),
    }
}

fn at_node(model: &Switch, state: &mut State, action: Act) {
    match action {
        Act::Arm(n) => {
            let node = &mut state.nodes[usize::from(n)];
            if let Judged::Mine { epoch, left, .. } = rules::judge(model, n, node) {
                node.armed = rules::arm(node.armed, epoch, left);
            }
        }
        Act::Promote(n) => {
            // The guardian first.
            let node = &mut state.nodes[usize::from(n)];
            if let Judged::Mine { epoch, left, .. } = rules::judge(model, n, node) {
                if !confirmed(node, epoch) {
                    node.armed = rules::arm(node.armed, epoch, left);
                }
                node.writable = confirmed(node, epoch);
            }
        }
        Act::Stop(n) => {
            let node = &mut state.nodes[usize::from(n)];
            let mine = matches!(rules::judge(model, n, node), Judged::Mine { .. });
            (node.writable, node.stepping_down) = (false, mine);
        }
        Act::Fence(n) => {
            let node = &mut state.nodes[usize::from(n)];
            (node.writable, node.armed) = (false, None);
        }
        Act::Restart(n) => {
            state.restarts -= 1;
            let node = &mut state.nodes[usize::from(n)];
            give_up(node);
            (node.session, node.hold, node.claimed) = (None, None, None);
            (node.stepping_down, node.seen, node.current) = (false, 0, (false, false));
            observe(model, state, n);
            inherit(model, &mut state.nodes[usize::from(n)], n);
        }
        Act::Expire(id) => end_lease(state, id),
        Act::Revoke(id) => {
            state.revoked -= 1;
            end_lease(state, id);
        }
        Act::Joins => state.patroni = Patroni::Joined,
        Act::ItTakes => {
            state.leases[usize::from(ITS_LEASE) - 1] = Some(model.ttl);
            state
                .store
                .put(At::Leader, Val::Name(PATRONI_NUMBER), ITS_LEASE);
            written(state, &[At::Leader]);
            state.patroni = Patroni::Leads;
        }
        Act::ItKeeps => {
            if let Some(left) = &mut state.leases[usize::from(ITS_LEASE) - 1] {
                *left = model.ttl;
            }
        }
        Act::ItStops => state.patroni = Patroni::Done,
        Act::ItReleases => end_lease(state, ITS_LEASE),
        _ => unreachable!("handled before"),
    }
}

fn pass(model: &Switch, state: &mut State) {
    let most = model.longest();
    let older = |age: u8| (age + 1).min(most);
    for left in state.leases.iter_mut().flatten() {
        *left = left.saturating_sub(1);
    }
    for (node, n) in state.nodes.iter_mut().zip(0..) {
        let leads = by_leader(rules::judge(model, n, node), node);
        node.seen = older(node.seen);
        if let Some(session) = &mut node.session {
            session.sent = older(session.sent).min(model.ttl - 1);
            session.led |= leads;
        }
        if let Some(hold) = &mut node.hold {
            hold.sent = (hold.sent + 1).min(model.l);
        }
        node.claimed = node
            .claimed
            .map(|(epoch, age)| (epoch, (age + 1).min(model.l)));
        if let Some((_, _, age)) = &mut node.way {
            *age = (*age + 1).min(model.l);
        }
        node.armed = node.armed.map(|(epoch, left)| (epoch, (left - 1).max(-F)));
    }
}

/// A request reaches etcd.
fn commit(state: &mut State, sent: &Sent) -> bool {
    let dead = sent
        .then
        .iter()
        .any(|(_, write)| write.is_some_and(|(_, lease)| lease != 0 && !state.alive(lease)));
    if dead || !sent.holds(&state.store) {
        return false;
    }
    let before = rules::held_in(&state.store);
    let keys = sent.apply(&mut state.store);
    if before != rules::held_in(&state.store) {
        state.switched = (state.switched + 1).min(2);
    }
    written(state, &keys);
    true
}

fn written(state: &mut State, keys: &[At]) {
    for node in &mut state.nodes {
        for at in keys {
            if let Some((_, sent, _)) = &mut node.way {
                sent.written(*at);
            }
            if let Some(stray) = &mut node.stray {
                stray.written(*at);
            }
            match at {
                At::Leader => node.current.0 = false,
                At::Record => node.current.1 = false,
                _ => {}
            }
        }
    }
}

fn end_lease(state: &mut State, id: u8) {
    state.leases[usize::from(id) - 1] = None;
    if state.store.lease(At::Leader) == id {
        state.store.delete(At::Leader);
        written(state, &[At::Leader]);
    }
}

/// The agent sees etcd as it is now.
fn observe(model: &Switch, state: &mut State, n: u8) {
    let store = state.store;
    let node = &mut state.nodes[usize::from(n)];
    if !node.current.1 {
        node.seen = 0;
    }
    (node.view, node.current) = (store, (true, true));
    let ours = store.record().filter(|r| r.owner == n && r.state == HELD);
    if let Some(record) = ours
        && node.hold.is_none_or(|hold| hold.epoch != record.epoch)
    {
        let claimed = node.claimed.filter(|(epoch, _)| *epoch == record.epoch);
        if let Some((epoch, sent)) = claimed {
            (node.hold, node.kept, node.claimed) = (Some(Hold { epoch, sent }), Some(epoch), None);
        }
    }
    if ours.is_none() {
        node.hold = None;
    }
    let judged = rules::judge(model, n, node);
    if matches!(judged, Judged::Free | Judged::Other) {
        node.stepping_down = false;
    }
}

/// A restarted agent goes on in the tenure that the guardian kept.
fn inherit(model: &Switch, node: &mut Node, n: u8) {
    let record = node
        .view
        .record()
        .filter(|r| r.owner == n && r.state == HELD);
    let kept = node.armed.filter(|(epoch, _)| node.kept == Some(*epoch));
    if let (Some(record), Some((epoch, left))) = (record, kept)
        && record.epoch == epoch
    {
        let left = u8::try_from(left.max(0)).unwrap();
        node.hold = Some(Hold {
            epoch,
            sent: model.l.saturating_sub(left),
        });
    }
}

/// The answer of a request that was committed just now.
fn heard(model: &Switch, state: &mut State, n: u8, ask: Ask, sent: &Sent, age: u8) {
    let node = &mut state.nodes[usize::from(n)];
    for at in sent.apply(&mut node.view) {
        match at {
            At::Leader => node.current.0 = true,
            At::Record => (node.current.1, node.seen) = (true, 0),
            _ => {}
        }
    }
    let record = node
        .view
        .record()
        .filter(|r| r.owner == n && r.state == HELD);
    let epoch = record.map(|record| record.epoch);
    match (ask, epoch) {
        (Ask::GoNative | Ask::Claim, Some(epoch)) => {
            (node.hold, node.kept, node.claimed) =
                (Some(Hold { epoch, sent: age }), Some(epoch), None);
        }
        (Ask::Renew, Some(epoch)) => {
            node.hold = Some(Hold { epoch, sent: age });
            if model.l > age {
                node.armed = rules::arm(node.armed, epoch, model.l - age);
            }
        }
        (Ask::GoCompatible, _) => node.hold = None,
        (Ask::Release, _) => observe(model, state, n),
        _ => {}
    }
}

fn give_up(node: &mut Node) {
    if let Some((_, sent, _)) = node.way.take()
        && node.stray.is_none()
    {
        node.stray = Some(sent);
    }
}

/// A keepalive, `agent/src/etcd/session.rs`.
fn beat(model: &Switch, state: &mut State, n: u8) {
    let node = &state.nodes[usize::from(n)];
    let Some(mut session) = node.session else {
        return;
    };
    let judged = rules::judge(model, n, node);
    let stepping = node.stepping_down;
    let leads = by_leader(judged, node);
    let native = matches!(judged, Judged::Mine { native: true, .. }) && !stepping;
    let index = usize::from(session.id) - 1;
    if state.leases[index].is_none() {
        state.nodes[usize::from(n)].session = None;
        return;
    }
    state.leases[index] = Some(model.ttl);
    let ours = state.store.lease(At::Leader) == session.id;
    session.led = !native && (session.led || leads);
    let mut kept = Some(session);
    if !session.led || model.is(Mutation::KeepaliveAlone) {
        session.sent = 0;
        kept = Some(session);
    }
    if session.led {
        let alone = model.is(Mutation::KeepaliveAlone);
        kept = match (ours, leads) {
            (true, _) => Some(Session { sent: 0, ..session }),
            (false, true) => kept,
            (false, false) => kept.filter(|_| alone),
        };
    }
    let node = &mut state.nodes[usize::from(n)];
    node.session = kept;
    if let (true, true, Judged::Mine { epoch, .. }) = (ours, leads, judged) {
        // The real margin is two ticks.
        node.armed = rules::arm(node.armed, epoch, model.ttl - 2);
    }
}

fn new_session(model: &Switch, state: &mut State, n: u8) {
    let names = |sent: &Sent, id: u8| {
        let writes = sent
            .then
            .iter()
            .any(|(_, w)| w.is_some_and(|(_, l)| l == id));
        writes || sent.when.iter().any(|(_, is)| *is == Is::OnLease(id))
    };
    let node = &state.nodes[usize::from(n)];
    let under_way = node.way.as_ref().map(|(_, sent, _)| sent);
    let free = [1 + 2 * n, 2 + 2 * n].into_iter().find(|id| {
        let mut requests = under_way.into_iter().chain(node.stray.as_ref());
        !state.alive(*id) && !requests.any(|sent| names(sent, *id)) && seen_by_none(state, *id)
    });
    let Some(id) = free else { return };
    state.leases[usize::from(id) - 1] = Some(model.ttl);
    state.nodes[usize::from(n)].session = Some(Session {
        id,
        sent: 0,
        led: false,
    });
}

/// No old news names the lease, which would look like the new one of the same number.
fn seen_by_none(state: &State, id: u8) -> bool {
    let on = |store: &Store| store.lease(At::Leader) == id;
    !state.nodes.iter().any(|node| on(&node.view))
}

/// Brings equal states to one form: no counter, nothing that can have no effect any more.
pub fn settle(model: &Switch, state: &mut State) {
    zero_counter(&mut state.store);
    let store = state.store;
    let ttl = model.ttl;
    for (node, n) in state.nodes.iter_mut().zip(0..) {
        // Whoever does not lead keeps its lease alive.
        if let Some(session) = node.session.as_mut().filter(|session| !session.led)
            && ![store, node.view]
                .iter()
                .any(|seen| seen.lease(At::Leader) == session.id)
            && let Some(left) = &mut state.leases[usize::from(session.id) - 1]
        {
            (session.sent, *left) = (0, ttl);
        }
        zero_counter(&mut node.view);
        for sent in node
            .way
            .iter_mut()
            .map(|(_, sent, _)| sent)
            .chain(node.stray.as_mut())
        {
            for (_, write) in &mut sent.then {
                if let Some((Val::Record(record), _)) = write {
                    record.seq = 0;
                }
            }
        }
        if node.stray.as_ref().is_some_and(|stray| stray.refused) {
            node.stray = None;
        }
        let record = store.record();
        let waits = node
            .view
            .record()
            .is_some_and(|r| r.owner != n && r.state == HELD);
        if n == 0 || !waits {
            node.seen = 0;
        }
        let known = record.map_or(0, |record| record.epoch);
        node.claimed = node.claimed.filter(|(epoch, _)| *epoch >= known);
        node.kept = node
            .kept
            .filter(|epoch| node.armed.is_some_and(|(armed, _)| armed == *epoch));
    }
}

fn zero_counter(store: &mut Store) {
    if let Some(mut record) = store.record() {
        record.seq = 0;
        store.put(At::Record, Val::Record(record), 0);
    }
}
