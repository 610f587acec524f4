//! Every key path, built and parsed in one place (`dcs-layout.md` 1 and 2).

use crate::ids::MemberName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A key below the cluster's prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// Who leads; on the leader's etcd lease.
    Leader,
    /// What a member says of itself; on its etcd lease.
    Member(MemberName),
    /// Empty while bootstrapping, then the system identifier.
    Initialize,
    /// The dynamic configuration.
    Config,
    /// The leader's position, its slots, and the slots to retain.
    Status,
    /// The position alone, for members older than 2.1.
    LegacyOptime,
    /// One line for each finished timeline.
    History,
    /// A switchover or failover that was asked for.
    Failover,
    /// Who may be promoted without losing an acknowledged commit.
    Sync,
    /// Whom the leader must reach while etcd is away.
    Failsafe,
    /// Ours: the record of a native cluster, which is the lease itself (`safety.md` 2).
    Record,
    /// Ours: a member's promise to follow an older epoch no more (`DESIGN.md` 3).
    Fence(MemberName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Member(name) => write!(f, "members/{name}"),
            Self::Initialize => f.write_str("initialize"),
            Self::Config => f.write_str("config"),
            Self::Status => f.write_str("status"),
            Self::LegacyOptime => f.write_str("optime/leader"),
            Self::History => f.write_str("history"),
            Self::Failover => f.write_str("failover"),
            Self::Sync => f.write_str("sync"),
            Self::Failsafe => f.write_str("failsafe"),
            Self::Record => f.write_str("record"),
            Self::Fence(name) => write!(f, "fence/{name}"),
        }
    }
}

impl Key {
    /// The key that a path below the cluster's prefix names; `None` for what is not ours to read.
    pub fn parse(suffix: &str) -> Option<Self> {
        let named = |rest: &str| (!rest.is_empty() && !rest.contains('/')).then(|| rest.into());
        if let Some(rest) = suffix.strip_prefix("members/") {
            return named(rest).map(Self::Member);
        }
        if let Some(rest) = suffix.strip_prefix("fence/") {
            return named(rest).map(Self::Fence);
        }
        Some(match suffix {
            "leader" => Self::Leader,
            "initialize" => Self::Initialize,
            "config" => Self::Config,
            "status" => Self::Status,
            "optime/leader" => Self::LegacyOptime,
            "history" => Self::History,
            "failover" => Self::Failover,
            "sync" => Self::Sync,
            "failsafe" => Self::Failsafe,
            "record" => Self::Record,
            _ => return None,
        })
    }
}

/// The part of etcd that belongs to one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    prefix: String,
}

impl Keyspace {
    /// `/{namespace}/{scope}/` with runs of `/` collapsed, so that `service`, `/service` and
    /// `/service/` mean the same.
    pub fn new(namespace: &str, scope: &str) -> Self {
        let mut prefix = String::from("/");
        for part in namespace
            .split('/')
            .chain(scope.split('/'))
            .filter(|p| !p.is_empty())
        {
            prefix.push_str(part);
            prefix.push('/');
        }
        Self { prefix }
    }

    /// The prefix of every range, watch and delete, with its trailing `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The full path of a key.
    pub fn path(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The part of a full path below the prefix.
    pub fn suffix<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(self.prefix.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_collapse() {
        for namespace in ["service", "/service", "/service/", "//service//"] {
            assert_eq!(
                Keyspace::new(namespace, "batman").prefix(),
                "/service/batman/"
            );
        }
    }

    #[test]
    fn keys_round_trip() {
        let all = [
            Key::Leader,
            Key::Member("a".into()),
            Key::Initialize,
            Key::Config,
            Key::Status,
            Key::LegacyOptime,
            Key::History,
            Key::Failover,
            Key::Sync,
            Key::Failsafe,
            Key::Record,
            Key::Fence("a".into()),
        ];
        for key in all {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for foreign in ["", "members/", "members/a/b", "x", "leader/", "fence/"] {
            assert_eq!(Key::parse(foreign), None, "{foreign:?}");
        }
    }
}
