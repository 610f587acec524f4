//! Talking to the operator: questions, and moments (`cli.md` 7.4 and 7.5).

use super::error::{CtlError, CtlResult, says};
use jiff::Zoned;
use jiff::tz::TimeZone;
use proto::rest::stamp::Stamp;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;

/// Asks until there is an answer; an empty one means the default, where there is one.
pub fn prompt(question: &str, default: Option<&str>) -> CtlResult<String> {
    loop {
        match default {
            Some(default) => write(&format!("{question} [{default}]: ")),
            None => write(&format!("{question}: ")),
        };
        let answer = read_line()?;
        match (answer.is_empty(), default) {
            (false, _) => return Ok(answer),
            (true, Some(default)) => return Ok(default.to_owned()),
            (true, None) => {}
        }
    }
}

/// A question whose default is no.
pub fn confirm(question: &str) -> CtlResult<bool> {
    loop {
        write(&format!("{question} [y/N]: "));
        match read_line()?.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "" | "n" | "no" => return Ok(false),
            _ => write("Error: invalid input\n"),
        }
    }
}

/// Asks, on standard error, without showing what is typed where there is a terminal.
pub fn secret(question: &str) -> CtlResult<String> {
    eprint!("{question}: ");
    let quiet = Quiet::new();
    let answer = read_line();
    if quiet.is_some() {
        eprintln!();
    }
    answer
}

/// Writes to standard output. When nobody reads it any more, nobody wants the rest.
pub fn write(text: &str) {
    let mut out = io::stdout();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// Without its end; the end of input aborts.
fn read_line() -> CtlResult<String> {
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => Err(CtlError::Aborted),
        Ok(_) => Ok(line.trim_end_matches(['\n', '\r']).to_owned()),
    }
}

/// Keeps a terminal from showing what is typed, for as long as it lives.
struct Quiet(nix::libc::termios);

impl Quiet {
    fn new() -> Option<Self> {
        use std::os::fd::AsRawFd;
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let fd = stdin.as_fd().as_raw_fd();
        let mut before = std::mem::MaybeUninit::uninit();
        // SAFETY: the descriptor is open, and the call fills the structure when it returns zero.
        let before = unsafe {
            if nix::libc::tcgetattr(fd, before.as_mut_ptr()) != 0 {
                return None;
            }
            before.assume_init()
        };
        let mut quiet = before;
        quiet.c_lflag &= !nix::libc::ECHO;
        // SAFETY: the descriptor is open and the structure is a complete one.
        let set = unsafe { nix::libc::tcsetattr(fd, nix::libc::TCSAFLUSH, &raw const quiet) };
        (set == 0).then_some(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        let fd = io::stdin().as_fd().as_raw_fd();
        // SAFETY: the descriptor is open and the structure is the one that was read.
        unsafe { nix::libc::tcsetattr(fd, nix::libc::TCSAFLUSH, &raw const self.0) };
    }
}

/// `YYYY-MM-DD hh:mm:ss.fffff`, local time: five digits, as scripts have always seen it.
pub fn timestamp() -> String {
    let now = Zoned::now();
    format!(
        "{}.{:05}",
        now.strftime("%Y-%m-%d %H:%M:%S"),
        now.subsec_nanosecond() / 10_000
    )
}

/// `YYYY-MM-DD hh:mm:ss`, local time.
pub fn timestamp_seconds() -> String {
    Zoned::now().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// What a moment looks like, as an example in a question: an hour from now.
pub fn example_time() -> String {
    let now = Zoned::now();
    let later = now.checked_add(jiff::Span::new().hours(1)).unwrap_or(now);
    later.strftime("%Y-%m-%dT%H:%M").to_string()
}

/// Reads `--scheduled`; `None` means now. Text without a zone is local time here.
pub fn scheduled(text: &str) -> CtlResult<Option<Stamp>> {
    if text.is_empty() || text == "now" {
        return Ok(None);
    }
    match parse_moment(text, &TimeZone::system()) {
        Some(stamp) => Ok(Some(stamp)),
        None => says(format!(
            "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format \
             (e.g. ISO 8601)"
        )),
    }
}

pub(crate) fn parse_moment(text: &str, zone: &TimeZone) -> Option<Stamp> {
    let stamp = Stamp::parse(text).or_else(|| {
        // A time alone means today.
        let today = Zoned::now().with_time_zone(zone.clone()).date();
        Stamp::parse(&format!("{today}T{}", text.trim())).filter(|_| text.contains(':'))
    })?;
    if stamp.micros().is_some() {
        return Some(stamp);
    }
    let local: jiff::civil::DateTime = stamp.render('T').parse().ok()?;
    let zoned = local.to_zoned(zone.clone()).ok()?;
    Stamp::parse(&zoned.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_without_a_zone_are_local() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let read = |text: &str| parse_moment(text, &zone).map(|stamp| stamp.render('T'));
        assert_eq!(
            read("2031-01-01 00:00:00.123456").as_deref(),
            Some("2031-01-01T00:00:00.123456+02:00")
        );
        assert_eq!(
            read("2031-01-01T00:00Z").as_deref(),
            Some("2031-01-01T00:00:00+00:00")
        );
        assert!(read("10:30").is_some_and(|text| text.ends_with("T10:30:00+02:00")));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn messages_have_five_digits() {
        let shown = timestamp();
        assert_eq!(shown.len(), "2026-01-01 00:00:00.12345".len(), "{shown}");
    }
}
