//! What can go wrong with etcd, and the few answers that mean something definite.
//!
//! Only three answers end a lease: "lease not found", "compare failed", and a key that another holds
//! (`safety.md` rule 8, `DESIGN.md`). Everything else, known or not, is transient: the endpoint is
//! left, the request is repeated where that is harmless, and the outcome of a write is unknown.

use std::path::PathBuf;
use std::time::Duration;

/// Why an operation on etcd did not work. The texts fit after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// Nothing to connect to.
    #[error("find etcd: no endpoint is configured in section etcd3")]
    NoEndpoints,
    /// Discovery by SRV records was asked for, and nothing else.
    #[error(
        "find etcd: etcd3.srv ({domain}) needs DNS SRV records, which this program does not look up; \
         list the endpoints in etcd3.hosts"
    )]
    Srv {
        /// The configured domain.
        domain: String,
    },
    /// A TLS file could not be read.
    #[error("read etcd3.{setting} {path}")]
    TlsFile {
        /// `cacert`, `cert` or `key`.
        setting: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A client certificate without its key, or the other way round.
    #[error("use TLS for etcd: etcd3.key is set without etcd3.cert")]
    KeyWithoutCert,
    /// The thread of the keeper could not be started.
    #[error("start the lease keeper")]
    Keeper(#[source] std::io::Error),
    /// User name and password were refused.
    #[error("log in to etcd as the user in etcd3.username: {0}")]
    Credentials(String),
    /// No endpoint gave an answer in time.
    #[error("reach etcd within {limit:?}: {last}")]
    Unreachable {
        /// How long it was tried.
        limit: Duration,
        /// What the last endpoint said, or did not say.
        last: String,
    },
    /// Endpoints answer, but for another etcd cluster than before (S8, S23).
    #[error("reach etcd: its endpoints answer for cluster {is:x}, not for {was:x}")]
    OtherCluster {
        /// The cluster that we know.
        was: u64,
        /// The one that answered.
        is: u64,
    },
}

/// What one attempt on one endpoint came to, when it was not an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// "Requested lease not found": definite, nothing was done.
    LeaseGone,
    /// The token is missing, expired or refused: log in and repeat. Nothing was done.
    Login(String),
    /// Authentication is switched off in etcd. Nothing was done.
    AuthOff,
    /// User name and password were refused. Nothing was done.
    Credentials(String),
    /// The endpoint belongs to another etcd cluster.
    Other {
        /// Its cluster.
        is: u64,
    },
    /// Anything else, and silence. It may have been done.
    Away(String),
}

impl Fault {
    /// For people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::LeaseGone => String::from("the lease does not exist"),
            Self::AuthOff => String::from("authentication is not enabled"),
            Self::Other { is } => format!("the endpoint belongs to etcd cluster {is:x}"),
            Self::Login(text) | Self::Credentials(text) | Self::Away(text) => text.clone(),
        }
    }
}

/// gRPC status codes (`google.rpc.Code`).
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// Sorts an error of the client library. The texts are etcd's own (`api/v3rpc/rpctypes/error.go`);
/// they are matched as parts, since proxies and versions put words around them.
pub(crate) fn classify(err: &etcd_client::Error) -> Fault {
    match err {
        etcd_client::Error::GRpcStatus(status) => {
            classify_status(status.code() as i32, status.message())
        }
        etcd_client::Error::LeaseKeepAliveError(text) if text.contains("lease not found") => {
            Fault::LeaseGone
        }
        other => Fault::Away(other.to_string()),
    }
}

/// The same for a code and its message.
pub(crate) fn classify_status(code: i32, message: &str) -> Fault {
    if message.contains("requested lease not found") {
        return Fault::LeaseGone;
    }
    if message.contains("authentication is not enabled") {
        return Fault::AuthOff;
    }
    if code == INVALID_ARGUMENT && message.contains("authentication failed") {
        return Fault::Credentials(message.to_owned());
    }
    let login = [
        "invalid auth token",
        "user name is empty",
        "revision of auth store is old",
        "permission denied",
    ];
    if matches!(code, UNAUTHENTICATED | PERMISSION_DENIED)
        || login.iter().any(|text| message.contains(text))
    {
        return Fault::Login(message.to_owned());
    }
    Fault::Away(format!("{message} (gRPC {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_missing_lease_is_definite() {
        let gone = classify_status(5, "etcdserver: requested lease not found");
        assert_eq!(gone, Fault::LeaseGone);
        let odd = [
            (2, "etcdserver: not a primary lessor"),
            (4, "context deadline exceeded"),
            (5, "etcdserver: something else not found"),
            (8, "etcdserver: mvcc: database space exceeded"),
            (8, "etcdserver: too many requests"),
            (9, "etcdserver: not leader"),
            (14, "etcdserver: leader changed"),
            (14, "etcdserver: request timed out"),
        ];
        for (code, text) in odd {
            assert!(
                matches!(classify_status(code, text), Fault::Away(_)),
                "{text}"
            );
        }
    }

    #[test]
    fn refused_tokens_lead_to_a_login_and_refused_passwords_do_not() {
        let login = [
            (16, "etcdserver: invalid auth token"),
            (3, "etcdserver: user name is empty"),
            (7, "etcdserver: permission denied"),
            (3, "etcdserver: revision of auth store is old"),
        ];
        for (code, text) in login {
            assert!(
                matches!(classify_status(code, text), Fault::Login(_)),
                "{text}"
            );
        }
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert!(matches!(classify_status(3, wrong), Fault::Credentials(_)));
        let off = "etcdserver: authentication is not enabled";
        assert_eq!(classify_status(9, off), Fault::AuthOff);
    }
}
