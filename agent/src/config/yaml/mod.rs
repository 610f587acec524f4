//! YAML as people's Patroni files have it: the 1.1 dialect of PyYAML's safe loader in, its block
//! style out (`configuration.md` 3.1).
//!
//! ```text
//! text ─▶ events (libyaml) ─▶ compose: anchors, merge keys, duplicate keys ─▶ serde_json::Value
//!                                │
//!                                └─ resolve: the 1.1 types of plain scalars
//! ```
//!
//! Mappings keep their order, since the order of tags and of script arguments is visible outside.

mod emit;
mod events;
mod resolve;

pub use emit::{to_flow, to_string, to_string_wide};

use events::{Event, Mark, ParseError, Parser, Properties};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Deepest nesting that is read: far above any configuration, low enough for the stack.
const DEPTH_LIMIT: usize = 100;

/// Most nodes that a document may have after its aliases are expanded; a few lines of nested aliases
/// could otherwise fill the memory.
const NODE_LIMIT: usize = 200_000;

/// Text of an alias that counts as one node more: so many aliases of one long text are no way around it.
const NODE_TEXT: usize = 16;

/// Why a text cannot be read. Never quotes the text: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct YamlError {
    /// Counted from one.
    pub line: u64,
    /// Counted from one.
    pub column: u64,
    /// What is wrong.
    pub problem: String,
}

impl From<ParseError> for YamlError {
    fn from(error: ParseError) -> Self {
        Self {
            line: error.mark.line,
            column: error.mark.column,
            problem: error.problem,
        }
    }
}

fn error(mark: Mark, problem: impl Into<String>) -> YamlError {
    YamlError {
        line: mark.line,
        column: mark.column,
        problem: problem.into(),
    }
}

/// Reads one document. An empty text is null. Several documents, unknown tags and unknown aliases are
/// errors; of a key given twice the last value counts, at the place of the first.
pub fn from_str(text: &str) -> Result<Value, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut composer = Composer {
        parser: Parser::new(text)?,
        anchors: HashMap::new(),
        nodes: 0,
    };
    composer.document()
}

/// Builds the value of one document from the events.
struct Composer<'t> {
    parser: Parser<'t>,
    anchors: HashMap<String, Value>,
    nodes: usize,
}

