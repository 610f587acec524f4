//! How single values are read (`configuration.md` 3.2 to 3.6). Values come from people, so they are
//! read the way Python would read or print them: scripts, comparisons and log lines depend on it.

pub use proto::dcs::records::parse_bool;

use serde_json::{Number, Value};

/// Python's truth of a value: the text `"false"` is true (`configuration.md` 3.2, NOTE).
pub fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// `str(value)` of Python: `True`, `None`, `[1, 'a']`.
pub fn python_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => python_repr(other),
    }
}

/// `repr(value)` of Python.
pub fn python_repr(value: &Value) -> String {
    match value {
        Value::Null => String::from("None"),
        Value::Bool(true) => String::from("True"),
        Value::Bool(false) => String::from("False"),
        Value::Number(number) => python_number(number),
        Value::String(text) => repr_text(text),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(python_repr).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(map) => {
            let pair = |(k, v): (&String, &Value)| format!("{}: {}", repr_text(k), python_repr(v));
            format!(
                "{{{}}}",
                map.iter().map(pair).collect::<Vec<_>>().join(", ")
            )
        }
    }
}

fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number as Python prints it: the shortest digits, an exponent from 1e+16 and below 1e-04.
pub fn python_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => python_float(float),
        _ => number.to_string(),
    }
}

fn python_float(float: f64) -> String {
    let shown = format!("{float:e}");
    let Some((mantissa, exponent)) = shown.split_once('e') else {
        return shown;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Python's `int(value)`, which the three dynamic timeouts go through: numbers are cut off, text must
/// be a plain decimal number.
pub fn python_int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::Number(number) => number.as_i64().or_else(|| {
            // The cast saturates, and a timeout beyond an i64 is clamped anyway.
            number.as_f64().map(|float| float.trunc() as i64)
        }),
        Value::String(text) => {
            let text = text.trim();
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            let well_formed = digits
                .split('_')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
            well_formed
                .then(|| text.replace('_', "").parse().ok())
                .flatten()
        }
        _ => None,
    }
}

/// A whole number with an optional unit, in the base unit (`configuration.md` 3.3). Without a base unit
/// no unit is accepted.
pub fn parse_int(value: &Value, base_unit: Option<&str>) -> Option<i64> {
    match value {
        Value::Number(number) if number.is_f64() => round_half_even(number.as_f64()?),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => parse_int_text(text.trim(), base_unit),
        _ => None,
    }
}

fn parse_int_text(text: &str, base_unit: Option<&str>) -> Option<i64> {
    let (number, rest) = split_integer(text)
        .map(|(n, rest)| (n as f64, rest))
        .or_else(|| {
            // Looks like an octal number, but is none.
            (!looks_octal(text)).then(|| split_real(text)).flatten()
        })?;
    let (number, rest) = match (rest.starts_with(['.', 'e', 'E']), split_real(text)) {
        (true, Some(real)) => real,
        _ => (number, rest),
    };
    let unit = rest.trim();
    if unit.is_empty() {
        return round_half_even(number);
    }
    round_half_even(convert(number, unit, base_unit?)?)
}

/// A real number with an optional unit, in the base unit.
pub fn parse_real(value: &Value, base_unit: Option<&str>) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
            let (number, rest) = split_real(text.trim())?;
            let unit = rest.trim();
            if unit.is_empty() {
                Some(number)
            } else {
                convert(number, unit, base_unit?)
            }
        }
        _ => None,
    }
}

/// A leading integer as C's `strtol` with base 0 reads it: `0x10`, `010`, `10`.
fn split_integer(text: &str) -> Option<(i64, &str)> {
    let (body, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let hex = body.strip_prefix("0x").or_else(|| body.strip_prefix("0X"));
    let (radix, digits) = match hex {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, digits),
        _ if looks_octal(body) => (8, body),
        _ => (10, body),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let value = i64::from_str_radix(digits.get(..end)?, radix).ok()?;
    let rest = digits.get(end..)?;
    // `08`: the octal number ends before a decimal digit.
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some((if negative { -value } else { value }, rest))
}

fn looks_octal(text: &str) -> bool {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut bytes = body.bytes();
    bytes.next() == Some(b'0') && bytes.next().is_some_and(|b| b.is_ascii_digit())
}

/// A leading number as C's `strtod` reads it, without its rarer forms.
fn split_real(text: &str) -> Option<(f64, &str)> {
    let bytes = text.as_bytes();
    let digits_from = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let start = usize::from(text.starts_with(['-', '+']));
    let whole = digits_from(start);
    let mut end = whole;
    let mut count = whole - start;
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits_from(end + 1);
        count += fraction - end - 1;
        end = fraction;
    }
    if count == 0 {
        return None;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits_from(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    Some((text.get(..end)?.parse().ok()?, text.get(end..)?))
}

/// PostgreSQL's units of memory, in bytes.
pub(crate) const MEMORY: [(&str, f64); 5] = [
    ("B", 1.0),
    ("kB", 1024.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("TB", 1_099_511_627_776.0),
];
/// Its units of time, in microseconds.
pub(crate) const TIME: [(&str, f64); 6] = [
    ("us", 1.0),
    ("ms", 1e3),
    ("s", 1e6),
    ("min", 6e7),
    ("h", 3.6e9),
    ("d", 8.64e10),
];

/// `number` of `unit` in `base`; PostgreSQL tries a fraction in the next smaller unit first.
fn convert(number: f64, unit: &str, base: &str) -> Option<f64> {
    let at = base
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(base.len());
    let multiplier: f64 = match base.get(..at)? {
        "" => 1.0,
        digits => digits.parse().ok()?,
    };
    let base = base.get(at..)?;
    let family: &[(&str, f64)] = if MEMORY.iter().any(|(name, _)| *name == base) {
        &MEMORY
    } else {
        &TIME
    };
    let scale = |name: &str| {
        family
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, scale)| *scale)
    };
    let position = family.iter().position(|(n, _)| *n == unit)?;
    let (mut number, mut unit_scale) = (number, scale(unit)?);
    if number.fract() != 0.0 && position > 0 {
        let (_, smaller) = *family.get(position - 1)?;
        number = (number * unit_scale / smaller).round_ties_even();
        unit_scale = smaller;
    }
    Some(number * unit_scale / (scale(base)? * multiplier))
}

fn round_half_even(number: f64) -> Option<i64> {
    let rounded = number.round_ties_even();
    // The bounds are exact in floating point; the cast below cannot overflow within them.
    (-9.2e18..=9.2e18)
        .contains(&rounded)
        .then_some(rounded as i64)
}

/// A host, without brackets, and a port (`configuration.md` 3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// As written; may be empty, `*` or a comma-separated list.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Splits at the last colon; the default port fills a missing one. `None` when the port is missing
/// without a default, or is no port.
pub fn split_host_port(text: &str, default_port: Option<u16>) -> Option<HostPort> {
    let text = text.trim();
    let bracketed = text.ends_with(']');
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !bracketed => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        Some(port) => port.trim().parse().ok()?,
        None => default_port?,
    };
    let host = host.trim();
    let inner = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    Some(HostPort {
        host: inner.to_owned(),
        port,
    })
}

impl HostPort {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn text(&self) -> String {
        if self.host.contains(':') && !self.host.contains(',') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Splits a command as a POSIX shell would, without running one. `None`: a quote is not closed.
pub fn shell_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => double_quoted_word(&mut chars, word.get_or_insert_default())?,
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

fn double_quoted_word(chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match chars.next()? {
            '"' => return Some(()),
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests;
