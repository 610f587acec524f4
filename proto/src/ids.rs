//! Names and numbers of the domain, parsed once and trusted afterwards.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name that strict synchronous mode writes when no standby may be counted. No member may bear it
/// (`ha-behaviour.md` 16.3).
pub const STRICT_PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// The name of a member: `name` in the configuration, the last part of its key in etcd, and its
/// `application_name` on replication connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(String);

impl MemberName {
    /// Wraps a name that was read from the configuration or from etcd.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as it is written in etcd.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether two names mean the same synchronous standby. PostgreSQL folds the case of unquoted
    /// names, so the `sync` key is compared without regard to it (`dcs-layout.md` 1).
    pub fn same_standby(&self, other: &str) -> bool {
        self.0.eq_ignore_ascii_case(other)
    }

    /// The replication slot that belongs to this member (`dcs-layout.md` 1): lower case, `-` and `.`
    /// become `_`, other characters `u` and their code point, at most 63 characters.
    pub fn slot_name(&self) -> String {
        let mut slot = String::with_capacity(self.0.len());
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", other as u32)),
            }
        }
        slot.truncate(63);
        slot
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// The identifier that `initdb` gave to the data directory, and so to the whole cluster.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SystemId(pub u64);

impl SystemId {
    /// Parses the decimal form. At least ten digits, as every identifier of a real cluster has
    /// (`ha-behaviour.md` 3.3): anything else in `/initialize` is not an identifier.
    pub fn parse(text: &str) -> Option<Self> {
        let all_digits = text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit());
        all_digits.then(|| text.parse().ok().map(Self)).flatten()
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// An etcd lease. Zero means "no lease".
    LeaseId(i64)
);
number!(
    /// A revision of the etcd store, or the revision at which a key was created or last changed.
    Revision(i64)
);
number!(
    /// One tenure of leadership in a native cluster. Strictly increasing (S4).
    Epoch(u64)
);
number!(
    /// One job on the local PostgreSQL. Late results of an older job are recognised by it (I6).
    JobId(u64)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_follow_the_published_vectors() {
        let slot = |name: &str| MemberName::new(name).slot_name();
        assert_eq!(slot("Node-1.example"), "node_1_example");
        assert_eq!(slot("a b"), "au0032b");
        assert_eq!(slot("N@de"), "nu0064de");
        assert_eq!(slot(&"x".repeat(70)), "x".repeat(63));
    }

    #[test]
    fn system_ids_have_at_least_ten_digits() {
        assert_eq!(
            SystemId::parse("7519283746501928374"),
            Some(SystemId(7_519_283_746_501_928_374))
        );
        for bad in [
            "",
            "123456789",
            "12345678901x",
            "-7519283746501928374",
            "99999999999999999999",
        ] {
            assert_eq!(SystemId::parse(bad), None, "{bad:?}");
        }
    }
}
