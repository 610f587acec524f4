//! What the values of settings mean: numbers, units, and comparison with the running server.

use crate::config::value::{MEMORY, TIME};

/// `on`, `true`, `yes`, `1` and their opposites in any case (`configuration.md` 3.2).
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// A unit as `pg_settings.unit` reports it, in the smallest unit of its family.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    /// Bytes.
    Memory,
    /// Microseconds.
    Time,
}

fn find_unit(name: &str) -> Option<(Family, f64)> {
    let find = |table: &[(&str, f64)]| table.iter().find(|(n, _)| *n == name).map(|(_, f)| *f);
    find(&MEMORY)
        .map(|factor| (Family::Memory, factor))
        .or_else(|| find(&TIME).map(|factor| (Family::Time, factor)))
}

/// A base unit, possibly with a multiplier: `8kB`, `16MB`, `s`.
fn base_unit(unit: &str) -> Option<(Family, f64)> {
    let split = unit
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(unit.len());
    let (digits, name) = unit.split_at(split);
    let multiplier = if digits.is_empty() {
        1.0
    } else {
        digits.parse().ok()?
    };
    let (family, factor) = find_unit(name)?;
    Some((family, factor * multiplier))
}

/// A number with an optional unit, in `unit`; not rounded.
fn quantity(text: &str, unit: Option<&str>) -> Option<f64> {
    let text = text.trim();
    let (number, rest) = leading_number(text)?;
    let rest = rest.trim();
    if rest.is_empty() {
        return Some(number);
    }
    let (family, factor) = find_unit(rest)?;
    let (base_family, base_factor) = base_unit(unit?)?;
    (family == base_family).then_some(number * factor / base_factor)
}

/// The number at the beginning as C reads it: decimal, hexadecimal, or octal with a leading zero.
fn leading_number(text: &str) -> Option<(f64, &str)> {
    let unsigned = text.trim_start_matches(['-', '+']);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    if text.len() - unsigned.len() > 1 {
        return None;
    }
    if let Some(hex) = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"))
    {
        let end = hex
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(hex.len());
        let number = i64::from_str_radix(hex.get(..end)?, 16).ok()? as f64;
        return Some((sign * number, hex.get(end..)?));
    }
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let whole = digits(unsigned);
    let mut end = whole;
    if unsigned.get(end..)?.starts_with('.') {
        end += 1 + digits(unsigned.get(end + 1..)?);
    }
    let exponent = unsigned.get(end..)?;
    if exponent.starts_with(['e', 'E']) {
        let signed = exponent.get(1..)?;
        let body = signed.strip_prefix(['-', '+']).unwrap_or(signed);
        let length = digits(body);
        if length > 0 {
            end += exponent.len() - body.len() + length;
        }
    }
    let body = unsigned.get(..end)?;
    let rest = unsigned.get(end..)?;
    if end == whole && body.len() > 1 && body.starts_with('0') {
        return Some((sign * i64::from_str_radix(body, 8).ok()? as f64, rest));
    }
    Some((sign * body.parse::<f64>().ok()?, rest))
}

/// A whole number in `unit`, rounded half to even (`configuration.md` 3.3).
pub fn parse_int(text: &str, unit: Option<&str>) -> Option<i64> {
    let value = quantity(text, unit)?.round_ties_even();
    (value.abs() < 9.0e18).then_some(value as i64)
}

/// A number in `unit`.
pub fn parse_real(text: &str, unit: Option<&str>) -> Option<f64> {
    quantity(text, unit)
}

/// One row of `pg_settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Current value, in the unit.
    pub setting: String,
    /// Unit.
    pub unit: Option<String>,
    /// `bool`, `integer`, `real`, `enum` or `string`.
    pub vartype: String,
    /// `postmaster`, `sighup`, …
    pub context: String,
    /// Value without any configuration.
    pub boot_value: Option<String>,
}

