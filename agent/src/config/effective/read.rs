//! Reading typed values out of a section, with messages that name source and key.

use crate::config::error::ConfigError;
use crate::config::secret::Secret;
use crate::config::source::Origins;
use crate::config::value::{parse_int, python_text, truthy};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a build collects on the way: sentences for the log.
#[derive(Debug, Default)]
pub(super) struct Notes(RefCell<Vec<String>>);

impl Notes {
    pub(super) fn push(&self, note: impl Into<String>) {
        self.0.borrow_mut().push(note.into());
    }

    pub(super) fn into_inner(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// One mapping of the configuration.
pub(super) struct Section<'a> {
    pub(super) map: Map<String, Value>,
    pub(super) path: String,
    pub(super) origins: &'a Origins,
    pub(super) notes: &'a Notes,
    /// For merged sections: the keys that the local layer has; the others are dynamic.
    pub(super) local: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// A section of the local document. Absent or falsy is an empty one.
    pub(super) fn of(
        doc: &Map<String, Value>,
        name: &str,
        origins: &'a Origins,
        notes: &'a Notes,
    ) -> Result<Self, ConfigError> {
        let map = match doc.get(name) {
            Some(Value::Object(map)) => map.clone(),
            Some(value) if truthy(value) => {
                return Err(ConfigError::Value {
                    origin: origins.of(name),
                    key: name.to_owned(),
                    expected: String::from("a mapping"),
                });
            }
            _ => Map::new(),
        };
        Ok(Self {
            map,
            path: name.to_owned(),
            origins,
            notes,
            local: None,
        })
    }

    /// A mapping inside this section; absent or falsy is an empty one.
    pub(super) fn sub(&self, key: &str) -> Result<Self, ConfigError> {
        let map = match self.map.get(key) {
            Some(Value::Object(map)) => map.clone(),
            Some(value) if truthy(value) => return Err(self.wrong(key, "a mapping")),
            _ => Map::new(),
        };
        Ok(Self {
            map,
            path: self.key(key),
            origins: self.origins,
            notes: self.notes,
            local: None,
        })
    }

    /// The dotted path of a key.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Where a key came from.
    pub(super) fn origin(&self, key: &str) -> String {
        match self.local {
            Some(local) if !local.contains_key(key) && self.map.contains_key(key) => {
                String::from("dynamic configuration")
            }
            _ => self.origins.of(&self.key(key)),
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            origin: self.origin(key),
            key: self.key(key),
            expected: expected.into(),
        }
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Missing {
            origin: self.origin(key),
            key: self.key(key),
            expected: expected.to_owned(),
        }
    }

    /// Notes that a value is not used.
    pub(super) fn unusable(&self, key: &str, expected: &str, instead: &str) {
        let (origin, key) = (self.origin(key), self.key(key));
        self.notes
            .push(format!("{origin}: {key}: expected {expected}; {instead}"));
    }

    /// The value, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A text; numbers and booleans count by their printed form, an empty one as absent.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(_) | Value::Object(_)) => Err(self.wrong(key, "a text")),
            Some(value) => Ok(Some(python_text(value)).filter(|text| !text.is_empty())),
        }
    }

    pub(super) fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text(key)?.map(PathBuf::from))
    }

    /// A password. A number is accepted, but YAML may have changed its text already.
    pub(super) fn secret(&self, key: &str) -> Result<Option<Secret>, ConfigError> {
        if matches!(self.get(key), Some(Value::Number(_) | Value::Bool(_))) {
            let (origin, key) = (self.origin(key), self.key(key));
            self.notes
                .push(format!("{origin}: {key} is not a text: put it in quotes"));
        }
        Ok(self.text(key)?.map(Secret::new))
    }

    /// A whole number.
    pub(super) fn int(&self, key: &str) -> Result<Option<i64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match parse_int(value, None) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, "a whole number")),
            },
        }
    }

    /// Plain truthiness, as Patroni reads its local flags.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(truthy)
    }

    /// Texts by name. Not a mapping: a note, and none.
    pub(super) fn texts(&self, key: &str) -> BTreeMap<String, String> {
        match self.get(key) {
            None => BTreeMap::new(),
            Some(Value::Object(map)) => map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), python_text(value)))
                .collect(),
            Some(_) => {
                self.unusable(key, "a mapping", "ignoring it");
                BTreeMap::new()
            }
        }
    }

    /// Lines of a file that is managed. Not a list: a note, and the file is not managed.
    pub(super) fn lines(&self, key: &str) -> Option<Vec<String>> {
        match self.get(key)? {
            Value::Array(items) => Some(items.iter().map(python_text).collect()),
            _ => {
                self.unusable(key, "a list of lines", "ignoring it");
                None
            }
        }
    }

    /// User and password of `authentication`: both or none.
    pub(super) fn authentication(&self) -> Result<Option<(String, Secret)>, ConfigError> {
        let section = self.sub("authentication")?;
        match (section.text("username")?, section.secret("password")?) {
            (Some(username), Some(password)) => Ok(Some((username, password))),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(section.missing("password", "both username and password, or none"))
            }
            (None, Some(_)) => {
                Err(section.missing("username", "both username and password, or none"))
            }
        }
    }
}
