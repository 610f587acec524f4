//! One table of any number of sessions: a line per fault, our agents beside the released Patroni.

use super::record::{Run, Session};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Reads sessions that were written as JSON.
///
/// # Errors
/// When a file cannot be read or is of another form.
pub fn read(files: &[PathBuf]) -> Result<Vec<Session>> {
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file);
        let text = text.with_context(|| format!("read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
    };
    files.iter().map(read).collect()
}

/// All runs of one fault by one kind of agent.
#[derive(Clone, Debug, Default)]
struct Line<'a> {
    runs: Vec<&'a Run>,
}

impl Line<'_> {
    /// Those that came to an end and prove something.
    fn judged(&self) -> impl Iterator<Item = &Run> {
        let runs = self.runs.iter().copied();
        runs.filter(|run| run.inconclusive.is_none() && run.gap_ms > 0.0)
    }

    fn sorted(&self, of: impl Fn(&Run) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self.judged().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn sum(&self, of: impl Fn(&Run) -> usize) -> usize {
        self.runs.iter().map(|run| of(run)).sum()
    }

    fn overlap(&self) -> f64 {
        self.runs
            .iter()
            .map(|run| run.overlap_ms)
            .fold(0.0, f64::max)
    }

    /// Runs, gap, acknowledged, lost, doubled, overlap.
    fn cells(&self) -> String {
        if self.runs.is_empty() {
            return "– | – | – | – | –".to_owned();
        }
        let empty = self.runs.len() - self.judged().count();
        let runs = match empty {
            0 => self.runs.len().to_string(),
            _ => format!("{} ({empty} inconclusive)", self.runs.len()),
        };
        format!(
            "{runs} | {} | {} | {} / {} | {:.0}",
            spread(&self.sorted(|run| Some(run.gap_ms))),
            self.sum(|run| run.acked),
            self.sum(|run| run.lost),
            self.sum(|run| run.doubled),
            self.overlap(),
        )
    }

    /// In one or a few words; `ok` when everything is.
    fn verdict(&self) -> String {
        let wrong = self.runs.iter().filter(|run| !run.wrong.is_empty()).count();
        if wrong > 0 {
            return format!("FAILED in {wrong}");
        }
        if self.judged().next().is_none() {
            return "inconclusive".to_owned();
        }
        let limit = self.runs.iter().find_map(|run| run.limit_ms);
        match limit {
            Some(limit) if median(&self.sorted(|run| Some(run.gap_ms))) > f64::from(limit) => {
                format!("slow, limit {limit}")
            }
            _ => "ok".to_owned(),
        }
    }
}

/// Name of the line of a run: random ones of several faults have a line of their own, whatever they were.
fn line_of(run: &Run) -> (String, String) {
    match (run.random, run.faults) {
        (true, 2) => (
            "random-two".to_owned(),
            "two random faults within 6 s".to_owned(),
        ),
        (true, 3..) => (
            "random-three".to_owned(),
            "three random faults within 12 s".to_owned(),
        ),
        (true, _) => (
            format!("{} (random)", run.row),
            format!("{}, for up to 20 s", run.what),
        ),
        _ => (run.row.clone(), run.what.clone()),
    }
}

type Key = (bool, String, String);

