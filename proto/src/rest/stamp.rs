//! Moments as people and PostgreSQL write them: read leniently, written in one form.

use crate::time::WallTime;
use jiff::civil::{Date, DateTime, Time};

/// A moment, or local time that lacks the zone which would make it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    local: DateTime,
    offset_seconds: Option<i32>,
}

/// No zone is further from UTC than this many hours.
const OFFSET_HOURS_MAX: i32 = 24;

impl Stamp {
    /// Reads ISO 8601 in its long and short form, with `T` or a blank before the time, with any
    /// number of digits in the fraction, and RFC 2822 (`rest-api.md` 11.4). `None`: no moment.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        Self::parse_iso(text).or_else(|| Self::parse_mail(text))
    }

    fn parse_iso(text: &str) -> Option<Self> {
        let (date, rest) = split_date(text)?;
        let rest = rest.strip_prefix(['T', 't']).unwrap_or(rest).trim_start();
        let end = rest
            .find(|c: char| !matches!(c, '0'..='9' | ':' | '.' | ','))
            .unwrap_or(rest.len());
        let time = parse_time(rest.get(..end)?)?;
        let zone = rest.get(end..)?.trim();
        Some(Self {
            local: DateTime::from_parts(date, time),
            offset_seconds: parse_zone(zone)?,
        })
    }

    fn parse_mail(text: &str) -> Option<Self> {
        let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
        Some(Self {
            local: zoned.datetime(),
            offset_seconds: Some(zoned.offset().seconds()),
        })
    }

    /// Microseconds since 1970, cut off as in the text, also before it; `None` without a zone.
    pub fn micros(&self) -> Option<i64> {
        let offset = jiff::tz::Offset::from_seconds(self.offset_seconds?).ok()?;
        let stamp = offset.to_timestamp(self.local).ok()?;
        i64::try_from(stamp.as_nanosecond().div_euclid(1000)).ok()
    }

    /// The moment; `None` without a zone.
    pub fn wall(&self) -> Option<WallTime> {
        self.micros()
            .map(|micros| WallTime(micros.div_euclid(1000)))
    }

    /// Seconds since 1970 with a fraction, as the metrics show it: `1767225600.0`.
    pub fn epoch_text(&self) -> Option<String> {
        let micros = self.micros()?;
        let (whole, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        let digits = format!("{fraction:06}");
        let digits = digits.trim_end_matches('0');
        Some(format!(
            "{whole}.{}",
            if digits.is_empty() { "0" } else { digits }
        ))
    }

    /// `YYYY-MM-DDThh:mm:ss[.ffffff]+hh:mm[:ss]` with `between` in the place of `T`.
    pub fn render(&self, between: char) -> String {
        let (date, time) = (self.local.date(), self.local.time());
        let mut text = format!(
            "{:04}-{:02}-{:02}{between}{:02}:{:02}:{:02}",
            date.year(),
            date.month(),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        );
        let micros = time.subsec_nanosecond() / 1000;
        if micros != 0 {
            text.push_str(&format!(".{micros:06}"));
        }
        if let Some(offset) = self.offset_seconds {
            let sign = if offset < 0 { '-' } else { '+' };
            let (hours, rest) = (offset.abs() / 3600, offset.abs() % 3600);
            text.push_str(&format!("{sign}{hours:02}:{:02}", rest / 60));
            // Local mean times of the past; without them it would be another moment.
            if rest % 60 != 0 {
                text.push_str(&format!(":{:02}", rest % 60));
            }
        }
        text
    }
}

/// What PostgreSQL prints for a `timestamptz`, in the form of the status document: a blank in
/// between, six digits of fraction or none, the offset with minutes. Other text stays as it is.
pub fn status_form(text: &str) -> String {
    Stamp::parse(text).map_or_else(|| text.to_owned(), |stamp| stamp.render(' '))
}

fn number<T: std::str::FromStr>(digits: &str) -> Option<T> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

fn split_date(text: &str) -> Option<(Date, &str)> {
    let year = number(text.get(..4)?)?;
    let (month, day, rest) = if text.get(4..5)? == "-" {
        if text.get(7..8)? != "-" {
            return None;
        }
        (text.get(5..7)?, text.get(8..10)?, text.get(10..)?)
    } else {
        (text.get(4..6)?, text.get(6..8)?, text.get(8..)?)
    };
    Some((Date::new(year, number(month)?, number(day)?).ok()?, rest))
}

