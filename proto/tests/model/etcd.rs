//! etcd for the models: the real transactions, carried out on small values.
//!
//! Values are written and read by the real code in `proto::dcs`, once for each that turns up. A revision
//! never comes back, so a compare with one is true until the key is written again and false for ever
//! after: [`Sent::written`] marks the request as refused then, and no revision has to be kept.

use proto::config::{ClusterConfig, Settings, Tags};
use proto::dcs::{
    ClusterView, Compare, Entry, FenceEntry, FencePromise, HistoryLine, HistoryRecord, Key,
    LeaseRecord, LeaseRef, Op, RECORD_VERSION, RecordEntry, RecordState, Snapshot, SyncRecord, Txn,
};
use proto::ids::{Epoch, LeaseId, MemberName, Revision};
use proto::time::MonoTime;
use proto::wal::{Lsn, Timeline};
use std::collections::BTreeMap;
use std::time::Duration;

/// One tick of a model, in the real rules' time.
pub const TICK: Duration = Duration::from_millis(500);

/// The moment at which every rule is asked; only ages count.
pub const NOW: MonoTime = MonoTime(1_000_000_000_000_000);

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

pub fn ticks(n: u8) -> Duration {
    TICK * u32::from(n)
}

pub fn ago(age: u8) -> MonoTime {
    NOW - ticks(age)
}

fn in_ticks(ms: u64) -> u8 {
    u8::try_from(u128::from(ms) / TICK.as_millis()).unwrap()
}

fn in_ms(n: u8) -> u64 {
    u64::try_from(ticks(n).as_millis()).unwrap()
}

pub fn name(n: u8) -> MemberName {
    NAMES[usize::from(n)].into()
}

pub fn number(name: &str) -> u8 {
    u8::try_from(NAMES.iter().position(|n| *n == name).unwrap()).unwrap()
}

/// Members as bits.
pub fn names_of(mask: u8) -> Vec<MemberName> {
    (0..4).filter(|n| mask & (1 << n) != 0).map(name).collect()
}

pub fn mask_of<'n>(names: impl IntoIterator<Item = &'n str>) -> u8 {
    names.into_iter().fold(0, |mask, n| mask | 1 << number(n))
}

/// Settings of a member with a cluster configuration.
pub fn settings(me: u8, document: &serde_json::Value) -> Settings {
    let document = document.as_object().unwrap();
    Settings {
        me: name(me),
        scope: "model".into(),
        version: "4.1.0".into(),
        conn_url: String::new(),
        api_url: String::new(),
        proxy_url: None,
        tags: Tags::default(),
        cluster: ClusterConfig::parse(document),
        dynamic: document.clone(),
        can_bootstrap: false,
        can_clone_without_leader: false,
        use_pg_rewind: true,
        wipe_on_rewind_failure: false,
        wipe_on_divergence: false,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 1,
    }
}

/// The keys that models know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum At {
    Leader,
    Record,
    Sync,
    History,
    Fence(u8),
}

const SLOTS: usize = 8;

impl At {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Leader, Self::Record, Self::Sync, Self::History]
            .into_iter()
            .chain((0..4).map(Self::Fence))
    }

    fn index(self) -> usize {
        match self {
            Self::Leader => 0,
            Self::Record => 1,
            Self::Sync => 2,
            Self::History => 3,
            Self::Fence(n) => 4 + usize::from(n),
        }
    }

    fn key(self) -> Key {
        match self {
            Self::Leader => Key::Leader,
            Self::Record => Key::Record,
            Self::Sync => Key::Sync,
            Self::History => Key::History,
            Self::Fence(n) => Key::Fence(name(n)),
        }
    }

    /// `None` for keys that decide nothing here, such as `/status`.
    fn of(key: &Key) -> Option<Self> {
        match key {
            Key::Leader => Some(Self::Leader),
            Key::Record => Some(Self::Record),
            Key::Sync => Some(Self::Sync),
            Key::History => Some(Self::History),
            Key::Fence(member) => Some(Self::Fence(number(member.as_str()))),
            _ => None,
        }
    }

    /// The revision that a key has in every view: one of its own, since only equality counts.
    pub fn revision(self) -> Revision {
        Revision(10 + i64::try_from(self.index()).unwrap())
    }
}

/// `/record`, lengths in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rec {
    pub epoch: u8,
    pub owner: u8,
    pub session: u8,
    pub seq: u8,
    pub state: u8,
    pub l: u8,
    pub w: u8,
    pub members: u8,
}

pub const HELD: u8 = 0;
pub const RELEASED: u8 = 1;
pub const COMPATIBLE: u8 = 2;

