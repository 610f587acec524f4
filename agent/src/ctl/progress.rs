//! A line on a terminal's standard error that shows how far something long is: for how long it has been
//! going on, what each member is at, and the bytes that a copy has. Nothing is written, and nobody is
//! asked, where standard error is no terminal.

use super::session::Session;
use hyper::Method;
use proto::dcs::MemberRecord;
use proto::ids::MemberName;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::time::{Duration, Instant};

/// How often the line changes.
const STEP: Duration = Duration::from_secs(1);

/// A member that does not answer within this time is shown without what it is at.
const LOOK_LIMIT: Duration = Duration::from_millis(800);

/// Characters of the line, so that it stays one: the usual width of a terminal.
const LINE_CHARS: usize = 79;

/// A member, and where its agent is.
pub type Watched<'a> = (&'a MemberName, &'a MemberRecord);

/// Something long, from its beginning on.
pub struct Progress {
    what: String,
    since: Instant,
    shown: bool,
}

impl Progress {
    /// Begins now.
    pub fn start(what: String) -> Self {
        Self {
            what,
            since: Instant::now(),
            shown: io::stderr().is_terminal(),
        }
    }

    /// Does the work, and shows meanwhile what these members are at.
    pub async fn during<T>(
        &self,
        session: &Session,
        members: &[Watched<'_>],
        work: impl Future<Output = T>,
    ) -> T {
        if !self.shown {
            return work.await;
        }
        let mut work = pin!(work);
        loop {
            let next = async {
                tokio::time::sleep(STEP).await;
                look(session, members).await
            };
            tokio::select! {
                done = work.as_mut() => {
                    write_line("\r\x1b[K");
                    return done;
                }
                states = next => {
                    write_line(&format!("\r\x1b[K{}", line(&self.what, self.since.elapsed(), &states)));
                }
            }
        }
    }
}

/// What each member says it is at.
async fn look(session: &Session, members: &[Watched<'_>]) -> Vec<(String, Value)> {
    let mut states = Vec::new();
    for (name, record) in members {
        let asked = session.request(record, Method::GET, Some("garden"), None, LOOK_LIMIT);
        let document = tokio::time::timeout(LOOK_LIMIT, asked)
            .await
            .ok()
            .and_then(Result::ok);
        let document = document
            .and_then(|answer| answer.json().ok())
            .unwrap_or_default();
        states.push((name.to_string(), document));
    }
    states
}

/// The line. A member of Patroni has no reason to show, but a state.
fn line(what: &str, since: Duration, states: &[(String, Value)]) -> String {
    let mut text = format!("{what} … {} s", since.as_secs());
    for (name, document) in states {
        let said = document.get("reason").or_else(|| document.get("state"));
        let said = said.and_then(Value::as_str).unwrap_or("no answer");
        text.push_str(&format!("; {name}: {said}"));
        if let Some(bytes) = document.get("copied_bytes").and_then(Value::as_u64) {
            text.push_str(&format!(", {} MB", bytes >> 20));
        }
    }
    text.chars().take(LINE_CHARS).collect()
}

fn write_line(text: &str) {
    let mut err = io::stderr();
    // A terminal that is gone needs no progress.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_has_phases_and_bytes_and_stays_one() {
        let states = [
            (
                "a".to_owned(),
                json!({"reason": "reinitialize in progress (basebackup)", "copied_bytes": 5 << 20}),
            ),
            ("b".to_owned(), json!({"state": "running"})),
            ("c".to_owned(), Value::Null),
        ];
        let text = line(
            "copying",
            Duration::from_secs(3),
            states.get(..1).unwrap_or_default(),
        );
        assert_eq!(
            text,
            "copying … 3 s; a: reinitialize in progress (basebackup), 5 MB"
        );
        let text = line(
            "x",
            Duration::from_secs(3),
            states.get(1..).unwrap_or_default(),
        );
        assert_eq!(text, "x … 3 s; b: running; c: no answer");
        assert_eq!(
            line("copying", Duration::ZERO, &states).chars().count(),
            LINE_CHARS
        );
    }
}