fn parse_time(text: &str) -> Option<Time> {
    if text.is_empty() {
        return Some(Time::midnight());
    }
    let (clock, fraction) = text.split_once(['.', ',']).unwrap_or((text, "0"));
    let compact: String = clock.chars().filter(|c| *c != ':').collect();
    let well_placed = !clock.contains(':') || clock.split(':').all(|part| part.len() == 2);
    if !well_placed || !matches!(compact.len(), 2 | 4 | 6) {
        return None;
    }
    let part = |at: usize| compact.get(at..at + 2).map_or(Some(0), number);
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i32 = number(
        &format!("{fraction:0<9}")
            .chars()
            .take(9)
            .collect::<String>(),
    )?;
    Time::new(part(0)?, part(2)?, part(4)?, nanos).ok()
}

/// `Some(None)`: no zone is given, or one whose name says nothing.
fn parse_zone(text: &str) -> Option<Option<i32>> {
    if matches!(text, "Z" | "z" | "UTC" | "GMT") {
        return Some(Some(0));
    }
    let sign = match text.chars().next() {
        None => return Some(None),
        Some('+') => 1,
        Some('-') => -1,
        Some(_) => {
            let a_name = text.len() <= 5 && text.bytes().all(|b| b.is_ascii_uppercase());
            return a_name.then_some(None);
        }
    };
    let digits: String = text.get(1..)?.chars().filter(|c| *c != ':').collect();
    let at = |index: usize| digits.get(index..index + 2).map_or(Some(0), number::<i32>);
    let fits = matches!(digits.len(), 2 | 4 | 6) && digits.bytes().all(|b| b.is_ascii_digit());
    let (hours, minutes, seconds) = (at(0)?, at(2)?, at(4)?);
    (fits && hours < OFFSET_HOURS_MAX && minutes < 60 && seconds < 60)
        .then_some(Some(sign * (hours * 3600 + minutes * 60 + seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_accepted_form_means_its_moment() {
        let moment = |text: &str| Stamp::parse(text).and_then(|s| s.micros());
        for text in [
            "2030-01-01T00:00:00Z",
            "2030-01-01 00:00:00+00:00",
            "2030-01-01T02:00+02",
            "2029-12-31 19:00:00.000000-0500",
            "20300101T000000Z",
            "2030-01-01 00:00:00 UTC",
            "2030-01-01T00:00:00 GMT",
            "Tue, 01 Jan 2030 00:00:00 +0000",
        ] {
            assert_eq!(moment(text), Some(1_893_456_000_000_000), "{text}");
        }
        assert_eq!(
            moment("2030-01-01 00:00:00.5+02:00"),
            Some(1_893_448_800_500_000)
        );
    }

    #[test]
    fn local_time_is_recognised_as_such() {
        for text in ["2030-01-01T00:00:00", "2030-01-01", "2030-01-01 00:00 CET"] {
            assert_eq!(Stamp::parse(text).map(|s| s.micros()), Some(None), "{text}");
        }
    }

    #[test]
    fn other_text_is_no_moment() {
        for text in [
            "",
            "soon",
            "2030-13-01T00:00:00Z",
            "2030-01-01T25:00:00Z",
            "2030-01-01T0:0Z",
            "12",
        ] {
            assert_eq!(Stamp::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn database_times_are_brought_into_one_form() {
        assert_eq!(
            status_form("2026-07-24 10:00:00.5+00"),
            "2026-07-24 10:00:00.500000+00:00"
        );
        assert_eq!(
            status_form("2026-07-24 10:00:00+05:30"),
            "2026-07-24 10:00:00+05:30"
        );
        assert_eq!(status_form("infinity"), "infinity");
        let epoch = |t: &str| Stamp::parse(t).and_then(|s| s.epoch_text());
        assert_eq!(
            epoch("2026-07-24 10:00:00.123456+00").as_deref(),
            Some("1784887200.123456")
        );
        assert_eq!(
            epoch("2026-01-01 00:00:00+00").as_deref(),
            Some("1767225600.0")
        );
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC*") {
            let _ = status_form(&text);
        }

        #[test]
        fn what_is_written_is_read_back(micros in 0i64..4_000_000_000_000_000) {
            let stamp = jiff::Timestamp::from_microsecond(micros).expect("in range");
            let read = Stamp::parse(&stamp.to_string()).expect("an ISO moment");
            prop_assert_eq!(read.micros(), Some(micros));
            prop_assert_eq!(Stamp::parse(&read.render('T')), Some(read));
        }
    }
}