impl Rec {
    pub fn real(self) -> LeaseRecord {
        LeaseRecord {
            v: RECORD_VERSION,
            epoch: Epoch(self.epoch.into()),
            owner: name(self.owner),
            session: self.session.to_string(),
            seq: self.seq.into(),
            state: [
                RecordState::Held,
                RecordState::Released,
                RecordState::Compatible,
            ][usize::from(self.state)],
            l_ms: in_ms(self.l),
            w_ms: in_ms(self.w),
            members: names_of(self.members),
            final_position: None,
        }
    }

    pub fn of(record: &LeaseRecord) -> Self {
        let small = |n: u64| u8::try_from(n).unwrap();
        Self {
            epoch: small(record.epoch.0),
            owner: number(record.owner.as_str()),
            session: record.session.parse().unwrap(),
            seq: small(record.seq),
            state: match record.state {
                RecordState::Held => HELD,
                RecordState::Released => RELEASED,
                RecordState::Compatible => COMPATIBLE,
            },
            l: in_ticks(record.l_ms),
            w: in_ticks(record.w_ms),
            members: mask_of(record.members.iter().map(MemberName::as_str)),
        }
    }
}

/// `/sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyncKey {
    pub leader: u8,
    pub standbys: u8,
    pub quorum: u8,
}

/// `/fence/<member>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Promise {
    pub epoch: u8,
    pub wal_epoch: u8,
    pub timeline: u8,
    pub lsn: u8,
}

/// The last line of `/history`: which timeline ended, and who takes the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claimed {
    pub timeline: u8,
    pub by: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Val {
    Name(u8),
    Record(Rec),
    Sync(SyncKey),
    Promise(Promise),
    History(Claimed),
}

/// What `history::claim` writes beside the names and numbers.
const CLAIMED: &str = "claimed for a promotion";

impl Val {
    fn write(self) -> String {
        match self {
            Self::Name(n) => name(n).as_str().to_owned(),
            Self::Record(record) => record.real().to_value(),
            Self::Sync(key) => {
                let standbys: Vec<String> = names_of(key.standbys)
                    .iter()
                    .map(|n| n.as_str().to_owned())
                    .collect();
                SyncRecord::value(&name(key.leader), &standbys, key.quorum.into())
            }
            Self::Promise(p) => FencePromise {
                v: RECORD_VERSION,
                epoch: Epoch(p.epoch.into()),
                wal_epoch: Epoch(p.wal_epoch.into()),
                timeline: Timeline(p.timeline.into()),
                lsn: Lsn(p.lsn.into()),
            }
            .to_value(),
            Self::History(claimed) => HistoryRecord {
                present: true,
                lines: vec![HistoryLine {
                    timeline: Timeline(claimed.timeline.into()),
                    lsn: Lsn(1),
                    reason: CLAIMED.into(),
                    timestamp: Some("now".into()),
                    new_leader: Some(name(claimed.by).as_str().to_owned()),
                }],
                modified: None,
            }
            .to_value(),
        }
    }

    fn read(at: At, text: &str) -> Self {
        let small = |n: u64| u8::try_from(n).unwrap();
        match at {
            At::Leader => Self::Name(number(text)),
            At::Record => Self::Record(Rec::of(
                &RecordEntry::parse(text, Revision(1)).unwrap().record,
            )),
            At::Sync => {
                let key = SyncRecord::parse(text, Revision(1)).unwrap();
                Self::Sync(SyncKey {
                    leader: number(key.leader.unwrap().as_str()),
                    standbys: mask_of(key.standbys.iter().map(String::as_str)),
                    quorum: small(key.quorum.into()),
                })
            }
            At::Fence(_) => {
                let promise = FenceEntry::parse(text, Revision(1)).unwrap().promise;
                Self::Promise(Promise {
                    epoch: small(promise.epoch.0),
                    wal_epoch: small(promise.wal_epoch.0),
                    timeline: small(promise.timeline.0.into()),
                    lsn: small(promise.lsn.0),
                })
            }
            At::History => {
                let history = HistoryRecord::parse(text).unwrap();
                let last = history.lines.last().unwrap();
                Self::History(Claimed {
                    timeline: small(last.timeline.0.into()),
                    by: number(last.new_leader.as_deref().unwrap()),
                })
            }
        }
    }
}

/// The store: what stands in each key, and on which lease (zero for none).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Store {
    slots: [Option<(Val, u8)>; SLOTS],
}

impl Store {
    pub fn put(&mut self, at: At, val: Val, lease: u8) {
        self.slots[at.index()] = Some((val, lease));
    }

    pub fn delete(&mut self, at: At) {
        self.slots[at.index()] = None;
    }

    pub fn get(&self, at: At) -> Option<Val> {
        self.slots[at.index()].map(|(val, _)| val)
    }

    pub fn lease(&self, at: At) -> u8 {
        self.slots[at.index()].map_or(0, |(_, lease)| lease)
    }

