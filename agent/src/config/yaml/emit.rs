//! Writing YAML as PyYAML's `safe_dump(default_flow_style=False)` does: block style, keys sorted, lists
//! not indented under their key.

use super::resolve;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// PyYAML's default: a long text is folded at the first blank after this column.
const WIDTH: usize = 80;

/// A longer key needs a `?` before it: no reader looks further than 1024 letters for the `:` of a key, and
/// PyYAML writes it from here on.
const PLAIN_KEY_MAX: usize = 127;

/// Block style with sorted keys, ending in a newline.
pub fn to_string(value: &Value) -> String {
    to_string_wide(value, WIDTH)
}

/// [`to_string`], folding at another column.
pub fn to_string_wide(value: &Value, width: usize) -> String {
    let mut out = Writer {
        text: String::new(),
        width,
    };
    match value {
        Value::Object(map) if !map.is_empty() => out.block_map(map, 0),
        Value::Array(items) if !items.is_empty() => out.block_list(items, 0),
        other => out.scalar_line(other, 0),
    }
    out.text
}

/// One line in flow style with sorted keys: `{clonefrom: true, nofailover: true}`.
pub fn to_flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs = sorted(map)
                .into_iter()
                .map(|(k, v)| match (flow_text(k), to_flow(v)) {
                    (key, value) if is_long(&key) => format!("? {key} : {value}"),
                    (key, value) => format!("{key}: {value}"),
                })
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

fn is_long(key: &str) -> bool {
    key.chars().count() > PLAIN_KEY_MAX
}

fn sorted(map: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut pairs: Vec<(&str, &Value)> = map.iter().map(|(k, v)| (k.as_str(), v)).collect();
    pairs.sort_by_key(|(k, _)| *k);
    pairs
}

struct Writer {
    text: String,
    width: usize,
}

impl Writer {
    fn indent(&mut self, level: usize) {
        self.text.extend(std::iter::repeat_n("  ", level));
    }

    fn block_map(&mut self, map: &Map<String, Value>, level: usize) {
        for (position, (key, value)) in sorted(map).into_iter().enumerate() {
            // The first pair of a mapping inside a list stands on the line of its dash.
            if position > 0 || !self.text.ends_with("- ") {
                self.indent(level);
            }
            // A key stays on one line.
            let key = if key.contains('\n') {
                double_quoted(key)
            } else {
                text(key, level)
            };
            if is_long(&key) {
                self.text.push_str(&format!("? {key}\n"));
                self.indent(level);
            } else {
                self.text.push_str(&key);
            }
            self.text.push(':');
            match value {
                Value::Object(map) if !map.is_empty() => {
                    self.text.push('\n');
                    self.block_map(map, level + 1);
                }
                Value::Array(items) if !items.is_empty() => {
                    self.text.push('\n');
                    self.block_list(items, level);
                }
                other => {
                    self.text.push(' ');
                    self.scalar_line(other, level + 1);
                }
            }
        }
    }

    fn block_list(&mut self, items: &[Value], level: usize) {
        for (position, item) in items.iter().enumerate() {
            if position > 0 || !self.text.ends_with("- ") {
                self.indent(level);
            }
            self.text.push_str("- ");
            match item {
                Value::Object(map) if !map.is_empty() => self.block_map(map, level + 1),
                Value::Array(items) if !items.is_empty() => self.block_list(items, level + 1),
                other => self.scalar_line(other, level + 1),
            }
        }
    }

    /// A scalar and the end of its line; `level` is where its further lines begin.
    fn scalar_line(&mut self, value: &Value, level: usize) {
        let shown = scalar(value, level);
        if shown.contains('\n') || shown.starts_with('"') {
            self.text.push_str(&shown);
        } else {
            self.fold(&shown, level);
        }
        self.text.push('\n');
    }

    /// Breaks at single blanks once the column is past the width, as PyYAML does. Reading turns such
    /// a break into the blank again; at the ends inside quotes it would be lost.
    fn fold(&mut self, shown: &str, level: usize) {
        let start = self.text.rfind('\n').map_or(0, |at| at + 1);
        let mut column = self
            .text
            .get(start..)
            .map_or(0, |line| line.chars().count());
        let chars: Vec<char> = shown.chars().collect();
        let lead = usize::from(shown.starts_with('\''));
        for (at, c) in chars.iter().enumerate() {
            let blank = |at: usize| chars.get(at) == Some(&' ');
            let single = *c == ' ' && at > 0 && !blank(at - 1) && !blank(at + 1);
            let inner = at > lead && at + 1 + lead < chars.len();
            if single && inner && column > self.width {
                self.text.push('\n');
                self.indent(level);
                column = 2 * level;
            } else {
                self.text.push(*c);
                column += 1;
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
        let printable = !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
        !(c == '\n' || printable)
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
