//! Amounts of bytes and of time as the interface accepts them (`rest-api.md` 4.6 and 11.1): the
//! syntax of PostgreSQL's settings, units case sensitive.

use crate::config::SECONDS_MAX;
use serde_json::Value;

/// Bytes. Signed, because a negative lag is accepted and means what it says.
pub fn bytes(text: &str) -> Option<i64> {
    let units = [
        ("B", 1.0),
        ("kB", 1024.0),
        ("MB", 1024.0),
        ("GB", 1024.0),
        ("TB", 1024.0),
    ];
    with_units(text, &units, None)
}

/// Whole seconds above zero, as a number or with one of PostgreSQL's units of time; at most
/// [`SECONDS_MAX`].
pub fn positive_seconds(value: &Value) -> Option<u64> {
    let units = [
        ("ms", 1.0),
        ("s", 1000.0),
        ("min", 60.0),
        ("h", 60.0),
        ("d", 24.0),
    ];
    let seconds = match value {
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().and_then(rounded))?,
        Value::String(text) => {
            let (_, unit) = split_number(text)?;
            if unit == "ms" || unit == "us" {
                let number = split_number(text)?.0;
                rounded(number / if unit == "ms" { 1000.0 } else { 1_000_000.0 })?
            } else {
                with_units(text, &units, Some("s"))?.checked_div(1000)?
            }
        }
        _ => return None,
    };
    let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0);
    seconds.map(|seconds| seconds.min(SECONDS_MAX))
}

/// The number times its unit. `ladder` names each unit and how often it holds the one before; a
/// fraction is rounded in the next smaller unit first, as PostgreSQL does.
fn with_units(text: &str, ladder: &[(&str, f64)], default: Option<&str>) -> Option<i64> {
    let (number, unit) = split_number(text)?;
    let unit = match unit {
        "" => match default {
            None => return rounded(number),
            Some(default) => default,
        },
        unit => unit,
    };
    let at = ladder.iter().position(|(name, _)| *name == unit)?;
    let (_, step) = ladder.get(at)?;
    let mut value = rounded(number * step)?;
    for (_, step) in ladder.get(..at)?.iter().rev() {
        value = rounded(value as f64 * step)?;
    }
    Some(value)
}

fn rounded(number: f64) -> Option<i64> {
    let whole = number.round_ties_even();
    (whole.abs() < 9.2e18).then_some(whole as i64)
}

fn split_number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, rest) = unsigned_number(digits)?;
    Some((if negative { -number } else { number }, rest.trim_start()))
}

fn unsigned_number(text: &str) -> Option<(f64, &str)> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(hex.len());
        let number = i64::from_str_radix(hex.get(..end)?, 16).ok()?;
        return Some((number as f64, hex.get(end..)?));
    }
    let digits = |from: &str| {
        from.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(from.len())
    };
    let mut end = digits(text);
    let whole = end;
    if text.get(end..)?.starts_with('.') {
        end += 1 + digits(text.get(end + 1..)?);
    }
    let has_digits = text.get(..end)?.bytes().any(|b| b.is_ascii_digit());
    if !has_digits {
        return None;
    }
    end += exponent_length(text.get(end..)?);
    let number = text.get(..end)?;
    let rest = text.get(end..)?;
    if end == whole && number.len() > 1 && number.starts_with('0') {
        return Some((i64::from_str_radix(number, 8).ok()? as f64, rest));
    }
    Some((number.parse().ok()?, rest))
}

fn exponent_length(text: &str) -> usize {
    let Some(rest) = text.strip_prefix(['e', 'E']) else {
        return 0;
    };
    let unsigned = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    let digits = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        0
    } else {
        text.len() - unsigned.len() + digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn sizes_follow_the_published_table() {
        for (text, expected) in [
            ("10", 10),
            ("16kB", 16_384),
            ("64MB", 67_108_864),
            ("1GB", 1_073_741_824),
            ("1TB", 1 << 40),
            ("1 GB", 1_073_741_824),
            (" 5MB", 5_242_880),
            (".5MB", 524_288),
            ("0x10", 16),
            ("010", 8),
            ("1e3", 1000),
            ("-5", -5),
            ("+7B", 7),
            ("10.4", 10),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in [
            "1gb", "1KB", "1MiB", "5b", "08", "abc", "", ".", "e3", "1e400", "MB", "1 2",
        ] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn timeouts_are_whole_seconds_above_zero() {
        for (value, expected) in [
            (json!(5), Some(5)),
            (json!("5"), Some(5)),
            (json!("1500ms"), Some(2)),
            (json!("2min"), Some(120)),
            (json!("1h"), Some(3600)),
            (json!("1d"), Some(86_400)),
            (json!("10 s"), Some(10)),
            (json!(0), None),
            (json!(-1), None),
            (json!("100ms"), None),
            (json!("soon"), None),
            (json!(null), None),
            (json!([1]), None),
        ] {
            assert_eq!(positive_seconds(&value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC*") {
            let _ = bytes(&text);
            let _ = positive_seconds(&Value::String(text));
        }
    }
}
