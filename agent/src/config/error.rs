//! Why a configuration cannot be used. Each message names the source, the key and what was expected;
//! none quotes a value that may be a secret.

use super::yaml::YamlError;
use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file, no text, no variables.
    #[error(
        "Config is empty. Expected a configuration file or directory as argument, YAML in \
         PATRONI_CONFIGURATION, or PATRONI_* variables"
    )]
    Empty,
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a file nor a directory.
    #[error("config path {0} is neither directory nor file")]
    InvalidPath(PathBuf),
    /// The text is no YAML of the dialect.
    #[error("{origin}: {error}")]
    Yaml {
        /// File name, or variable name.
        origin: String,
        /// What and where.
        error: YamlError,
    },
    /// The text is YAML, but no mapping.
    #[error("{0} does not contain a mapping: invalid config file")]
    NotAMapping(String),
    /// A key is missing.
    #[error("{key} is not set in {origin}: expected {expected}")]
    Missing {
        /// Where it was looked for.
        origin: String,
        /// Dotted path.
        key: String,
        /// What it should be.
        expected: String,
    },
    /// No store at all. The first line is Patroni's.
    #[error(
        "Can not find suitable configuration of distributed configuration store\n\
         Expected a section etcd3 with host or hosts in {0}, or PATRONI_ETCD3_HOST"
    )]
    NoStore(String),
    /// A value cannot be used.
    #[error("{origin}: {key}: expected {expected}")]
    Value {
        /// Where it comes from.
        origin: String,
        /// Dotted path.
        key: String,
        /// What it should have been.
        expected: String,
    },
    /// A section of something that this agent does not support.
    #[error("{origin}: section {key}: {why}")]
    Unsupported {
        /// Where it comes from.
        origin: String,
        /// The section.
        key: String,
        /// What to do about it.
        why: String,
    },
    /// A dynamic document that cannot be applied; the one before it stays in force.
    #[error("dynamic configuration: {key}: expected {expected}")]
    Dynamic {
        /// Dotted path.
        key: String,
        /// What it should have been.
        expected: String,
    },
    /// `-d` names a kind of store that nobody knows.
    #[error("Unknown dcs scheme: {0}")]
    UnknownStore(String),
    /// The control tool was given a file that is not there.
    #[error(
        "Provided config file {0} not existing or no read rights. Check the -c/--config-file parameter"
    )]
    ProvidedFile(PathBuf),
}

impl ConfigError {
    /// The key that the error is about.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Missing { key, .. }
            | Self::Value { key, .. }
            | Self::Unsupported { key, .. }
            | Self::Dynamic { key, .. } => Some(key),
            Self::NoStore(_) => Some("etcd3"),
            _ => None,
        }
    }

    /// The error and its causes in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
