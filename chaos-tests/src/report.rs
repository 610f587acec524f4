//! The table of what was done and what it cost.

use std::fmt;
use std::time::Duration;

/// One line: something that was done to the cluster.
#[derive(Clone, Debug)]
pub struct Line {
    /// What.
    pub what: String,
    /// Longest time without an acknowledgement, as the writer saw it.
    pub gap: Duration,
    /// Rows acknowledged from this event to the next.
    pub acked: usize,
    /// Rows acknowledged up to then and missing.
    pub lost: usize,
    /// More about it: phases, how a node came back.
    pub notes: Vec<String>,
}

/// All lines.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order.
    pub lines: Vec<Line>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["what was done", "write gap ms", "rows acked", "rows lost"].map(str::to_owned);
        let rows = self.lines.iter().map(|line| {
            let gap = line.gap.as_millis().to_string();
            [
                line.what.clone(),
                gap,
                line.acked.to_string(),
                line.lost.to_string(),
            ]
        });
        write!(f, "{}", table(&head, &rows.collect::<Vec<_>>()))?;
        for line in &self.lines {
            for note in &line.notes {
                writeln!(f, "{}: {note}", line.what)?;
            }
        }
        Ok(())
    }
}

/// A table in the manner of psql: the first column to the left, the others to the right.
pub fn table<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let all = || std::iter::once(head).chain(rows);
    let width = |column: usize| {
        all()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let rule = format!("+{}+\n", rule.join("+"));
    let mut text = rule.clone();
    for (index, row) in all().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let cell = if column == 0 {
                format!("{cell}{pad}")
            } else {
                format!("{pad}{cell}")
            };
            text.push_str(&format!("| {cell} "));
        }
        text.push_str("|\n");
        if index == 0 {
            text.push_str(&rule);
        }
    }
    text.push_str(&rule);
    text
}

/// Middle of the values, none of an empty list.
pub fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_as_wide_as_its_widest_cell() {
        let head = ["what", "ms"].map(str::to_owned);
        let rows = [["switchover", "7"].map(str::to_owned)];
        let expected = "+------------+----+\n| what       | ms |\n+------------+----+\n\
                        | switchover |  7 |\n+------------+----+\n";
        assert_eq!(table(&head, &rows), expected);
    }
}
