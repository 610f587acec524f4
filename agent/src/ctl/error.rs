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