impl Composer<'_> {
    fn document(&mut self) -> Result<Value, YamlError> {
        let mut value = None;
        loop {
            let (event, mark) = self.parser.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(value.unwrap_or(Value::Null)),
                Event::DocumentStart if value.is_some() => {
                    return Err(error(mark, "expected a single document, found another one"));
                }
                Event::DocumentStart => {
                    let (event, mark) = self.parser.next()?;
                    value = Some(self.node(event, mark, 0)?);
                }
                _ => return Err(error(mark, "unexpected YAML event")),
            }
        }
    }

    fn node(&mut self, event: Event, mark: Mark, depth: usize) -> Result<Value, YamlError> {
        if depth > DEPTH_LIMIT {
            return Err(error(
                mark,
                format!("nested deeper than {DEPTH_LIMIT} levels"),
            ));
        }
        self.count(1, mark)?;
        match event {
            Event::Alias(name) => {
                // Not its name: a password that begins with `*` and lacks its quotes looks like this.
                let undefined = || error(mark, "found undefined alias");
                let nodes = size(self.anchors.get(&name).ok_or_else(undefined)?);
                self.count(nodes, mark)?;
                self.anchors.get(&name).cloned().ok_or_else(undefined)
            }
            Event::Scalar {
                properties,
                text,
                plain,
            } => {
                let value = scalar(properties.tag.as_deref(), text, plain, mark)?;
                self.remember(properties, value)
            }
            Event::SequenceStart(properties) => {
                standard_tag(&properties, &["seq"], mark)?;
                let mut items = Vec::new();
                loop {
                    let (event, mark) = self.parser.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, mark, depth + 1)?);
                }
                self.remember(properties, Value::Array(items))
            }
            Event::MappingStart(properties) => {
                standard_tag(&properties, &["map"], mark)?;
                let map = self.mapping(depth)?;
                self.remember(properties, Value::Object(map))
            }
            _ => Err(error(mark, "unexpected YAML event")),
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>, YamlError> {
        let mut merged = Map::new();
        let mut own = Map::new();
        loop {
            let (event, mark) = self.parser.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge =
                matches!(&event, Event::Scalar { text, plain: true, .. } if text == "<<");
            let key = self.node(event, mark, depth + 1)?;
            let (event, value_mark) = self.parser.next()?;
            let value = self.node(event, value_mark, depth + 1)?;
            if is_merge {
                merge_key(&mut merged, value, value_mark)?;
            } else {
                own.insert(key_text(key, mark)?, value);
            }
        }
        // Merged keys come first and give way to the mapping's own.
        for (key, value) in own {
            merged.insert(key, value);
        }
        Ok(merged)
    }

    fn remember(&mut self, properties: Properties, value: Value) -> Result<Value, YamlError> {
        if let Some(anchor) = properties.anchor {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn count(&mut self, nodes: usize, mark: Mark) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODE_LIMIT {
            return Err(error(mark, format!("more than {NODE_LIMIT} nodes")));
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| key.len() / NODE_TEXT + size(value);
            1 + map.iter().map(pair).sum::<usize>()
        }
        Value::String(text) => 1 + text.len() / NODE_TEXT,
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// The value of `<<`: a mapping, or a list of mappings of which the first wins.
fn merge_key(merged: &mut Map<String, Value>, value: Value, mark: Mark) -> Result<(), YamlError> {
    let maps = match value {
        Value::Object(map) => vec![map],
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(map) => Ok(map),
                _ => Err(error(mark, "expected a mapping for merging")),
            })
            .collect::<Result<_, _>>()?,
        _ => {
            return Err(error(
                mark,
                "expected a mapping or list of mappings for merging",
            ));
        }
    };
    for map in maps {
        for (key, value) in map {
            merged.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// Keys become text; what a key that is not a string looks like in JSON is Python's choice there.
fn key_text(key: Value, mark: Mark) -> Result<String, YamlError> {
    match key {
        Value::String(text) => Ok(text),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null => Ok(String::from("null")),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(_) | Value::Object(_) => Err(error(mark, "found unhashable key")),
    }
}

const TAG_PREFIX: &str = "tag:yaml.org,2002:";

fn standard_tag(properties: &Properties, names: &[&str], mark: Mark) -> Result<(), YamlError> {
    match &properties.tag {
        None => Ok(()),
        Some(tag)
            if tag
                .strip_prefix(TAG_PREFIX)
                .is_some_and(|t| names.contains(&t)) =>
        {
            Ok(())
        }
        Some(_) => Err(unknown_tag(mark)),
    }
}

/// Without the tag, which may be a password that begins with `!` and lacks its quotes.
fn unknown_tag(mark: Mark) -> YamlError {
    error(mark, "could not determine a constructor for the tag")
}

fn scalar(tag: Option<&str>, text: String, plain: bool, mark: Mark) -> Result<Value, YamlError> {
    let Some(tag) = tag else {
        return Ok(if plain {
            resolve::plain(&text)
        } else {
            Value::String(text)
        });
    };
    if tag == "!" {
        return Ok(Value::String(text));
    }
    let value = resolve::plain(&text);
    match (tag.strip_prefix(TAG_PREFIX), &value) {
        (Some("str" | "binary" | "timestamp"), _) => Ok(Value::String(text)),
        (Some("null"), _) => Ok(Value::Null),
        (Some("bool"), Value::Bool(_)) | (Some("int" | "float"), Value::Number(_)) => Ok(value),
        (Some(name @ ("bool" | "int" | "float")), _) => Err(error(
            mark,
            format!("the value is not of the type !!{name}"),
        )),
        _ => Err(unknown_tag(mark)),
    }
}

#[cfg(test)]
mod tests;
