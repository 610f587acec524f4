//! What can happen next, and what it does.

use super::super::etcd::{At, HELD, RELEASED, Rec, Sent, Val};
use super::{Act, Ask, Guard, Hold, Lease, Mutation, Node, Pg, SEQ, State, Way, rules};

/// What may happen at one node.
pub fn offer(model: &Lease, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = &state.nodes[usize::from(n)];
    if matches!(node.way, Way::Sent(..)) {
        actions.push(Act::Commit(n));
    }
    if node.stray.is_some() {
        actions.push(Act::CommitStray(n));
    }
    if node.frozen {
        actions.push(Act::ThawNode(n));
        return;
    }
    agent(model, state, n, actions);
    if node.pg == Pg::Dying {
        actions.push(Act::Ended(n));
    }
    if fences(model, node) {
        actions.push(Act::Fence(n));
    }
    if node.guard.frozen {
        actions.push(Act::ThawGuard(n));
    }
    if state.faults > 0 && (n == 0 || model.change.is_none()) {
        actions.push(Act::RestartAgent(n));
        if node.guard.armed.is_some() {
            actions.extend([Act::KillGuard(n), Act::FreezeNode(n)]);
        }
        if node.guard.armed.is_some() && !node.guard.frozen {
            actions.push(Act::FreezeGuard(n));
        }
    }
}

fn agent(model: &Lease, state: &State, n: u8, actions: &mut Vec<Act>) {
    let node = &state.nodes[usize::from(n)];
    actions.push(Act::Observe(n));
    if model.change.is_some() && !node.changed {
        actions.push(Act::Configure(n));
    }
    match node.way {
        Way::Sent(..) => actions.push(Act::Timeout(n)),
        Way::Refused(_) | Way::Committed(..) => actions.extend([Act::Answer(n), Act::Timeout(n)]),
        Way::Idle => {
            if node.hold.is_some() && !node.stepping_down {
                actions.push(Act::Renew(n));
            }
            if state.record().epoch < model.epochs
                && node.hold.is_none()
                && rules::is_free(model, state, n)
            {
                actions.push(Act::Claim(n));
            }
            let unseen = node
                .claimed
                .is_some_and(|(epoch, _)| epoch == state.record().epoch);
            if unseen && node.hold.is_none() && node.seen.is_none() {
                actions.push(Act::ClaimAgain(n));
            }
            let harmless = node.pg == Pg::Harmless
                || (model.is(Mutation::ReleaseBeforeEmpty) && node.pg == Pg::Dying);
            let knows = node.hold.is_some() || node.stepping_down;
            if model.change.is_none()
                && harmless
                && knows
                && rules::release(model, state, n).is_some()
            {
                actions.push(Act::Release(n));
            }
        }
    }
    if may_promote(model, state, n) {
        actions.push(Act::Promote(n));
    }
    if node.pg == Pg::Writable && model.change.is_none() {
        actions.push(Act::Stop(n));
    }
}

/// `lead.rs`: the lock is ours, and the guardian has confirmed a deadline of this tenure.
fn may_promote(model: &Lease, state: &State, n: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    let Some(hold) = node.hold else { return false };
    let armed = node
        .guard
        .armed
        .is_some_and(|(epoch, left)| epoch == hold.epoch && left > 0);
    node.pg == Pg::Harmless
        && !node.stepping_down
        && (armed || model.is(Mutation::GuardianAfterPromotion) || model.is(Mutation::NoGuardian))
        && rules::is_mine(model, state, n)
}

/// The guardian looks, or the kernel's timer ends one that does not.
fn fences(model: &Lease, node: &Node) -> bool {
    let kept_from = node.guard.frozen && model.is(Mutation::NoKernelTimer);
    let guarded = !kept_from && !model.is(Mutation::NoGuardian);
    guarded && node.guard.armed.is_some() && rules::fences(node.guard.armed)
}

/// Fencing takes at most F: no tick passes before it is done.
pub fn time_may_pass(model: &Lease, state: &State) -> bool {
    let due = |node: &&Node| {
        let over = node
            .guard
            .armed
            .is_some_and(|(_, left)| left <= -i8::try_from(model.f).unwrap());
        over && node.pg.may_commit() && !node.frozen && fences(model, node)
    };
    !state.nodes.iter().any(|node| due(&node))
}

