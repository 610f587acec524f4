//! Where the configuration comes from, and reading it (`configuration.md` 1).

use super::env::{self, Captured};
use super::error::ConfigError;
use super::local::LocalConfig;
use super::{merge, yaml};
use figment::value::{Dict, Map as FigmentMap};
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// The source that was chosen at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One YAML file, read again on each reload.
    File(PathBuf),
    /// All `*.yml` and `*.yaml` of a directory, in the order of their names.
    Directory(PathBuf),
    /// The text of `PATRONI_CONFIGURATION`; every other variable is disregarded.
    Text,
    /// The `PATRONI_*` variables alone.
    Environment,
}

impl Source {
    /// How messages name it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Directory(path) => path.display().to_string(),
            Self::Text => String::from("PATRONI_CONFIGURATION"),
            Self::Environment => String::from("the PATRONI_* environment"),
        }
    }

    /// Whether a reload can bring anything new.
    pub fn is_reloadable(&self) -> bool {
        matches!(self, Self::File(_) | Self::Directory(_))
    }
}

/// One layer: a document and its name. Figment keeps which layer each key came from, for messages; the
/// values themselves are merged by our own rule, since figment sorts keys and does not know that a
/// null deletes.
struct Layer {
    name: String,
    file: Option<PathBuf>,
    doc: Map<String, Value>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.file {
            Some(path) => Metadata::from(self.name.clone(), path.as_path()),
            None => Metadata::named(self.name.clone()),
        }
    }

    fn data(&self) -> Result<FigmentMap<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(Dict::from_iter(
            self.doc
                .iter()
                .map(|(key, value)| (key.clone(), figment_value(value))),
        )))
    }
}

/// Structure only: figment is asked where a key came from, never for a value, so secrets stay out.
fn figment_value(value: &Value) -> figment::value::Value {
    match value {
        Value::Object(map) => figment::value::Value::from(Dict::from_iter(
            map.iter()
                .map(|(key, value)| (key.clone(), figment_value(value))),
        )),
        _ => figment::value::Value::from(true),
    }
}

/// Reads the configuration from the source chosen at start, as often as wanted.
#[derive(Clone)]
pub struct Loader {
    source: Source,
    environment: Captured,
}

/// The variables hold passwords, so only the source shows.
impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Chooses the source: a path that exists, else `PATRONI_CONFIGURATION`, else the variables.
    /// A path that does not exist is not an error by itself.
    pub fn new(path: Option<&Path>, environment: Captured) -> Result<Self, ConfigError> {
        let text = environment
            .get("PATRONI_CONFIGURATION")
            .is_some_and(|t| !t.trim().is_empty());
        let source = match path.map(|p| (p, fs::metadata(p))) {
            Some((path, Ok(found))) if found.is_file() => Source::File(path.to_owned()),
            Some((path, Ok(found))) if found.is_dir() => Source::Directory(path.to_owned()),
            Some((path, Ok(_))) => return Err(ConfigError::InvalidPath(path.to_owned())),
            _ if text => Source::Text,
            _ => Source::Environment,
        };
        Ok(Self {
            source,
            environment,
        })
    }

    /// The control tool's source: the file that was named, which must exist, else
    /// `patronictl.yaml` of the user's configuration directory, which may not (`cli.md` 2).
    pub fn for_control(named: Option<&Path>, environment: Captured) -> Result<Self, ConfigError> {
        match named {
            Some(path) if fs::metadata(path).is_err() => {
                Err(ConfigError::ProvidedFile(path.to_owned()))
            }
            Some(path) => Self::new(Some(path), environment),
            None => Self::new(default_control_file().as_deref(), environment),
        }
    }

    /// The source.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Reads the source again. Also fails when the result is empty, unless it is for the control tool
    /// ([`Loader::load_any`]).
    pub fn load(&self) -> Result<LocalConfig, ConfigError> {
        let local = self.load_any()?;
        if local.doc().is_empty() {
            Err(ConfigError::Empty)
        } else {
            Ok(local)
        }
    }

    /// [`Loader::load`], but an empty configuration is fine.
    pub fn load_any(&self) -> Result<LocalConfig, ConfigError> {
        let mut layers = self.layers()?;
        let mut notes = Vec::new();
        let text_is_empty =
            self.source == Source::Text && layers.iter().all(|layer| layer.doc.is_empty());
        if self.source != Source::Text || text_is_empty {
            let (doc, unusable) = env::layer(&self.environment);
            notes = unusable;
            layers.push(Layer {
                name: Source::Environment.name(),
                file: None,
                doc,
            });
        }
        let mut doc = Map::new();
        let mut origins = Figment::new();
        for layer in layers {
            merge::patch(&mut doc, &layer.doc);
            origins = origins.merge(layer);
        }
        let origins = Origins {
            figment: origins,
            variables: self.environment.keys().cloned().collect(),
            whole: self.source.name(),
        };
        Ok(LocalConfig::new(doc, self.source.clone(), origins, notes))
    }

    fn layers(&self) -> Result<Vec<Layer>, ConfigError> {
        match &self.source {
            Source::File(path) => Ok(vec![read_file(path)?]),
            Source::Directory(path) => list_directory(path)?.iter().map(|p| read_file(p)).collect(),
            Source::Text => {
                let text = self.environment.get("PATRONI_CONFIGURATION");
                let text = text.map(String::as_str).unwrap_or_default();
                Ok(vec![parse_layer(self.source.name(), None, text)?])
            }
            Source::Environment => Ok(Vec::new()),
        }
    }
}

fn default_control_file() -> Option<PathBuf> {
    let absolute = |dir: PathBuf| Some(dir).filter(|dir| dir.is_absolute());
    let base = std::env::var_os("XDG_CONFIG_HOME").and_then(|dir| absolute(dir.into()));
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(base.join("patroni").join("patronictl.yaml"))
}

/// `*.yml` and `*.yaml` directly inside, sorted by their bytes.
fn list_directory(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if (name.ends_with(".yml") || name.ends_with(".yaml")) && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// A configuration larger than this is a mistake (a log file, a device).
const FILE_LIMIT: u64 = 16 << 20;

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_LIMIT {
        return Err(failed(std::io::Error::other(format!(
            "{length} bytes are too many for a configuration"
        ))));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    parse_layer(path.display().to_string(), Some(path.to_owned()), &text)
}

fn parse_layer(name: String, file: Option<PathBuf>, text: &str) -> Result<Layer, ConfigError> {
    match yaml::from_str(text) {
        Ok(Value::Object(doc)) => Ok(Layer { name, file, doc }),
        // An empty text counts as absent; an empty file does not.
        Ok(Value::Null) if file.is_none() => Ok(Layer {
            name,
            file,
            doc: Map::new(),
        }),
        Ok(_) => Err(ConfigError::NotAMapping(name)),
        Err(error) => Err(ConfigError::Yaml {
            origin: name,
            error,
        }),
    }
}

/// Knows which file or variable a key came from.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    figment: Figment,
    variables: Vec<String>,
    whole: String,
}

impl Origins {
    /// The file or variable that set a key, else the whole source.
    pub(super) fn of(&self, dotted: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(dotted) else {
            return self.whole.clone();
        };
        if metadata.name == Source::Environment.name() {
            let path: Vec<&str> = dotted.split('.').collect();
            if let Some(name) = env::variable_of(&self.variables, &path) {
                return name;
            }
        }
        metadata.name.to_string()
    }
}

#[cfg(test)]
mod tests;
