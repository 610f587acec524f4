//! The differences that are meant.

/// One field of one answer that is not the same.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The state that both clusters were in.
    pub state: String,
    /// Who was asked, or `tool`.
    pub member: String,
    /// What.
    pub request: String,
    /// Which part of the answer.
    pub field: String,
    /// The released program's.
    pub theirs: String,
    /// Ours.
    pub ours: String,
}

/// Which differences one sentence explains. Empty texts fit everything; `*` at an end of a text
/// stands for any rest.
struct Rule {
    state: &'static str,
    member: &'static str,
    request: &'static str,
    field: &'static str,
    theirs: &'static str,
    ours: &'static str,
    why: &'static str,
}

/// Fits everything; rules say what they are narrower in.
const ANY: Rule = Rule {
    state: "",
    member: "",
    request: "",
    field: "",
    theirs: "",
    ours: "",
    why: "",
};

const LATER_SERIES: &str = "series that the documentation of Patroni has and this release has not";
const ITS_NEXT_START: &str =
    "a server that is down waits for no restart: its next start takes the setting over";
const TAKEN_OVER: &str = "the restart as a standby leader has taken the waiting setting over";
const LAST_VIEW: &str = "without etcd ours answers from the last view, Patroni closes the connection without \
                         a word";

const RULES: &[Rule] = &[
    Rule {
        field: "metric garden_agent_*",
        theirs: "-",
        why: "series of our own, under our own prefix",
        ..ANY
    },
    Rule {
        field: "metric patroni_failsafe_member*",
        theirs: "-",
        why: LATER_SERIES,
        ..ANY
    },
    Rule {
        field: "metric patroni_failsafe_mode_enabled*",
        theirs: "-",
        why: LATER_SERIES,
        ..ANY
    },
    Rule {
        field: "metric patroni_failover_priority*",
        theirs: "-",
        why: LATER_SERIES,
        ..ANY
    },
    Rule {
        field: "help metric*",
        why: "help texts are our own words",
        ..ANY
    },
    Rule {
        field: "header server",
        theirs: "-",
        why: "answers that are a status line alone have a Server header here",
        ..ANY
    },
    Rule {
        field: "page Error code explanation",
        why: "the explanation in an error page is in our own words",
        ..ANY
    },
    Rule {
        request: "GET /replica?replication_state=*",
        theirs: "200",
        ours: "503",
        why: "replication_state filters, as the documentation of Patroni says; this release lets every \
              replica pass",
        ..ANY
    },
    Rule {
        state: "synchronous_mode \"quorum\"",
        field: ".replication[0].sync_state",
        theirs: "\"sync\"",
        ours: "\"quorum\"",
        why: "ANY 1 of one name is the same as FIRST 1 of it",
        ..ANY
    },
    Rule {
        state: "stopped in pause",
        field: "*pending_restart*",
        why: ITS_NEXT_START,
        ..ANY
    },
    Rule {
        state: "crashed in pause",
        field: "*pending_restart*",
        why: ITS_NEXT_START,
        ..ANY
    },
    Rule {
        state: "stopped in pause",
        field: "*keys",
        why: ITS_NEXT_START,
        ..ANY
    },
    Rule {
        state: "crashed in pause",
        field: "*keys",
        why: ITS_NEXT_START,
        ..ANY
    },
    Rule {
        state: "standby cluster",
        field: "*pending_restart*",
        why: TAKEN_OVER,
        ..ANY
    },
    Rule {
        state: "standby cluster",
        field: "*keys",
        why: TAKEN_OVER,
        ..ANY
    },
    Rule {
        state: "failsafe mode is active",
        request: "GET /cluster",
        why: LAST_VIEW,
        ..ANY
    },
    Rule {
        state: "failsafe mode is active",
        request: "GET /config*",
        why: LAST_VIEW,
        ..ANY
    },
    Rule {
        state: "failsafe mode is active",
        request: "GET /history",
        why: LAST_VIEW,
        ..ANY
    },
    Rule {
        state: "failsafe mode is active",
        member: "node1",
        field: "*failsafe_mode_is_active",
        why: "ours says so on the primary, too, which is the one that lives by it",
        ..ANY
    },
    Rule {
        state: "failsafe mode is active",
        member: "node1",
        field: " keys",
        why: "ours says so on the primary, too, which is the one that lives by it",
        ..ANY
    },
];

/// The sentence that explains it, if any does.
pub fn why(one: &Difference) -> Option<&'static str> {
    let fits =
        |wanted: &str, found: &str| match (wanted.strip_prefix('*'), wanted.strip_suffix('*')) {
            (Some(_), Some(_)) => found.contains(wanted.trim_matches('*')),
            (Some(end), None) => found.ends_with(end),
            (None, Some(start)) => found.starts_with(start),
            (None, None) => wanted.is_empty() || wanted == found,
        };
    RULES
        .iter()
        .find(|rule| {
            fits(rule.state, &one.state)
                && fits(rule.member, &one.member)
                && fits(rule.request, &one.request)
                && fits(rule.field, &one.field)
                && fits(rule.theirs, &one.theirs)
                && fits(rule.ours, &one.ours)
        })
        .map(|rule| rule.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_of_ours_is_explained_and_a_missing_one_of_theirs_is_not() {
        let difference = |field: &str, theirs: &str, ours: &str| Difference {
            state: "running".to_owned(),
            member: "node1".to_owned(),
            request: "GET /metrics".to_owned(),
            field: field.to_owned(),
            theirs: theirs.to_owned(),
            ours: ours.to_owned(),
        };
        assert!(why(&difference("metric garden_agent_x", "-", "{} 1")).is_some());
        assert!(why(&difference("metric patroni_primary", "{} 1", "-")).is_none());
    }
}
