//! The local configuration: the files with the environment over them, as written.

use super::effective;
use super::error::ConfigError;
use super::known;
use super::source::{Origins, Source};
use super::value::{python_int, truthy};
use super::{AgentConfig, ControlConfig};
use proto::config::Timing;
use serde_json::{Map, Value};

/// The merged document and where its keys came from. [`LocalConfig::effective`] gives it a meaning.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    doc: Document,
    source: Source,
    origins: Origins,
    notes: Vec<String>,
}

/// The document holds passwords, so it does not show itself.
#[derive(Clone)]
struct Document(Map<String, Value>);

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Document({:?})", self.0.keys().collect::<Vec<_>>())
    }
}

impl LocalConfig {
    pub(super) fn new(
        doc: Map<String, Value>,
        source: Source,
        origins: Origins,
        mut notes: Vec<String>,
    ) -> Self {
        notes.extend(known::unknown_keys(&doc, &origins));
        Self {
            doc: Document(doc),
            source,
            origins,
            notes,
        }
    }

    /// The merged document as written. It holds passwords.
    pub fn doc(&self) -> &Map<String, Value> {
        &self.doc.0
    }

    /// Where it was read from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Sentences about the text itself: unknown keys, variables that could not be used.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether a reload brought nothing new, by Patroni's idea of equal.
    pub fn same(&self, other: &Self) -> bool {
        super::merge::same_map(self.doc(), other.doc())
    }

    /// The meaning of this configuration over a dynamic document, and sentences for the log: those of
    /// [`LocalConfig::notes`] and those about values that were adjusted or left out. The caller logs
    /// each sentence once, not again on every change of the dynamic document.
    ///
    /// Fails with [`ConfigError::Dynamic`] when the dynamic document must be refused as a whole.
    pub fn effective(
        &self,
        dynamic: &Map<String, Value>,
    ) -> Result<(AgentConfig, Vec<String>), ConfigError> {
        let (config, warnings) = effective::build(self.doc(), dynamic, &self.origins)?;
        Ok((config, self.notes.iter().cloned().chain(warnings).collect()))
    }

    /// What the control tool needs; unlike [`LocalConfig::effective`] it asks for neither a name nor a
    /// PostgreSQL section.
    pub fn control(&self) -> Result<(ControlConfig, Vec<String>), ConfigError> {
        effective::control(self.doc(), &self.origins)
    }

    /// `-d`: a store on the control tool's command line, in place of every configured one. The form is
    /// `[scheme://][host][:port][/namespace]`; `etcd` and no scheme mean etcd's v3 API, since there
    /// is no other here.
    pub fn use_store(&mut self, url: &str) -> Result<(), ConfigError> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("etcd3", url));
        match scheme {
            "etcd" | "etcd3" => {}
            "consul" | "zookeeper" | "exhibitor" => {
                return Err(ConfigError::Unsupported {
                    origin: String::from("--dcs"),
                    key: scheme.to_owned(),
                    why: String::from("only etcd3 is supported as the cluster's store"),
                });
            }
            unknown => return Err(ConfigError::UnknownStore(unknown.to_owned())),
        }
        let (address, namespace) = match rest.split_once('/') {
            Some((address, namespace)) => (address, Some(namespace)),
            None => (rest, None),
        };
        let address = match address {
            "" => String::from("localhost"),
            port if port.starts_with(':') => format!("localhost{port}"),
            address => address.to_owned(),
        };
        let doc = &mut self.doc.0;
        doc.retain(|key, _| {
            !matches!(
                key.as_str(),
                "consul" | "etcd" | "etcd3" | "exhibitor" | "zookeeper"
            )
        });
        doc.insert(
            String::from("etcd3"),
            serde_json::json!({ "host": address }),
        );
        if let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) {
            doc.insert(String::from("namespace"), Value::from(namespace));
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Where PGDATA is, which must be known before the cached dynamic document can be read.
    pub fn data_dir(&self) -> Option<std::path::PathBuf> {
        let path = self.doc().get("postgresql")?.get("data_dir")?.as_str()?;
        (!path.is_empty()).then(|| path.into())
    }

    /// `bootstrap.dcs` with its timeouts clamped: the first dynamic document. `None` without a
    /// `bootstrap` section, when this member must never initialise a cluster.
    pub fn bootstrap_dcs(&self) -> Option<Map<String, Value>> {
        let bootstrap = self.doc().get("bootstrap")?;
        let dcs = bootstrap
            .get("dcs")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        truthy(bootstrap).then(|| clamp(dcs))
    }
}

/// Adjusts the three timeouts as Patroni does before `bootstrap.dcs` becomes `/config`
/// (`configuration.md` 12.3); the others stay as written.
pub fn clamp(mut dcs: Map<String, Value>) -> Map<String, Value> {
    let given = |key: &str, default: i64| dcs.get(key).and_then(python_int).unwrap_or(default);
    let written = [
        ("ttl", given("ttl", 30)),
        ("loop_wait", given("loop_wait", 10)),
        ("retry_timeout", given("retry_timeout", 10)),
    ];
    let [(_, ttl), (_, loop_wait), (_, retry_timeout)] = written;
    let (timing, _) = Timing::new(ttl, loop_wait, retry_timeout);
    let clamped = [timing.ttl(), timing.loop_wait(), timing.retry_timeout()];
    for ((key, before), after) in written.into_iter().zip(clamped) {
        if u64::try_from(before) != Ok(after.as_secs()) {
            dcs.insert(key.to_owned(), Value::from(after.as_secs()));
        }
    }
    dcs
}
