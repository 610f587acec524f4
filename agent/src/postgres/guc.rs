//! Whether the value of a setting is good.
//!
//! There is no table of settings here. The server's own program is the judge: `postgres -C` with
//! `-c name=value` for every setting checks names, types, ranges, enumerations and even the syntax of
//! `synchronous_standby_names`, in about ten milliseconds, without touching a data directory, and for
//! exactly the version that will read the file. Its complaint names the setting and the limits, so the
//! value is removed or clamped (`configuration.md` 8.4) and the rest is checked again.

pub use super::units::{Setting, human, parse_bool, parse_int, parse_real, same_value};

use super::context::{PgContext, ProgramError, SHORT_PROGRAM_LIMIT};
use crate::config::RECOVERY;
use std::collections::{BTreeMap, BTreeSet};

/// Never written: where these are is decided on the command line.
const NEVER_WRITTEN: [&str; 2] = ["config_file", "data_directory"];

/// Whether a setting is one of recovery, which are written only for standbys (`configuration.md` 8.4).
pub fn is_recovery_setting(name: &str) -> bool {
    RECOVERY.contains(&name)
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
    let mut checked = Checked {
        settings,
        warnings: Vec::new(),
    };
    checked
        .settings
        .retain(|name, _| !NEVER_WRITTEN.contains(&name.as_str()));
    let mut clamped = BTreeSet::new();
    for _ in 0..=checked.settings.len() {
        let Some(complaint) = ask(ctx, &checked.settings).await? else {
            break;
        };
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
    let printed = ctx
        .run_any_status("postgres", &args, SHORT_PROGRAM_LIMIT)
        .await?;
    if printed.status.success() {
        return Ok(None);
    }
    Ok(printed.stderr.lines().find_map(Complaint::parse))
}

/// What the server's program did not like.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Complaint {
    /// There is no such setting in this version.
    Unknown(String),
    /// The value is not of its type.
    NotBoolean(String),
    /// The value is refused for another reason.
    Invalid(String),
    /// The value as understood, and the limits, all in the base unit.
    OutOfRange {
        name: String,
        value: f64,
        min: String,
        max: String,
    },
}

impl Complaint {
    /// Messages of `guc.c`, PostgreSQL 14 to 18, untranslated.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, text) = line.split_once("FATAL:")?;
        let text = text.trim();
        let quoted = |text: &str| Some(text.split_once('"')?.1.split_once('"')?.0.to_owned());
        if let Some(rest) = text.strip_prefix("unrecognized configuration parameter") {
            return quoted(rest).map(Self::Unknown);
        }
        if let Some((before, after)) = text.split_once(" is outside the valid range for parameter ")
        {
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
        let name = text
            .split_once("parameter")
            .and_then(|(_, rest)| quoted(rest));
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
        let key = self
            .settings
            .keys()
            .find(|key| key.eq_ignore_ascii_case(name))
            .cloned();
        let Some((key, old)) = key.and_then(|key| self.settings.remove_entry(&key)) else {
            return false;
        };
        let warning = match complaint {
            Complaint::Unknown(_) => {
                format!("Removing unexpected parameter={key} value={old} from the config")
            }
            Complaint::NotBoolean(_) => {
                format!(
                    "Removing bool parameter={key} from the config due to the invalid value={old}"
                )
            }
            Complaint::OutOfRange {
                value, min, max, ..
            } if clamped.insert(key.clone()) => {
                let low = min.parse::<f64>().is_ok_and(|min| *value < min);
                let (how, limit) = if low {
                    ("low, increasing", min)
                } else {
                    ("big, decreasing", max)
                };
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
        assert_eq!(
            Complaint::parse("postgres: could not access directory \"/x\""),
            None
        );
        assert_eq!(
            Complaint::parse("FATAL:  could not map anonymous shared memory"),
            None
        );
    }

    proptest! {
        #[test]
        fn complaints_never_panic(text in "\\PC*") {
            let _ = Complaint::parse(&format!("FATAL: {text}"));
        }
    }
}