    pub fn record(&self) -> Option<Rec> {
        match self.get(At::Record) {
            Some(Val::Record(record)) => Some(record),
            _ => None,
        }
    }

    pub fn sync(&self) -> Option<SyncKey> {
        match self.get(At::Sync) {
            Some(Val::Sync(key)) => Some(key),
            _ => None,
        }
    }

    pub fn promise(&self, n: u8) -> Option<Promise> {
        match self.get(At::Fence(n)) {
            Some(Val::Promise(promise)) => Some(promise),
            _ => None,
        }
    }

    pub fn history(&self) -> Option<Claimed> {
        match self.get(At::History) {
            Some(Val::History(claimed)) => Some(claimed),
            _ => None,
        }
    }

    pub fn leader(&self) -> Option<u8> {
        match self.get(At::Leader) {
            Some(Val::Name(n)) => Some(n),
            _ => None,
        }
    }

    /// As an agent reads it.
    pub fn view(&self) -> ClusterView {
        let entries: BTreeMap<String, Entry> = At::all()
            .filter_map(|at| {
                let (val, lease) = self.slots[at.index()]?;
                let entry = Entry {
                    value: val.write(),
                    lease: LeaseId(lease.into()),
                    created: at.revision(),
                    modified: at.revision(),
                };
                Some((at.key().to_string(), entry))
            })
            .collect();
        ClusterView::read(&Snapshot {
            cluster_id: 1,
            revision: Revision(100),
            entries,
        })
    }

    fn holds(&self, at: At, is: Is) -> bool {
        let slot = self.slots[at.index()];
        match is {
            Is::Absent => slot.is_none(),
            Is::Present => slot.is_some(),
            Is::Value(val) => slot.is_some_and(|(v, _)| v == val),
            // Else the request would have been marked.
            Is::Still => slot.is_some(),
            Is::OnLease(lease) => slot.is_some_and(|(_, l)| l == lease),
        }
    }
}

/// A compare of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Is {
    Absent,
    Present,
    Value(Val),
    /// At the revision at which the sender has seen it.
    Still,
    OnLease(u8),
}

/// A transaction on its way, which can still be committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sent {
    pub when: Vec<(At, Is)>,
    /// `None` deletes.
    pub then: Vec<(At, Option<(Val, u8)>)>,
    /// A key that was compared has been written since.
    pub refused: bool,
}

impl Sent {
    /// A request that was refused, or will be.
    pub fn refused() -> Self {
        Self {
            when: Vec::new(),
            then: Vec::new(),
            refused: true,
        }
    }

    /// Translates a real transaction that was built on [`Store::view`].
    pub fn of(txn: &Txn, session: u8) -> Self {
        let compare = |compare: &Compare| {
            let (key, is) = match compare {
                Compare::Absent(key) => (key, Is::Absent),
                Compare::Present(key) => (key, Is::Present),
                Compare::Value(key, text) => {
                    let at = At::of(key)?;
                    return Some((at, Is::Value(Val::read(at, text))));
                }
                Compare::Unchanged(key, revision) => {
                    let at = At::of(key)?;
                    assert_eq!(*revision, at.revision(), "compares with what was seen");
                    return Some((at, Is::Still));
                }
                Compare::OnLease(key, lease) => (key, Is::OnLease(u8::try_from(lease.0).unwrap())),
            };
            Some((At::of(key)?, is))
        };
        let write = |op: &Op| {
            let at = At::of(op.key())?;
            Some(match op {
                Op::Put { value, lease, .. } => {
                    let lease = match lease {
                        LeaseRef::None => 0,
                        LeaseRef::Session => session,
                        LeaseRef::Other(id) => u8::try_from(id.0).unwrap(),
                    };
                    (at, Some((Val::read(at, value), lease)))
                }
                Op::Delete(_) => (at, None),
            })
        };
        Self {
            when: txn.when.iter().filter_map(compare).collect(),
            then: txn.then.iter().filter_map(write).collect(),
            refused: false,
        }
    }

    /// Takes the compares of one key out: a mutation.
    pub fn without(mut self, at: At) -> Self {
        self.when.retain(|(key, _)| *key != at);
        self
    }

    /// Whether it compares the revision of a key.
    pub fn compares_revision(&self, at: At) -> bool {
        self.when.contains(&(at, Is::Still))
    }

    /// A key was written.
    pub fn written(&mut self, at: At) {
        if self.compares_revision(at) {
            *self = Self::refused();
        }
    }

    pub fn holds(&self, store: &Store) -> bool {
        !self.refused && self.when.iter().all(|(at, is)| store.holds(*at, *is))
    }

    /// Writes, and names the keys that were written.
    pub fn apply(&self, store: &mut Store) -> Vec<At> {
        for (at, write) in &self.then {
            store.slots[at.index()] = *write;
        }
        self.then.iter().map(|(at, _)| *at).collect()
    }
}
