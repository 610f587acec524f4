//! The table.

use super::Run;
use super::rows::{Mode, Row};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// All runs of one row.
#[derive(Clone, Debug)]
pub struct RowReport {
    /// Name of the row.
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    mode: Mode,
    limit: Option<u32>,
    /// The runs.
    pub runs: Vec<Run>,
}

impl RowReport {
    pub(super) fn new(row: &Row, mode: Mode) -> Self {
        let [synchronous, asynchronous] = row.limit;
        let is_async = mode == Mode::Async;
        Self {
            name: row.name,
            what: row.what,
            mode,
            limit: if is_async { asynchronous } else { synchronous },
            runs: Vec::new(),
        }
    }

    /// Whether this run alone is above the limit of the median.
    pub(super) fn is_slow(&self, run: &Run) -> bool {
        self.limit
            .is_some_and(|limit| ms(run.gap) > f64::from(limit))
    }

    fn gaps(&self) -> Vec<f64> {
        let mut gaps: Vec<f64> = self.judged().map(|run| ms(run.gap)).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }

    /// Runs that came to an end.
    fn judged(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.acked > 0)
    }

    fn sum(&self, of: impl Fn(&Run) -> usize) -> usize {
        self.runs.iter().map(of).sum()
    }

    fn overlap(&self) -> Duration {
        self.runs
            .iter()
            .map(|run| run.overlap)
            .max()
            .unwrap_or_default()
    }

    fn fencing(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self.runs.iter().filter_map(|run| run.fencing_ms).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// In one or a few words; `ok` when everything is.
    pub fn verdict(&self) -> String {
        let wrong = self.runs.iter().filter(|run| !run.wrong.is_empty()).count();
        let empty = self
            .runs
            .iter()
            .filter(|run| run.inconclusive.is_some())
            .count();
        let gaps = self.gaps();
        if wrong > 0 {
            return format!("FAILED in {wrong}");
        }
        if empty > 0 || self.runs.is_empty() {
            return format!("inconclusive in {empty}");
        }
        match self.limit {
            Some(limit) if median(&gaps) > f64::from(limit) => format!("slow, limit {limit}"),
            _ => "ok".to_owned(),
        }
    }

    /// For `--json`.
    pub fn json(&self) -> Value {
        let runs = self.runs.iter().map(|run| {
            json!({
                "gap_ms": ms(run.gap),
                "acked": run.acked,
                "lost": run.lost,
                "doubled": run.doubled,
                "overlap_ms": ms(run.overlap),
                "fencing_ms": run.fencing_ms,
                "back_ms": run.back.map(ms),
                "wrong": run.wrong,
                "inconclusive": run.inconclusive,
            })
        });
        json!({
            "row": self.name,
            "what": self.what,
            "mode": self.mode.name(),
            "verdict": self.verdict(),
            "runs": runs.collect::<Vec<_>>(),
        })
    }
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they ran.
    pub rows: Vec<RowReport>,
}

impl Report {
    /// Everything went as it should.
    pub fn clean(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.verdict() == "ok")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| row | fault | mode | runs | write gap ms min / median / max | rows acknowledged | lost | \
             doubled | overlap ms | dead after deadline, ms min / median / max | verdict |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let fencing = match row.fencing() {
                none if none.is_empty() => "–".to_owned(),
                some => spread(&some),
            };
            writeln!(
                f,
                "| `{}` | {} | {} | {} | {} | {} | {} | {} | {:.0} | {} | {} |",
                row.name,
                row.what,
                row.mode.name(),
                row.runs.len(),
                spread(&row.gaps()),
                row.sum(|run| run.acked),
                row.runs.iter().map(|run| run.lost).max().unwrap_or(0),
                row.runs.iter().map(|run| run.doubled).max().unwrap_or(0),
                ms(row.overlap()),
                fencing,
                row.verdict(),
            )?;
        }
        for row in &self.rows {
            let mut back: Vec<f64> = row.runs.iter().filter_map(|run| run.back.map(ms)).collect();
            back.sort_by(f64::total_cmp);
            if !back.is_empty() {
                writeln!(
                    f,
                    "\n`{}`: REST answers after {} ms.",
                    row.name,
                    spread(&back)
                )?;
            }
            for (number, run) in row.runs.iter().enumerate() {
                for text in run.wrong.iter().chain(&run.inconclusive) {
                    let first = text.lines().next().unwrap_or_default();
                    writeln!(f, "\n`{}`, run {}: {first}", row.name, number + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// One run in a line.
pub(super) fn describe(run: &Run) -> String {
    let mut text = format!(
        "gap {:.0} ms, {} rows, {} lost",
        ms(run.gap),
        run.acked,
        run.lost
    );
    if let Some(delay) = run.fencing_ms {
        text.push_str(&format!(", dead {delay:+.0} ms after the deadline"));
    }
    if let Some(back) = run.back {
        text.push_str(&format!(", REST back after {:.0} ms", ms(back)));
    }
    for wrong in &run.wrong {
        text.push_str(&format!("; WRONG: {wrong}"));
    }
    if let Some(why) = &run.inconclusive {
        text.push_str(&format!("; inconclusive: {why}"));
    }
    text
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    if sorted.len().is_multiple_of(2) && middle > 0 {
        f64::midpoint(at(middle - 1), at(middle))
    } else {
        at(middle)
    }
}

fn spread(sorted: &[f64]) -> String {
    match (sorted.first(), sorted.last()) {
        (Some(first), Some(last)) => format!("{first:.0} / {:.0} / {last:.0}", median(sorted)),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(runs: Vec<Run>) -> RowReport {
        let row = super::super::all()
            .into_iter()
            .find(|row| row.name == "node-loss");
        let mut report = RowReport::new(&row.expect("a row"), Mode::Quorum);
        report.runs = runs;
        report
    }

    fn run(gap_ms: u64) -> Run {
        Run {
            gap: Duration::from_millis(gap_ms),
            acked: 100,
            ..Run::default()
        }
    }

    #[test]
    fn verdict_puts_what_is_wrong_before_what_proves_nothing_before_what_is_slow() {
        assert_eq!(report(vec![run(100), run(2900), run(9000)]).verdict(), "ok");
        let slow = report(vec![run(3100), run(3200)]);
        assert_eq!(slow.verdict(), "slow, limit 3000");
        let mut runs = slow.runs.clone();
        runs.push(Run {
            inconclusive: Some("x".to_owned()),
            ..run(1)
        });
        assert_eq!(report(runs.clone()).verdict(), "inconclusive in 1");
        runs.push(Run {
            wrong: vec!["x".to_owned()],
            ..run(1)
        });
        assert_eq!(report(runs).verdict(), "FAILED in 1");
        assert_eq!(report(Vec::new()).verdict(), "inconclusive in 0");
    }

    #[test]
    fn median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert!((median(&[1.0, 2.0, 4.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
    }
}
