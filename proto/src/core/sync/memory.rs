//! What PostgreSQL enforces, since when, and who has proved it (P-SYNC, `safety.md` 4.2).

use super::candidates::{Candidate, sender_of};
use super::names::{Form, parse_names};
use super::{Names, REWRITE_AFTER, SETTLE_TIME, SyncInput, SyncStep, SyncWait, spelled};
use crate::core::observation::Task;
use crate::ids::STRICT_PLACEHOLDER;
use crate::time::MonoTime;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is remembered between two looks. Forgotten (reset to the default) when the member is not a
/// running primary; forgetting it costs time, not safety.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncMemory {
    names: Option<String>,
    names_set_lsn: Lsn,
    set_at: MonoTime,
    from_nothing: bool,
    former: Names,
    differs_since: Option<MonoTime>,
    key_taken_at: Option<MonoTime>,
}

impl SyncMemory {
    /// Notes what PostgreSQL shows. When the names have changed, everything that is flushed so far is
    /// what a standby must reach before it counts (P-SYNC, `safety.md` 4.2).
    fn look(&mut self, input: &SyncInput<'_>) {
        let shown = &input.sample.synchronous_standby_names;
        if self.names.as_ref() != Some(shown) {
            let before = self
                .names
                .as_deref()
                .and_then(parse_names)
                .unwrap_or_default();
            if self.settled(input.now) {
                self.former.clear();
                self.from_nothing = false;
            }
            // The first look counts as a change from nothing: who knows when they were set.
            self.from_nothing |= before.names.is_empty();
            self.former.extend(before.names);
            self.names = Some(shown.clone());
            self.names_set_lsn = input.sample.flush_lsn;
            self.set_at = input.now;
        }
    }

    /// Notes that the key of another leader was found and taken over.
    pub(crate) fn took_key(&mut self, now: MonoTime) {
        self.key_taken_at = Some(now);
    }

    /// Whether that was less than `time` ago.
    pub(crate) fn took_key_within(&self, now: MonoTime, time: Duration) -> bool {
        self.key_taken_at.is_some_and(|at| now.since(at) < time)
    }

    fn settled(&self, now: MonoTime) -> bool {
        now.since(self.set_at) >= SETTLE_TIME
    }

    /// WAL written after the change has passed through this sender, so it has read the new names; or
    /// it has had all the time in the world and no WAL was written.
    fn passed(&self, flush: Lsn, now: MonoTime) -> bool {
        flush > self.names_set_lsn || (flush == self.names_set_lsn && self.settled(now))
    }

    /// Whether commits wait for this standby, and it holds all that were acknowledged before they did.
    ///
    /// The senders of the names before must have read the new ones too: one that has not still
    /// releases commits by the old rule. Going from no names at all to some, the checkpointer has to
    /// switch waiting on, which no session can see, so that case waits in any case.
    pub(crate) fn proves(&self, input: &SyncInput<'_>, candidate: &Candidate) -> bool {
        let counted = matches!(candidate.sync_state.as_str(), "sync" | "quorum");
        let waited_for = !self.from_nothing || self.settled(input.now);
        let former_passed = self.settled(input.now)
            || self.former.iter().all(|name| {
                sender_of(input.sample, name).is_none_or(|s| self.passed(s.flush_lsn, input.now))
            });
        counted && waited_for && former_passed && self.passed(candidate.flush_lsn, input.now)
    }

    /// A reason to do nothing now: work is under way, or PostgreSQL and what was written differ, so
    /// that it is not known for whom commits wait.
    pub(crate) fn unclear(&mut self, input: &SyncInput<'_>) -> Option<SyncStep> {
        self.look(input);
        if input.in_flight.contains(&Task::Sync) || input.in_flight.contains(&Task::Configure) {
            return Some(SyncStep::Wait(SyncWait::Busy));
        }
        let shown = input.sample.synchronous_standby_names.trim();
        if shown == input.written.trim() || parse_names(shown) == parse_names(input.written) {
            self.differs_since = None;
            return None;
        }
        let since = *self.differs_since.get_or_insert(input.now);
        if input.now.since(since) < REWRITE_AFTER {
            return Some(SyncStep::Wait(SyncWait::NamesNotShown));
        }
        self.differs_since = Some(input.now);
        Some(SyncStep::SetNames(input.written.to_owned()))
    }
}

/// For whom PostgreSQL waits, names spelled as in the member keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InForce {
    pub form: Form,
    pub count: u32,
    pub names: Names,
    /// Only the placeholder is named: nothing is acknowledged at all.
    pub blocked: bool,
    /// A star lets anybody acknowledge, which no key can express: worth as little as no names.
    pub anybody: bool,
}

impl InForce {
    pub(crate) fn read(input: &SyncInput<'_>) -> Self {
        let parsed = parse_names(&input.sample.synchronous_standby_names).unwrap_or_default();
        let blocked = parsed
            .names
            .iter()
            .any(|n| n.eq_ignore_ascii_case(STRICT_PLACEHOLDER))
            && parsed.names.len() == 1;
        let anybody = parsed.names.iter().any(|n| n == "*");
        if blocked || anybody {
            return Self {
                blocked,
                anybody,
                ..Self::default()
            };
        }
        let names = parsed
            .names
            .iter()
            .map(|n| spelled(input.view, n))
            .collect();
        Self {
            form: parsed.form,
            count: parsed.count,
            names,
            ..Self::default()
        }
    }

    /// Whether these names are already in force just so. No names have neither count nor form.
    pub(crate) fn is(&self, names: &Names, count: u32, form: Form) -> bool {
        let as_counted = names.is_empty() || (self.count == count && self.form == form);
        self.names == *names && as_counted && !self.blocked && !self.anybody
    }

    /// Whether no commit is acknowledged without this standby.
    pub(super) fn waits_for(&self, name: &String) -> bool {
        let for_all = usize::try_from(self.count).is_ok_and(|count| count >= self.names.len());
        self.blocked || (for_all && self.names.contains(name))
    }
}