pub fn carry_out(model: &Lease, state: &mut State, action: Act) {
    match action {
        Act::Tick => pass(model, state, |_| 1),
        Act::Slow(slow) => {
            state.slips -= 1;
            pass(model, state, |n| u8::from(n != slow));
        }
        Act::Fast(fast) => {
            state.slips -= 1;
            pass(model, state, |n| 1 + u8::from(n == fast));
        }
        Act::Configure(n) => state.nodes[usize::from(n)].changed = true,
        Act::Observe(n) => observe(model, state, n),
        Act::Renew(n) => {
            let node = &mut state.nodes[usize::from(n)];
            let changed = node.changed;
            let hold = node.hold.as_mut().unwrap();
            let mut sent = rules::renew(model, n, changed, hold);
            if model.is(Mutation::ShorterWaitAtOnce) {
                shorten(&mut sent, model.lengths(changed).1);
            }
            if model.is(Mutation::DeadlineFromLastSend) {
                hold.first = Some(0);
            }
            if model.is(Mutation::RenewWithoutRecord) {
                sent = sent.without(At::Record);
            }
            node.way = Way::Sent(Ask::Renew(changed), sent);
        }
        Act::Claim(n) => {
            let (epoch, mut sent) = rules::claim(model, state, n);
            if model.is(Mutation::ClaimWithoutRecord) {
                sent = sent.without(At::Record);
            }
            state.waited |= state.record().state == HELD && state.record().owner != n;
            let node = &mut state.nodes[usize::from(n)];
            let earlier = node.claimed.filter(|(claimed, _)| *claimed == epoch);
            let first = earlier.map_or(0, |(_, age)| age);
            let last = model.is(Mutation::ClaimFromLastSend);
            node.claimed = Some((epoch, if last { 0 } else { first }));
            node.way = Way::Sent(Ask::Claim(epoch, 0, node.changed), sent);
        }
        Act::ClaimAgain(n) => {
            let node = &mut state.nodes[usize::from(n)];
            if let Some((epoch, age)) = &mut node.claimed {
                *age = if model.is(Mutation::ClaimFromLastSend) {
                    0
                } else {
                    *age
                };
                node.way = Way::Refused(Ask::Claim(*epoch, 0, false));
            }
        }
        Act::Release(n) => {
            let mut sent = rules::release(model, state, n).unwrap();
            if model.is(Mutation::ReleaseWithoutRecord) {
                sent = sent.without(At::Record);
            }
            let node = &mut state.nodes[usize::from(n)];
            node.stepping_down = true;
            node.guard.keeps = node
                .guard
                .keeps
                .filter(|_| model.is(Mutation::ReleaseNotForgotten));
            node.way = Way::Sent(Ask::Release, sent);
        }
        Act::Commit(n) => {
            let way = std::mem::replace(&mut state.nodes[usize::from(n)].way, Way::Idle);
            let Way::Sent(ask, sent) = way else { return };
            let committed = commit(state, &sent);
            state.nodes[usize::from(n)].way = if committed {
                Way::Committed(ask, true)
            } else {
                Way::Refused(ask)
            };
        }
        Act::CommitStray(n) => {
            let stray = state.nodes[usize::from(n)].stray.take();
            commit(state, &stray.unwrap());
        }
        Act::Answer(n) => answer(model, state, n),
        Act::Timeout(n) => time_out(model, &mut state.nodes[usize::from(n)]),
        _ => at_node(model, state, action),
    }
}

fn shorten(sent: &mut Sent, w: u8) {
    for (_, write) in &mut sent.then {
        if let Some((Val::Record(record), _)) = write {
            record.w = w;
        }
    }
}

fn at_node(model: &Lease, state: &mut State, action: Act) {
    let record = state.record();
    match action {
        Act::Promote(n) => state.nodes[usize::from(n)].pg = Pg::Writable,
        Act::Stop(n) => state.nodes[usize::from(n)].pg = Pg::Dying,
        Act::Ended(n) => state.nodes[usize::from(n)].pg = Pg::Harmless,
        Act::Fence(n) => {
            let node = &mut state.nodes[usize::from(n)];
            (node.pg, node.guard.armed) = (Pg::Harmless, None);
            if node.guard.frozen {
                // The kernel has ended it; the agent starts another.
                node.guard = another(node.guard);
            }
        }
        Act::RestartAgent(n) => {
            state.faults -= 1;
            restart(model, &mut state.nodes[usize::from(n)], n, record);
        }
        Act::KillGuard(n) => {
            state.faults -= 1;
            let node = &mut state.nodes[usize::from(n)];
            node.pg = Pg::Harmless;
            node.guard = another(node.guard);
        }
        Act::FreezeGuard(n) => {
            state.faults -= 1;
            state.nodes[usize::from(n)].guard.frozen = true;
        }
        Act::ThawGuard(n) => state.nodes[usize::from(n)].guard.frozen = false,
        Act::FreezeNode(n) => {
            state.faults -= 1;
            state.nodes[usize::from(n)].frozen = true;
        }
        Act::ThawNode(n) => {
            let node = &mut state.nodes[usize::from(n)];
            node.frozen = false;
            // The kernel's timer comes before any process of the node.
            let timer = !model.is(Mutation::NoKernelTimer) && fences(model, node);
            if timer {
                node.pg = Pg::Harmless;
                node.guard = another(node.guard);
            }
        }
        _ => unreachable!("handled before"),
    }
}

