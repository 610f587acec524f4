//! The merge rule of Patroni, pure: for files over each other, for the environment over files, for
//! `PATCH /config` and for `edit-config --set` (`configuration.md` 2.2, `rest-api.md` 9.1).

use super::value::python_text;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Merges `patch` into `target` and says whether anything changed.
///
/// | patch value | effect |
/// |---|---|
/// | null | the key is removed |
/// | mapping, over a mapping | merged recursively |
/// | mapping, otherwise | stored as it is, nulls inside included |
/// | other, whose text equals the old one's | nothing: the old value and its type stay |
/// | other | replaces; lists are never merged |
pub fn patch(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        changed |= match (target.get_mut(key), value) {
            (None, Value::Null) => false,
            // `remove` would move the last key into the hole; the order of keys is visible outside.
            (Some(_), Value::Null) => target.shift_remove(key).is_some(),
            (None, value) => {
                target.insert(key.clone(), value.clone());
                true
            }
            (Some(Value::Object(old)), Value::Object(new)) => self::patch(old, new),
            (Some(old), value) if !value.is_object() && same_text(old, value) => false,
            (Some(old), value) => {
                *old = value.clone();
                true
            }
        };
    }
    changed
}

/// Whether Patroni would see no difference: mappings by their keys, everything else by its text.
pub fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => same_map(left, right),
        (Value::Object(_), _) | (_, Value::Object(_)) => false,
        _ => same_text(left, right),
    }
}

/// [`same`], of two documents.
pub fn same_map(left: &Map<String, Value>, right: &Map<String, Value>) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .all(|(key, value)| right.get(key).is_some_and(|other| same(value, other)))
}

fn same_text(left: &Value, right: &Value) -> bool {
    python_text(left) == python_text(right)
}

/// `edit-config --set`: puts a value at a path. Null removes the key and every parent that is left
/// empty by it.
pub fn set(target: &mut Map<String, Value>, path: &[&str], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        if value.is_null() {
            target.shift_remove(*key);
        } else {
            target.insert((*key).to_owned(), value);
        }
        return;
    }
    if value.is_null() && !target.get(*key).is_some_and(Value::is_object) {
        return;
    }
    let child = target
        .entry(*key)
        .or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    if let Value::Object(map) = child {
        let removes = value.is_null();
        set(map, rest, value);
        if removes && map.is_empty() {
            target.shift_remove(*key);
        }
    }
}

/// The path of a dotted key of `edit-config --set`: below `postgresql.parameters` the rest is one key,
/// since names of settings have dots.
pub fn split_path(dotted: &str) -> Vec<&str> {
    match dotted.strip_prefix("postgresql.parameters.") {
        Some(name) => vec!["postgresql", "parameters", name],
        None => dotted.split('.').collect(),
    }
}

/// PostgreSQL parameters, key by key; names are equal whatever their case.
pub fn parameters(target: &mut BTreeMap<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        target.insert(name.to_lowercase(), value.clone());
    }
}

#[cfg(test)]
mod tests;
