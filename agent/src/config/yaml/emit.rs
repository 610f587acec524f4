//! Writing YAML as PyYAML's `safe_dump(default_flow_style=False)` does: block style, keys sorted, lists
//! not indented under their key.

use super::resolve;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Block style with sorted keys, ending in a newline.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block_map(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => block_list(&mut out, items, 0),
        other => {
            out.push_str(&scalar(other, 0));
            out.push('\n');
        }
    }
    out
}

/// One line in flow style with sorted keys: `{clonefrom: true, nofailover: true}`.
pub fn to_flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs = sorted(map)
                .into_iter()
                .map(|(k, v)| format!("{}: {}", flow_text(k), to_flow(v)))
                .collect::<Vec<_>>();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(to_flow).collect::<Vec<_>>().join(", ")
            )
        }
        Value::String(s) => flow_text(s),
        other => scalar(other, 0),
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut pairs: Vec<(&str, &Value)> = map.iter().map(|(k, v)| (k.as_str(), v)).collect();
    pairs.sort_by_key(|(k, _)| *k);
    pairs
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("  ", level));
}

fn block_map(out: &mut String, map: &Map<String, Value>, level: usize) {
    for (position, (key, value)) in sorted(map).into_iter().enumerate() {
        // The first pair of a mapping inside a list stands on the line of its dash.
        if position > 0 || !out.ends_with("- ") {
            indent(out, level);
        }
        // A key stays on one line.
        out.push_str(&if key.contains('\n') {
            double_quoted(key)
        } else {
            text(key, level)
        });
        out.push(':');
        block_value(out, value, level);
    }
}

fn block_value(out: &mut String, value: &Value, level: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block_map(out, map, level + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block_list(out, items, level);
        }
        other => {
            out.push(' ');
            out.push_str(&scalar(other, level + 1));
            out.push('\n');
        }
    }
}

fn block_list(out: &mut String, items: &[Value], level: usize) {
    for (position, item) in items.iter().enumerate() {
        if position > 0 || !out.ends_with("- ") {
            indent(out, level);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => block_map(out, map, level + 1),
            Value::Array(items) if !items.is_empty() => block_list(out, items, level + 1),
            other => {
                out.push_str(&scalar(other, level + 1));
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, level: usize) -> String {
    match value {
        Value::Null => String::from("null"),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => float_text(number),
        Value::String(s) => text(s, level),
        Value::Array(_) => String::from("[]"),
        Value::Object(_) => String::from("{}"),
    }
}

/// Python writes `1e+16` as `1.0e+16` so that YAML 1.1 reads a float again.
fn float_text(number: &serde_json::Number) -> String {
    let shown = crate::config::value::python_number(number);
    match shown.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => {
            format!("{mantissa}.0e{exponent}")
        }
        _ => shown,
    }
}

fn text(s: &str, level: usize) -> String {
    if needs_double_quotes(s) {
        return double_quoted(s);
    }
    if s.contains('\n') {
        return single_quoted_lines(s, level);
    }
    if is_plain(s, false) {
        s.to_owned()
    } else {
        single_quoted(s)
    }
}

fn flow_text(s: &str) -> String {
    if needs_double_quotes(s) || s.contains('\n') {
        double_quoted(s)
    } else if is_plain(s, true) {
        s.to_owned()
    } else {
        single_quoted(s)
    }
}

/// PyYAML's rules for plain scalars: nothing that another type or an indicator would be read from.
fn is_plain(s: &str, flow: bool) -> bool {
    if s.is_empty() || resolve::is_special(s) || s.starts_with("---") || s.starts_with("...") {
        return false;
    }
    if s.starts_with([' ', '\t']) || s.ends_with([' ', '\t', ':']) {
        return false;
    }
    let first_bad = s.starts_with(|c: char| "#,[]{}&*!|>'\"%@`".contains(c));
    let mut chars = s.chars();
    let first = chars.next();
    let blank_follows = chars.next().is_none_or(char::is_whitespace);
    let indicator = match first {
        Some('?' | ':') => flow || blank_follows,
        Some('-') => blank_follows,
        _ => false,
    };
    if first_bad || indicator || s.contains(": ") || s.contains(" #") {
        return false;
    }
    if s.contains('\t') && s.contains(":\t") {
        return false;
    }
    !(flow && s.contains([',', '?', '[', ']', '{', '}', ':']))
}

/// Control characters need escapes; so does a text whose blanks at a line's ends would be lost.
fn needs_double_quotes(s: &str) -> bool {
    s.chars().any(|c| {
        let code = u32::from(c);
        !(c == '\n' || (0x20..=0x7e).contains(&code))
    }) || s.contains(" \n")
        || s.contains("\n ")
}

fn single_quoted(s: &str) -> String {
    format!("'{}'", s.replace('\'', "''"))
}

/// A line break inside single quotes is written as an empty line.
fn single_quoted_lines(s: &str, level: usize) -> String {
    let mut inner = String::new();
    for c in s.replace('\'', "''").chars() {
        inner.push(c);
        if c == '\n' && !inner.ends_with("\n\n\n") {
            // One break of the text is two in the file, each further one is one more.
            let run = inner.chars().rev().take_while(|c| *c == '\n').count();
            if run == 1 {
                inner.push('\n');
            }
        }
    }
    let pad = "  ".repeat(level);
    let mut out = String::from("'");
    for (i, line) in inner.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
            if !line.is_empty() {
                out.push_str(&pad);
            }
        }
        out.push_str(line);
    }
    if inner.ends_with('\n') {
        out.push_str(&pad);
    }
    out.push('\'');
    out
}

fn double_quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            '\u{1b}' => out.push_str("\\e"),
            ' '..='~' => out.push(c),
            c => {
                let code = u32::from(c);
                // Writing to a string cannot fail.
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02X}"),
                    0x100..=0xffff => write!(out, "\\u{code:04X}"),
                    _ => write!(out, "\\U{code:08X}"),
                };
            }
        }
    }
    out.push('"');
    out
}