/// Whether a configured value and the running one mean the same (`configuration.md` 3.4). Values that
/// do not parse count as different.
pub fn same_value(configured: &str, row: &Setting) -> bool {
    let unit = row.unit.as_deref();
    let both = |f: &dyn Fn(&str) -> Option<f64>| match (f(configured), f(&row.setting)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    };
    match row.vartype.as_str() {
        "bool" => both(&|t| parse_bool(t).map(|b| if b { 1.0 } else { 0.0 })),
        "integer" => match (parse_int(configured, unit), parse_int(&row.setting, unit)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
        "real" => both(&|t| parse_real(t, unit)),
        "enum" => configured.eq_ignore_ascii_case(&row.setting),
        _ => configured == row.setting,
    }
}

/// A value for people: in the largest unit that leaves a whole number, as `SHOW` prints it.
pub fn human(value: &str, row: &Setting) -> String {
    let unit = row.unit.as_deref();
    match row.vartype.as_str() {
        "bool" => match parse_bool(value) {
            Some(true) => String::from("on"),
            Some(false) => String::from("off"),
            None => value.to_owned(),
        },
        "integer" => match (parse_int(value, unit), unit) {
            (Some(number), Some(unit)) => with_unit(number, unit),
            (Some(number), None) => number.to_string(),
            (None, _) => value.to_owned(),
        },
        _ => value.to_owned(),
    }
}

fn with_unit(number: i64, unit: &str) -> String {
    let Some((family, factor)) = base_unit(unit) else {
        return number.to_string();
    };
    // Zero and the special values below it have no unit.
    if number <= 0 {
        return number.to_string();
    }
    let total = number as f64 * factor;
    let table: &[(&str, f64)] = match family {
        Family::Memory => &MEMORY,
        Family::Time => &TIME,
    };
    table
        .iter()
        .rev()
        .find(|(_, size)| *size <= total && total % size == 0.0)
        .map_or_else(
            || number.to_string(),
            |(name, size)| format!("{}{name}", total / size),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_follow_the_published_vectors() {
        for (text, unit, value) in [
            ("0x10", None, Some(16)),
            ("010", None, Some(8)),
            ("08", None, None),
            ("1.5", None, Some(2)),
            (".5", None, Some(0)),
            ("2.5", None, Some(2)),
            ("1e3", None, Some(1000)),
            ("true", None, None),
            ("", None, None),
            ("5 min", Some("s"), Some(300)),
            ("1d", Some("s"), Some(86_400)),
            ("30MIN", Some("s"), None),
            ("1MB", None, None),
            ("1.5GB", Some("MB"), Some(1536)),
            ("1MB", Some("B"), Some(1_048_576)),
            ("512kB", Some("B"), Some(524_288)),
            ("0.5MB", Some("kB"), Some(512)),
            ("128MB", Some("8kB"), Some(16_384)),
            ("-1", Some("8kB"), Some(-1)),
            ("--1", None, None),
            ("1s", Some("kB"), None),
        ] {
            assert_eq!(parse_int(text, unit), value, "{text:?} in {unit:?}");
        }
    }

    fn row(vartype: &str, setting: &str, unit: Option<&str>) -> Setting {
        Setting {
            setting: setting.into(),
            unit: unit.map(str::to_owned),
            vartype: vartype.into(),
            ..Setting::default()
        }
    }

    #[test]
    fn values_are_compared_by_meaning() {
        assert!(same_value("True", &row("bool", "on", None)));
        assert!(same_value("128MB", &row("integer", "16384", Some("8kB"))));
        assert!(!same_value("129MB", &row("integer", "16384", Some("8kB"))));
        assert!(same_value("REPLICA", &row("enum", "replica", None)));
        assert!(!same_value("A", &row("string", "a", None)));
        assert!(same_value("0.90", &row("real", "0.9", None)));
        assert!(
            !same_value("much", &row("integer", "much", None)),
            "unparsable is different"
        );
    }

    #[test]
    fn people_see_units() {
        assert_eq!(human("16384", &row("integer", "", Some("8kB"))), "128MB");
        assert_eq!(human("300", &row("integer", "", Some("s"))), "5min");
        assert_eq!(human("2min", &row("integer", "", Some("ms"))), "2min");
        assert_eq!(human("100", &row("integer", "", None)), "100");
        assert_eq!(human("-1", &row("integer", "", Some("8kB"))), "-1");
        assert_eq!(human("True", &row("bool", "", None)), "on");
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*", unit in "\\PC{0,6}") {
            let _ = parse_int(&text, Some(&unit));
            let _ = parse_real(&text, None);
            let _ = human(&text, &row("integer", "", Some(&unit)));
        }

        #[test]
        fn human_values_parse_back(number in 1_i64..1_000_000_000) {
            let row = row("integer", "", Some("8kB"));
            prop_assert_eq!(parse_int(&human(&number.to_string(), &row), Some("8kB")), Some(number));
        }
    }
}
