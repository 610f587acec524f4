//! A JSON schema of the configuration file, for editors. Made from [`super::keys`].

use super::keys::{self, Described, Form};
use serde_json::{Map, Value, json};

/// Where the schema is kept, for the `$id`.
const ID: &str = "https://garden-agent.invalid/patroni.schema.json";

/// The schema.
pub fn schema() -> Value {
    let all = keys::all();
    let mut root = section(&all, "", false);
    if let Value::Object(root) = &mut root {
        root.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        root.insert("$id".into(), json!(ID));
        root.insert("title".into(), json!("patroni.yml of garden-agent"));
    }
    root
}

/// A mapping with the keys that stand right below `path`.
fn section(all: &[Described], path: &str, methods: bool) -> Value {
    let mut properties = Map::new();
    for described in all {
        let (parent, name) = described
            .path
            .rsplit_once('.')
            .unwrap_or(("", &described.path));
        if parent == path {
            properties.insert(name.to_owned(), property(all, described));
        }
    }
    // Names of methods are free, and everything about one is in a mapping.
    let others = if methods {
        json!({"type": ["object", "null"]})
    } else {
        json!(false)
    };
    json!({"type": ["object", "null"], "properties": properties, "additionalProperties": others})
}

fn property(all: &[Described], described: &Described) -> Value {
    let key = &described.key;
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let pair = json!({"type": ["string", "object"]});
    let mut found = match key.form {
        // Names and passwords of digits alone are numbers to YAML.
        Form::Text => json!({"type": ["string", "number", "null"]}),
        Form::Flag => json!({"type": ["boolean", "null"]}),
        Form::Number(min) => json!({"type": ["integer", "null"], "minimum": min}),
        Form::Amount => json!({"anyOf": [
            {"type": ["integer", "null"]},
            {"type": "string", "pattern": "^-?[0-9.]+ *(B|kB|MB|GB|TB|us|ms|s|min|h|d)?$"},
        ]}),
        Form::Word(words) => json!({"enum": words}),
        Form::FlagOrWord(words) => {
            json!({"anyOf": [{"type": ["boolean", "null"]}, {"enum": words}]})
        }
        Form::Texts => json!({"type": ["array", "null"], "items": text}),
        Form::TextOrTexts => json!({"anyOf": [text, texts]}),
        Form::Options => json!({"anyOf": [
            {"type": ["array", "null"], "items": pair}, {"type": "object"},
        ]}),
        Form::LogFormat => json!({"anyOf": [text, {"type": "array", "items": pair}]}),
        Form::Mapping if described.path == "tags" => tags(all),
        Form::Mapping => json!({"type": ["object", "null"]}),
        Form::Mappings => json!({"type": ["array", "null"], "items": {"type": "object"}}),
        // The tree of a dynamic PostgreSQL section is the local one's.
        Form::SectionWithMethods if described.path == "bootstrap.dcs.postgresql" => shared(all),
        Form::Section => section(all, &described.path, false),
        Form::SectionWithMethods => section(all, &described.path, true),
    };
    if let Value::Object(found) = &mut found {
        if !key.meaning.is_empty() {
            found.insert("description".into(), json!(key.meaning));
        }
        if !key.default.is_empty() && key.default != "required" {
            found.insert("default".into(), default(key.default));
        }
    }
    found
}

/// Tags of one's own are free.
fn tags(all: &[Described]) -> Value {
    let mut tags = section(all, "tags", false);
    if let Value::Object(tags) = &mut tags {
        tags.insert("additionalProperties".into(), json!(true));
    }
    tags
}

/// The dynamic section's own keys over the local ones.
fn shared(all: &[Described]) -> Value {
    let mut local = section(all, "postgresql", true);
    let own = section(all, "bootstrap.dcs.postgresql", true);
    let own = own.get("properties").and_then(Value::as_object);
    if let Some(Value::Object(properties)) = local.get_mut("properties") {
        properties.extend(
            own.into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
    }
    local
}

/// Numbers and booleans as such.
fn default(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => json!(text),
    }
}
