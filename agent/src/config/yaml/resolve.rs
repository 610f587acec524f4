//! The implicit types of plain scalars in YAML 1.1, as PyYAML's safe loader has them
//! (`configuration.md` 3.1; the patterns are those of the YAML 1.1 type repository: `bool`, `int`,
//! `float`, `null`, `timestamp`).

use serde_json::{Number, Value};

/// The value of a plain scalar.
pub(super) fn plain(text: &str) -> Value {
    if is_null(text) {
        return Value::Null;
    }
    if let Some(flag) = boolean(text) {
        return Value::Bool(flag);
    }
    if let Some(number) = integer(text) {
        return number;
    }
    if let Some(number) = float(text) {
        return number;
    }
    Value::String(text.to_owned())
}

/// Whether a plain scalar would read back as something else than this text; such texts are quoted
/// when they are written.
pub(super) fn is_special(text: &str) -> bool {
    !matches!(plain(text), Value::String(_)) || is_timestamp(text) || matches!(text, "=" | "<<")
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// Splits off a sign: the rest, and whether it is negative.
fn sign(text: &str) -> (&str, bool) {
    match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    }
}

fn all(text: &str, accepted: impl Fn(u8) -> bool) -> bool {
    text.bytes().all(accepted)
}

/// `int`: binary, octal, decimal, hexadecimal, sexagesimal; underscores are allowed between digits.
fn integer(text: &str) -> Option<Value> {
    let (body, negative) = sign(text);
    let digits = |radix: u32, part: &str| {
        let digits = part.replace('_', "");
        // The prefix alone, as in `0b_`, has no value.
        (!digits.is_empty())
            .then(|| i128::from_str_radix(&digits, radix).ok())
            .flatten()
    };
    let value = if let Some(part) = body.strip_prefix("0b") {
        all(part, |b| matches!(b, b'0' | b'1' | b'_')).then(|| digits(2, part))??
    } else if let Some(part) = body.strip_prefix("0x") {
        all(part, |b| b.is_ascii_hexdigit() || b == b'_').then(|| digits(16, part))??
    } else if body == "0" {
        0
    } else if let Some(part) = body.strip_prefix('0') {
        all(part, |b| matches!(b, b'0'..=b'7' | b'_')).then(|| digits(8, part))??
    } else if !body.starts_with(|c: char| matches!(c, '1'..='9')) {
        return None;
    } else if body.contains(':') {
        sexagesimal(body)?
    } else {
        all(body, |b| b.is_ascii_digit() || b == b'_').then(|| digits(10, body))??
    };
    let value = if negative { -value } else { value };
    match (i64::try_from(value), u64::try_from(value)) {
        (Ok(n), _) => Some(Value::from(n)),
        (_, Ok(n)) => Some(Value::from(n)),
        // Larger than any setting may be; Python would keep it as an integer.
        _ => Number::from_f64(value as f64).map(Value::Number),
    }
}

/// `190:20:30`: the first part any number, each further one below 60.
fn sexagesimal(body: &str) -> Option<i128> {
    let mut parts = body.split(':');
    let first = parts.next()?;
    if !all(first, |b| b.is_ascii_digit() || b == b'_') {
        return None;
    }
    let mut value: i128 = first.replace('_', "").parse().ok()?;
    for part in parts {
        value = value
            .checked_mul(60)?
            .checked_add(i128::from(below_sixty(part)?))?;
    }
    Some(value)
}

fn below_sixty(part: &str) -> Option<u8> {
    let one_or_two = (1..=2).contains(&part.len()) && all(part, |b| b.is_ascii_digit());
    one_or_two
        .then(|| part.parse().ok())
        .flatten()
        .filter(|n| *n < 60)
}

/// `float`: a dot is needed, an exponent needs a sign, underscores are allowed before the exponent.
fn float(text: &str) -> Option<Value> {
    let (body, negative) = sign(text);
    match body {
        // JSON has neither; the text is the nearest thing that survives.
        ".inf" | ".Inf" | ".INF" => return Some(Value::String(text.to_owned())),
        ".nan" | ".NaN" | ".NAN" if !negative && body.len() == text.len() => {
            return Some(Value::String(text.to_owned()));
        }
        _ => {}
    }
    let (whole, rest) = body.split_once('.')?;
    let magnitude = if whole.contains(':') {
        let seconds = rest.replace('_', "");
        if !whole.starts_with(|c: char| c.is_ascii_digit())
            || !all(&seconds, |b| b.is_ascii_digit())
        {
            return None;
        }
        sexagesimal(whole)? as f64 + format!("0.{seconds}0").parse::<f64>().ok()?
    } else {
        let (fraction, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (rest.get(..at)?, Some(rest.get(at + 1..)?)),
            None => (rest, None),
        };
        let digits = |part: &str| all(part, |b| b.is_ascii_digit() || b == b'_');
        let starts = whole.starts_with(|c: char| c.is_ascii_digit())
            || (whole.is_empty() && fraction.starts_with(|c: char| c.is_ascii_digit() || c == '_'));
        let exponent_fits = exponent.is_none_or(|e| {
            e.strip_prefix(['+', '-'])
                .is_some_and(|d| !d.is_empty() && all(d, |b| b.is_ascii_digit()))
        });
        if !starts || !digits(whole) || !digits(fraction) || !exponent_fits {
            return None;
        }
        let plain = body.replace('_', "");
        format!("0{plain}").parse::<f64>().ok()?
    };
    Number::from_f64(if negative { -magnitude } else { magnitude }).map(Value::Number)
}

/// `2001-01-01` and the longer forms.
fn is_timestamp(text: &str) -> bool {
    let digits = |part: Option<&str>, lengths: std::ops::RangeInclusive<usize>| {
        part.is_some_and(|p| lengths.contains(&p.len()) && all(p, |b| b.is_ascii_digit()))
    };
    let is_date = |date: &str, day: std::ops::RangeInclusive<usize>| {
        let mut parts = date.split('-');
        digits(parts.next(), 4..=4)
            && digits(parts.next(), day.clone())
            && digits(parts.next(), day)
            && parts.next().is_none()
    };
    let Some((date, time)) = text.split_once(['T', 't', ' ', '\t']) else {
        return is_date(text, 2..=2);
    };
    let time = time.trim_start_matches([' ', '\t']);
    let end = time.find(|c: char| !matches!(c, '0'..='9' | ':' | '.'));
    let (clock, zone) = time.split_at(end.unwrap_or(time.len()));
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.split(':');
    let is_clock = digits(parts.next(), 1..=2)
        && digits(parts.next(), 2..=2)
        && digits(parts.next(), 2..=2)
        && parts.next().is_none()
        && all(fraction, |b| b.is_ascii_digit());
    let is_zone = match zone.trim_start_matches([' ', '\t']) {
        "" => zone.is_empty(),
        "Z" => true,
        offset => offset.strip_prefix(['+', '-']).is_some_and(|offset| {
            let (hours, minutes) = match offset.split_once(':') {
                Some((hours, minutes)) => (hours, Some(minutes)),
                None => (offset, None),
            };
            digits(Some(hours), 1..=2) && (minutes.is_none() || digits(minutes, 2..=2))
        }),
    };
    is_date(date, 1..=2) && is_clock && is_zone
}
