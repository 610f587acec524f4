//! What PostgreSQL settings mean: units, comparison with the running server, and whether a value is
//! good.
//!
//! There is no table of settings here. The server's own program is the judge: `postgres -C` with
//! `-c name=value` for every setting checks names, types, ranges, enumerations and even the syntax of
//! `synchronous_standby_names`, in about ten milliseconds, without touching a data directory, and for
//! exactly the version that will read the file. Its complaint names the setting and the limits, so the
//! value is removed or clamped (`configuration.md` 8.4) and the rest is checked again.

use super::context::{PgContext, ProgramError, SHORT_PROGRAM_LIMIT};
use std::collections::{BTreeMap, BTreeSet};

/// Never written: where these are is decided on the command line.
const NEVER_WRITTEN: [&str; 2] = ["config_file", "data_directory"];

/// The settings of recovery, which are written only for standbys (`configuration.md` 8.4).
pub const RECOVERY_SETTINGS: [&str; 18] = [
    "archive_cleanup_command",
    "pause_at_recovery_target",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// Whether a name is one of [`RECOVERY_SETTINGS`].
pub fn is_recovery_setting(name: &str) -> bool {
    RECOVERY_SETTINGS.contains(&name)
}

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

const MEMORY: [(&str, f64); 5] = [
    ("B", 1.0),
    ("kB", 1024.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("TB", 1_099_511_627_776.0),
];
const TIME: [(&str, f64); 6] = [
    ("us", 1.0),
    ("ms", 1e3),
    ("s", 1e6),
    ("min", 6e7),
    ("h", 3.6e9),
    ("d", 8.64e10),
];

fn find_unit(name: &str) -> Option<(Family, f64)> {
    let find = |table: &[(&str, f64)]| table.iter().find(|(n, _)| *n == name).map(|(_, f)| *f);
    find(&MEMORY)
        .map(|factor| (Family::Memory, factor))
        .or_else(|| find(&TIME).map(|factor| (Family::Time, factor)))
}

/// A base unit, possibly with a multiplier: `8kB`, `16MB`, `s`.
fn base_unit(unit: &str) -> Option<(Family, f64)> {
    let split = unit.find(|c: char| !c.is_ascii_digit()).unwrap_or(unit.len());
    let (digits, name) = unit.split_at(split);
    let multiplier = if digits.is_empty() { 1.0 } else { digits.parse().ok()? };
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
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
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
    let Some((family, factor)) = base_unit(unit) else { return number.to_string() };
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
        .map_or_else(|| number.to_string(), |(name, size)| format!("{}{name}", total / size))
}

/// Settings that passed the check, and a sentence for each that did not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Checked {
    settings: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// Has the server's program judge the settings, and logs what it changed. The verdict on the same
/// settings is remembered.
pub async fn check(
    ctx: &PgContext,
    settings: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ProgramError> {
    if let Some(known) = ctx.judged(&settings) {
        return Ok(known);
    }
    let checked = judge(ctx, settings.clone()).await?;
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }
    ctx.remember_judged(settings, checked.settings.clone());
    Ok(checked.settings)
}

/// Never more runs than settings, plus one.
async fn judge(
    ctx: &PgContext,
    settings: BTreeMap<String, String>,
) -> Result<Checked, ProgramError> {
    let mut checked = Checked { settings, warnings: Vec::new() };
    checked.settings.retain(|name, _| !NEVER_WRITTEN.contains(&name.as_str()));
    let mut clamped = BTreeSet::new();
    for _ in 0..=checked.settings.len() {
        let Some(complaint) = ask(ctx, &checked.settings).await? else { break };
        if !checked.apply(&complaint, &mut clamped) {
            // Not about a setting of ours: let the real start say what is wrong.
            break;
        }
    }
    Ok(checked)
}

/// The first complaint about these settings.
async fn ask(
    ctx: &PgContext,
    settings: &BTreeMap<String, String>,
) -> Result<Option<Complaint>, ProgramError> {
    let dir = ctx.data_dir().to_string_lossy().into_owned();
    // `-C` must come first: then the program also answers root, and needs no configuration file.
    let mut args = vec!["-C".into(), "data_directory".into(), "-D".into(), dir];
    args.extend(["-c".into(), String::from("config_file=/dev/null")]);
    for (name, value) in settings {
        args.extend([String::from("-c"), format!("{name}={value}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let printed = ctx.run_any_status("postgres", &args, SHORT_PROGRAM_LIMIT).await?;
    if printed.status.success() {
        return Ok(None);
    }
    Ok(printed.stderr.lines().find_map(Complaint::parse))
}

/// What the server's program did not like.
#[derive(Clone, Debug, PartialEq)]
enum Complaint {
    /// There is no such setting in this version.
    Unknown(String),
    /// The value is not of its type.
    NotBoolean(String),
    /// The value is refused for another reason.
    Invalid(String),
    /// The value as understood, and the limits, all in the base unit.
    OutOfRange { name: String, value: f64, min: String, max: String },
}

impl Complaint {
    /// Messages of `guc.c`, PostgreSQL 14 to 18, untranslated.
    fn parse(line: &str) -> Option<Self> {
        let (_, text) = line.split_once("FATAL:")?;
        let text = text.trim();
        let quoted = |text: &str| Some(text.split_once('"')?.1.split_once('"')?.0.to_owned());
        if let Some(rest) = text.strip_prefix("unrecognized configuration parameter") {
            return quoted(rest).map(Self::Unknown);
        }
        if let Some((before, after)) = text.split_once(" is outside the valid range for parameter ") {
            let limits = after.rsplit_once('(')?.1.trim_end_matches(')');
            let (min, max) = limits.split_once("..")?;
            let number = |t: &str| t.split_whitespace().next().map(str::to_owned);
            return Some(Self::OutOfRange {
                name: quoted(after)?,
                value: number(before)?.parse().ok()?,
                min: number(min)?,
                max: number(max)?,
            });
        }
        if text.starts_with("parameter ") && text.contains("requires a Boolean value") {
            return quoted(text).map(Self::NotBoolean);
        }
        let refused = text.starts_with("invalid value for parameter")
            || text.starts_with("parameter ")
            || text.contains(" parameter \"")
            || text.starts_with("permission denied to set parameter")
            || text.starts_with("invalid configuration parameter name");
        let name = text.split_once("parameter").and_then(|(_, rest)| quoted(rest));
        refused.then_some(()).and(name).map(Self::Invalid)
    }
}

impl Checked {
    /// Acts on a complaint; `false` when it is about nothing that we set.
    fn apply(&mut self, complaint: &Complaint, clamped: &mut BTreeSet<String>) -> bool {
        let (Complaint::Unknown(name)
        | Complaint::NotBoolean(name)
        | Complaint::Invalid(name)
        | Complaint::OutOfRange { name, .. }) = complaint;
        // The program names settings by their canonical case (`TimeZone`); ours are in lower case.
        let key = self.settings.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
        let Some((key, old)) = key.and_then(|key| self.settings.remove_entry(&key)) else {
            return false;
        };
        let warning = match complaint {
            Complaint::Unknown(_) => {
                format!("Removing unexpected parameter={key} value={old} from the config")
            }
            Complaint::NotBoolean(_) => {
                format!("Removing bool parameter={key} from the config due to the invalid value={old}")
            }
            Complaint::OutOfRange { value, min, max, .. } if clamped.insert(key.clone()) => {
                let low = min.parse::<f64>().is_ok_and(|min| *value < min);
                let (how, limit) = if low { ("low, increasing", min) } else { ("big, decreasing", max) };
                self.settings.insert(key.clone(), limit.clone());
                format!("Value={old} of parameter={key} is too {how} to {limit}")
            }
            Complaint::Invalid(_) | Complaint::OutOfRange { .. } => {
                format!("Removing parameter={key} from the config due to the invalid value={old}")
            }
        };
        self.warnings.push(warning);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
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
        assert!(!same_value("much", &row("integer", "much", None)), "unparsable is different");
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

    fn complain(name: &str, value: &str, line: &str, expected: &Expect) {
        let mut checked = Checked {
            settings: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            warnings: Vec::new(),
        };
        let complaint = Complaint::parse(line).expect("understood");
        assert!(checked.apply(&complaint, &mut BTreeSet::new()));
        expected.assert_debug_eq(&(checked.settings, checked.warnings));
    }

    #[test]
    fn values_out_of_range_are_clamped_with_both_spellings_of_the_limits() {
        let expected = expect![[r#"
            (
                {
                    "shared_buffers": "16",
                },
                [
                    "Value=10 of parameter=shared_buffers is too low, increasing to 16",
                ],
            )
        "#]];
        for limits in ["(16 .. 1073741823)", "(16 8kB .. 1073741823 8kB)"] {
            let line = format!(
                "2026 GMT [1] FATAL:  10 8kB is outside the valid range for parameter \
                 \"shared_buffers\" {limits}"
            );
            complain("shared_buffers", "10", &line, &expected);
        }
    }

    #[test]
    fn unknown_and_invalid_settings_are_removed() {
        complain(
            "foo",
            "1",
            "FATAL:  unrecognized configuration parameter \"foo\"",
            &expect![[r#"
                (
                    {},
                    [
                        "Removing unexpected parameter=foo value=1 from the config",
                    ],
                )
            "#]],
        );
        complain(
            "timezone",
            "x",
            "FATAL:  invalid value for parameter \"TimeZone\": \"x\"",
            &expect![[r#"
                (
                    {},
                    [
                        "Removing parameter=timezone from the config due to the invalid value=x",
                    ],
                )
            "#]],
        );
        complain(
            "hot_standby",
            "maybe",
            "FATAL:  parameter \"hot_standby\" requires a Boolean value",
            &expect![[r#"
                (
                    {},
                    [
                        "Removing bool parameter=hot_standby from the config due to the invalid value=maybe",
                    ],
                )
            "#]],
        );
    }

    #[test]
    fn other_failures_are_not_taken_for_a_setting() {
        assert_eq!(Complaint::parse("postgres: could not access directory \"/x\""), None);
        assert_eq!(Complaint::parse("FATAL:  could not map anonymous shared memory"), None);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*", unit in "\\PC{0,6}") {
            let _ = parse_int(&text, Some(&unit));
            let _ = parse_real(&text, None);
            let _ = Complaint::parse(&format!("FATAL: {text}"));
            let _ = human(&text, &row("integer", "", Some(&unit)));
        }

        #[test]
        fn human_values_parse_back(number in 1_i64..1_000_000_000) {
            let row = row("integer", "", Some("8kB"));
            prop_assert_eq!(parse_int(&human(&number.to_string(), &row), Some("8kB")), Some(number));
        }
    }
}
