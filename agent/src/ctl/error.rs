//! Why a command could not be carried out. Every one of these ends in one line, `Error: …`, and exit
//! code 1 (`cli.md` 7.6).

use crate::config::ConfigError;
use crate::etcd::EtcdError;
use crate::http::HttpError;
use crate::tls::TlsError;
use std::io;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// A sentence that scripts may know.
    #[error("{0}")]
    Says(String),
    /// The operator ended the dialogue: end of input, or Ctrl-C.
    #[error("Aborted!")]
    Aborted,
    /// What was found is bad, and was said.
    #[error("not everything is as it should be")]
    Failed,
    /// The command line makes no sense; clap's text and exit code 2.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// etcd.
    #[error("failed to")]
    Etcd(#[from] EtcdError),
    /// A write that may or may not have happened.
    #[error("the write to etcd may or may not have happened: {0}")]
    Ambiguous(String),
    /// TLS files of the REST client.
    #[error("failed to")]
    Tls(#[from] TlsError),
    /// A member's agent does not answer.
    #[error("member {member} is not accessible")]
    Member {
        /// Which.
        member: String,
        /// Why.
        source: HttpError,
    },
    /// The terminal or a file.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it did not work.
        source: io::Error,
    },
}

impl CtlError {
    /// What to do next, where one can know.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Etcd(EtcdError::Unreachable { .. } | EtcdError::NoEndpoints) => Some(
                "see that etcd runs and that section etcd3 of the configuration (-c FILE) names it, or name \
                 it with -d etcd3://HOST:2379/NAMESPACE",
            ),
            Self::Etcd(EtcdError::Credentials(_)) => Some(
                "set etcd3.username and etcd3.password, or PATRONI_ETCD3_USERNAME and _PASSWORD",
            ),
            Self::Ambiguous(_) => Some(
                "look with show-config or list whether it has happened before it is done once more",
            ),
            Self::Member { source, .. } => Some(match source {
                HttpError::Url(_) => {
                    "its agent has published no address: see restapi.connect_address there"
                }
                HttpError::Connect { .. } => {
                    "see that its agent runs there and that its port can be reached from here; `gardenctl \
                     doctor` asks all of them. Members after it were not asked"
                }
                HttpError::Broken(_) | HttpError::Timeout(_) => {
                    "the request may have been carried out: look with `gardenctl list` before it is repeated"
                }
            }),
            _ => None,
        }
    }
}

/// What commands return.
pub type CtlResult<T> = Result<T, CtlError>;

/// An error with the sentence as its text.
pub fn says<T>(text: impl Into<String>) -> CtlResult<T> {
    Err(CtlError::Says(text.into()))
}

/// An error and its causes in one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        // "failed to" is followed by what failed.
        text.push_str(if text.ends_with("failed to") {
            " "
        } else {
            ": "
        });
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_request_that_may_have_been_carried_out_is_not_simply_repeated() {
        let lost = |source| CtlError::Member {
            member: String::from("a"),
            source,
        };
        let advice = lost(HttpError::Timeout(Duration::ZERO)).advice();
        assert!(advice.is_some_and(|text| text.contains("before it is repeated")));
        let refused = HttpError::Connect {
            address: String::from("a:1"),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        assert!(
            lost(refused)
                .advice()
                .is_some_and(|text| text.contains("doctor"))
        );
        assert_eq!(CtlError::Says(String::from("x")).advice(), None);
    }
}
