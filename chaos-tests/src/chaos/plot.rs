//! Throughput over time with the faults marked, as one HTML page that needs nothing else.

use super::record::{Chapter, Run, Session};
use std::fmt::Write as _;

/// Of one chapter's picture, in pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 220.0;
/// Room for the names of the faults above the curve.
const TOP: f64 = 90.0;
/// Half seconds: the unit of [`Chapter::rates`].
const STEP: f64 = 0.5;

/// The page of these sessions.
pub fn html(sessions: &[Session]) -> String {
    let mut text = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Chaos</title>\n<style>\
         body{font:14px sans-serif;margin:2em}svg{border:1px solid #ccc;display:block;margin:.5em 0 2em}\
         .rate{fill:#9cc3e6;stroke:#2a6fa8}.fault{fill:#d33;opacity:.25}.back{fill:#e90;opacity:.2}\
         .name{font-size:11px;fill:#900}.axis{font-size:11px;fill:#555}.wrong{color:#c00}</style>\n",
    );
    for session in sessions {
        let _ = writeln!(
            text,
            "<h2>{}, {}, PostgreSQL {}, etcd {}, seed {}</h2>\n<p>Rows acknowledged per second through \
             HAProxy. Red: from the fault to its end; orange: until the cluster is at rest.</p>",
            escape(&session.agent),
            escape(&session.mode),
            escape(&session.postgres),
            escape(&session.etcd),
            session.seed
        );
        for chapter in &session.chapters {
            let end = chapter.at + chapter.seconds;
            let runs = session.runs.iter();
            let runs: Vec<&Run> = runs
                .filter(|run| run.at >= chapter.at && run.at < end)
                .collect();
            picture(&mut text, chapter, &runs);
            for wrong in &chapter.wrong {
                let _ = writeln!(text, "<p class=\"wrong\">{}</p>", escape(wrong));
            }
        }
    }
    text.push_str("</html>\n");
    text
}

fn picture(text: &mut String, chapter: &Chapter, runs: &[&Run]) {
    let seconds = chapter.seconds.max(1.0);
    let x = |at: f64| (at - chapter.at).clamp(0.0, seconds) / seconds * WIDTH;
    let most = chapter.rates.iter().copied().max().unwrap_or(1).max(1);
    let y = |rate: f64| TOP + (HEIGHT - TOP) * (1.0 - rate / f64::from(most));
    let _ = writeln!(text, "<svg width=\"{WIDTH}\" height=\"{}\">", HEIGHT + 20.0);
    for (number, run) in runs.iter().enumerate() {
        let bands = [
            ("fault", run.at, run.healed),
            ("back", run.healed, run.settled),
        ];
        for (class, from, to) in bands {
            let (left, width) = (x(from), (x(to) - x(from)).max(1.0));
            let height = HEIGHT - TOP;
            let _ = writeln!(
                text,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"
            );
        }
        // Names take turns in height, so that neighbours can be read.
        let lines = [14.0, 28.0, 42.0, 56.0, 70.0, 84.0];
        let height = lines.get(number % lines.len()).copied().unwrap_or(14.0);
        let _ = writeln!(
            text,
            "<text class=\"name\" x=\"{:.1}\" y=\"{height}\">{} ({:.0} ms)</text>",
            x(run.at),
            escape(&run.row),
            run.gap_ms
        );
    }
    let mut points = format!("0,{HEIGHT} ");
    let mut at = 0.0;
    for rate in &chapter.rates {
        let _ = write!(
            points,
            "{:.1},{:.1} ",
            at / seconds * WIDTH,
            y(f64::from(*rate))
        );
        at += STEP;
    }
    let _ = write!(points, "{:.1},{HEIGHT}", at / seconds * WIDTH);
    let _ = writeln!(text, "<polygon class=\"rate\" points=\"{points}\"/>");
    let _ = writeln!(
        text,
        "<text class=\"axis\" x=\"2\" y=\"{}\">{:.0} s</text><text class=\"axis\" x=\"{}\" y=\"{}\" \
         text-anchor=\"end\">{:.0} s</text><text class=\"axis\" x=\"2\" y=\"{TOP}\">{} rows/s</text></svg>",
        HEIGHT + 14.0,
        chapter.at,
        WIDTH - 2.0,
        HEIGHT + 14.0,
        chapter.at + seconds,
        f64::from(most) / STEP
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_picture_per_chapter_and_marks_its_faults() {
        let chapter = Chapter {
            seconds: 10.0,
            rates: vec![40, 50, 0, 0, 45],
            wrong: vec!["a < b".to_owned()],
            ..Chapter::default()
        };
        let run = Run {
            row: "node-loss".to_owned(),
            at: 2.0,
            healed: 4.0,
            settled: 6.0,
            ..Run::default()
        };
        let later = Run {
            at: 99.0,
            ..run.clone()
        };
        let session = Session {
            runs: vec![run, later],
            chapters: vec![chapter],
            ..Session::default()
        };
        let page = html(&[session]);
        assert_eq!(page.matches("<svg").count(), 1);
        assert_eq!(page.matches("node-loss").count(), 1);
        assert!(page.contains("a &lt; b"));
        assert!(
            page.contains("x=\"240.0\" y=\"90\" width=\"240.0\""),
            "{page}"
        );
    }
}