/// The guardian that an agent starts when there is none.
fn another(guard: Guard) -> Guard {
    Guard {
        armed: None,
        keeps: None,
        life: guard.life + 1,
        frozen: false,
    }
}

fn pass(model: &Lease, state: &mut State, by: impl Fn(u8) -> u8) {
    for (node, n) in state.nodes.iter_mut().zip(0..) {
        let by = by(n);
        let older = |age: u8, most: u8| (age + by).min(most);
        let (l, w) = model.longest();
        if let Some(hold) = &mut node.hold {
            hold.sent = older(hold.sent, l);
            hold.far = hold.far.saturating_sub(by);
            hold.first = hold.first.map(|age| older(age, l));
        }
        if let Way::Sent(Ask::Claim(_, age, _), _) | Way::Committed(Ask::Claim(_, age, _), _) =
            &mut node.way
        {
            *age = older(*age, l);
        }
        node.claimed = node.claimed.map(|(epoch, age)| (epoch, older(age, l)));
        node.seen = node.seen.map(|age| older(age, w));
        if let Some((_, left)) = &mut node.guard.armed {
            let least = -i8::try_from(model.f).unwrap();
            *left = (*left - i8::try_from(by).unwrap()).max(least);
        }
    }
}

/// A request reaches etcd.
fn commit(state: &mut State, sent: &Sent) -> bool {
    if !sent.holds(&state.store) {
        return false;
    }
    let written = sent.apply(&mut state.store);
    for node in &mut state.nodes {
        for at in &written {
            if let Way::Sent(_, other) = &mut node.way {
                other.written(*at);
            }
            if let Some(stray) = &mut node.stray {
                stray.written(*at);
            }
        }
        if let Way::Committed(_, current) = &mut node.way {
            *current = false;
        }
        if let Some(hold) = &mut node.hold {
            hold.current = false;
        }
        node.seen = None;
    }
    true
}

/// The agent sees the record as it is now.
fn observe(model: &Lease, state: &mut State, n: u8) {
    let record = state.record();
    let node = &mut state.nodes[usize::from(n)];
    let ours = record.owner == n && record.state == HELD && record.session == node.guard.life;
    if ours && node.hold.is_none() {
        let claimed = node
            .claimed
            .take()
            .filter(|(epoch, _)| *epoch == record.epoch);
        node.hold = claimed.map(|(_, age)| adopted(record, age));
        node.guard.keeps = node.hold.map_or(node.guard.keeps, |hold| Some(hold.l));
    }
    let mine = record.owner == n && record.state == HELD;
    if !mine {
        if node.hold.is_some_and(|hold| hold.epoch <= record.epoch) {
            node.hold = None;
        }
        node.stepping_down = false;
    }
    let first = if model.is(Mutation::NoQuarantine) {
        model.longest().1
    } else {
        0
    };
    if node.hold.is_none() {
        node.seen.get_or_insert(first);
    }
}

fn adopted(record: Rec, sent: u8) -> Hold {
    Hold {
        epoch: record.epoch,
        session: record.session,
        seq: record.seq,
        l: record.l,
        base: (record.l, record.w),
        far: record.l.saturating_sub(sent),
        sent,
        first: None,
        current: true,
        settled: false,
    }
}

fn time_out(model: &Lease, node: &mut Node) {
    match std::mem::replace(&mut node.way, Way::Idle) {
        Way::Sent(ask, sent) => {
            // One that nobody waits for any more; more than one would do nothing new.
            if node.stray.is_none() && !sent.refused {
                node.stray = Some(sent);
            }
            forget(model, node, ask);
        }
        Way::Refused(ask) | Way::Committed(ask, _) => forget(model, node, ask),
        Way::Idle => {}
    }
}

fn forget(model: &Lease, node: &mut Node, ask: Ask) {
    if let (Ask::Renew(_), Some(hold)) = (ask, &mut node.hold)
        && model.is(Mutation::UnknownIsSuccess)
    {
        hold.sent = hold.first.unwrap_or(hold.sent);
        arm(node);
    }
}