/// The table, and what it is made of.
pub fn table(sessions: &[Session]) -> String {
    let mut lines: BTreeMap<Key, (String, [Line<'_>; 2])> = BTreeMap::new();
    for session in sessions {
        let side = usize::from(session.agent == "patroni");
        for run in &session.runs {
            let (name, what) = line_of(run);
            let key = (run.random, session.mode.clone(), name);
            let (_, sides) = lines.entry(key).or_insert((what, Default::default()));
            if let Some(line) = sides.get_mut(side) {
                line.runs.push(run);
            }
        }
    }
    let with_patroni = sessions.iter().any(|session| session.agent == "patroni");
    let mut text = head(with_patroni);
    for ((_, mode, name), (what, [ours, theirs])) in &lines {
        let fencing = spread(&ours.sorted(|run| run.fencing_ms));
        let _ = write!(
            text,
            "| `{name}` | {what} | {mode} | {} | {fencing} | ",
            ours.cells()
        );
        let verdict = if ours.runs.is_empty() {
            "–".to_owned()
        } else {
            ours.verdict()
        };
        let _ = write!(text, "{verdict} |");
        if with_patroni {
            let _ = write!(text, " {} |", theirs.cells());
        }
        text.push('\n');
    }
    text.push_str(&totals(sessions));
    text.push_str(&troubles(sessions));
    text
}

fn head(with_patroni: bool) -> String {
    let own = "| fault | what | mode | runs | write gap ms min / median / max | rows acknowledged | \
               lost / doubled | two primaries, ms | dead after deadline, ms | verdict |";
    let theirs = " Patroni: runs | write gap ms min / median / max | rows acknowledged | \
                  lost / doubled | two primaries, ms |";
    let columns = if with_patroni { 15 } else { 10 };
    let theirs = if with_patroni { theirs } else { "" };
    format!("{own}{theirs}\n|{}\n", "---|".repeat(columns))
}

/// Hours and counts, by agent, mode and versions.
fn totals(sessions: &[Session]) -> String {
    let mut groups: BTreeMap<String, Vec<&Session>> = BTreeMap::new();
    for session in sessions {
        let name = format!(
            "{}, {}, PostgreSQL {}, etcd {}",
            session.agent, session.mode, session.postgres, session.etcd
        );
        groups.entry(name).or_default().push(session);
    }
    let mut text = String::from(
        "\n| on | hours | faults | inconclusive | rows acknowledged | of unknown outcome | list transactions | \
         register calls | searches given up | stale reads before the deadline | wrong |\n",
    );
    let _ = writeln!(text, "|{}", "---|".repeat(11));
    for (name, group) in groups {
        let hours: f64 = group.iter().map(|session| session.seconds).sum::<f64>() / 3600.0;
        let runs = || group.iter().flat_map(|session| &session.runs);
        let chapters = || group.iter().flat_map(|session| &session.chapters);
        let wrong = runs().map(|run| run.wrong.len()).sum::<usize>()
            + chapters().map(|chapter| chapter.wrong.len()).sum::<usize>()
            + group
                .iter()
                .map(|s| s.post_mortem_wrong.len())
                .sum::<usize>();
        let faults: usize = runs().map(|run| run.faults).sum();
        let empty = runs().filter(|run| run.inconclusive.is_some()).count();
        let _ = writeln!(
            text,
            "| {name} | {hours:.2} | {faults} | {empty} | {} | {} | {} | {} | {} | {} | {wrong} |",
            chapters().map(|c| c.acked).sum::<usize>(),
            chapters().map(|c| c.unknown).sum::<usize>(),
            chapters().map(|c| c.transactions).sum::<usize>(),
            chapters().map(|c| c.calls).sum::<usize>(),
            chapters().map(|c| c.given_up).sum::<usize>(),
            chapters().map(|c| c.stale).sum::<usize>(),
        );
    }
    text
}

/// Everything that was wrong or proved nothing, one line each.
fn troubles(sessions: &[Session]) -> String {
    let mut text = String::new();
    for session in sessions {
        let on = format!("{}, {}, seed {}", session.agent, session.mode, session.seed);
        for run in &session.runs {
            for wrong in run.wrong.iter().chain(&run.inconclusive) {
                let first = wrong.lines().next().unwrap_or_default();
                let _ = writeln!(text, "\n`{}` at {:.0} s ({on}): {first}", run.row, run.at);
            }
        }
        for (number, chapter) in session.chapters.iter().enumerate() {
            for wrong in &chapter.wrong {
                let first = wrong.lines().next().unwrap_or_default();
                let _ = writeln!(text, "\nchapter {} ({on}): {first}", number + 1);
            }
        }
        for wrong in &session.post_mortem_wrong {
            let _ = writeln!(text, "\npost-mortem ({on}): {wrong}");
        }
    }
    text
}

/// One run in a line.
pub(super) fn describe(run: &Run) -> String {
    let mut text = format!("gap {:.0} ms", run.gap_ms);
    if run.promotions > 0 {
        let _ = write!(text, ", {} promotion(s)", run.promotions);
    }
    if let Some(delay) = run.fencing_ms {
        let _ = write!(text, ", dead {delay:+.0} ms after the deadline");
    }
    if let Some(back) = run.back_ms {
        let _ = write!(text, ", REST back after {back:.0} ms");
    }
    for wrong in &run.wrong {
        let _ = write!(text, "; WRONG: {wrong}");
    }
    if let Some(why) = &run.inconclusive {
        let _ = write!(text, "; inconclusive: {why}");
    }
    text
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

    fn run(gap_ms: f64) -> Run {
        Run {
            row: "node-loss".to_owned(),
            gap_ms,
            acked: 100,
            faults: 1,
            limit_ms: Some(3000),
            ..Run::default()
        }
    }

    fn verdict(runs: &[Run]) -> String {
        let runs = runs.iter().collect();
        Line { runs }.verdict()
    }

    #[test]
    fn verdict_puts_what_is_wrong_before_what_proves_nothing_before_what_is_slow() {
        let mut runs = vec![run(100.0), run(2900.0), run(9000.0)];
        assert_eq!(verdict(&runs), "ok");
        runs = vec![run(3100.0), run(3200.0)];
        assert_eq!(verdict(&runs), "slow, limit 3000");
        for run in &mut runs {
            run.inconclusive = Some("x".to_owned());
        }
        assert_eq!(verdict(&runs), "inconclusive");
        runs.push(Run {
            wrong: vec!["x".to_owned()],
            ..run(1.0)
        });
        assert_eq!(verdict(&runs), "FAILED in 1");
    }

    #[test]
    fn sessions_of_both_agents_share_a_line_and_random_ones_do_not_join_the_rows() {
        let session = |agent: &str, runs: Vec<Run>| Session {
            agent: agent.to_owned(),
            mode: "quorum".to_owned(),
            runs,
            ..Session::default()
        };
        let random = Run {
            random: true,
            ..run(7.0)
        };
        let sessions = [
            session("garden-agent", vec![run(100.0), random]),
            session("patroni", vec![run(30_000.0)]),
        ];
        let text = table(&sessions);
        let line = text
            .lines()
            .find(|line| line.starts_with("| `node-loss` |"));
        let line = line.expect("a line");
        assert!(line.contains("100 / 100 / 100") && line.contains("30000 / 30000 / 30000"));
        assert!(text.contains("`node-loss (random)`"), "{text}");
    }

    #[test]
    fn median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert!((median(&[1.0, 2.0, 4.0, 9.0]) - 3.0).abs() < 1e-9);
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
    }
}