fn answer(model: &Lease, state: &mut State, n: u8) {
    let record = state.record();
    let node = &mut state.nodes[usize::from(n)];
    let way = std::mem::replace(&mut node.way, Way::Idle);
    match (way, node.hold.as_mut()) {
        (Way::Committed(Ask::Renew(changed), current), Some(hold)) => {
            rules::renewed(model, n, changed, hold, current);
            earned(model, node);
        }
        (Way::Refused(Ask::Renew(_)), Some(hold)) => match rules::resolve(model, n, hold, record) {
            Some(true) => earned(model, node),
            Some(false) => {}
            None => node.hold = None,
        },
        (Way::Committed(Ask::Claim(epoch, age, changed), current), _) => {
            let (l, w) = model.lengths(changed);
            let claimed = Rec {
                epoch,
                seq: SEQ,
                session: node.guard.life,
                l,
                w,
                ..record
            };
            let hold = Hold {
                current,
                ..adopted(claimed, age)
            };
            (node.hold, node.claimed, node.guard.keeps) = (Some(hold), None, Some(hold.l));
            earned(model, node);
        }
        (Way::Refused(Ask::Claim(..)), _) => {
            // The read after a refusal may show an earlier attempt.
            observe(model, state, n);
            state.nodes[usize::from(n)].claimed = None;
        }
        (Way::Committed(Ask::Release, _), _) => {
            (node.hold, node.stepping_down) = (None, false);
        }
        _ => {}
    }
}

/// The deadline that an answer has brought, first to the guardian.
fn earned(model: &Lease, node: &mut Node) {
    if let Some(hold) = node
        .hold
        .as_mut()
        .filter(|_| model.is(Mutation::DeadlineFromReply))
    {
        hold.sent = 0;
    }
    arm(node);
}

fn arm(node: &mut Node) {
    let Some(hold) = node.hold else { return };
    let left = rules::left(&hold);
    if left > 0 && !node.guard.frozen {
        node.guard.armed = rules::arm(node.guard.armed, hold.epoch, left);
    }
}

/// A new process of the agent: what the guardian kept, and what a fresh read says.
fn restart(model: &Lease, node: &mut Node, n: u8, record: Rec) {
    time_out(model, node);
    (node.claimed, node.seen, node.hold) = (None, None, None);
    node.stepping_down = false;
    let ours = record.owner == n && record.state == HELD && record.session == node.guard.life;
    let kept = node.guard.armed.filter(|(epoch, _)| *epoch == record.epoch);
    let Some(((_, left), length)) = kept.zip(node.guard.keeps).filter(|_| ours) else {
        return;
    };
    let restarted = model.is(Mutation::DeadlineOfRestartedAgent);
    let mut hold = adopted(record, 0);
    let mut left = u8::try_from(left.max(0)).unwrap();
    if model.is(Mutation::LengthOfTheRecord) {
        left = (left + hold.l).saturating_sub(length);
    } else {
        hold.l = length;
    }
    hold.l = hold.l.max(left);
    hold.sent = if restarted { 0 } else { hold.l - left };
    hold.far = hold.l - hold.sent;
    node.hold = Some(hold);
    if restarted {
        arm(node);
    }
}

/// Brings equal states to one form: the counter of the record is moved, and what nobody can depend on any
/// more is dropped.
pub fn settle(state: &mut State) {
    let mut record = state.record();
    let shift = |seq: u8| seq + SEQ - record.seq;
    for (node, n) in state.nodes.iter_mut().zip(0..) {
        for sent in requests(node) {
            for (_, write) in &mut sent.then {
                if let Some((Val::Record(written), _)) = write
                    && written.epoch == record.epoch
                {
                    written.seq = shift(written.seq);
                }
            }
        }
        if node.stray.as_ref().is_some_and(|stray| stray.refused) {
            node.stray = None;
        }
        if let Some(hold) = &mut node.hold {
            let present = hold.epoch == record.epoch && record.owner == n;
            hold.seq = if present { shift(hold.seq) } else { SEQ };
        }
        if let Way::Sent(ask, sent) = &node.way
            && sent.refused
        {
            node.way = Way::Refused(*ask);
        }
        let ours = record.owner == n && record.state == HELD;
        node.hold = node
            .hold
            .filter(|hold| ours || hold.current || hold.sent < hold.l || node.way != Way::Idle);
        if node.hold.is_some() {
            node.seen = None;
        }
        node.claimed = node.claimed.filter(|(epoch, _)| *epoch >= record.epoch);
    }
    record.seq = SEQ;
    state.store.put(At::Record, Val::Record(record), 0);
    if record.state == RELEASED {
        state.nodes.iter_mut().for_each(|node| {
            node.seen = node.seen.map(|_| 0);
        });
    }
}

fn requests(node: &mut Node) -> impl Iterator<Item = &mut Sent> {
    let under_way = match &mut node.way {
        Way::Sent(_, sent) => Some(sent),
        _ => None,
    };
    under_way.into_iter().chain(node.stray.as_mut())
}
