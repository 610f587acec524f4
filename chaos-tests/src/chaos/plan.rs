//! A random schedule: the same seed makes the same one.

use super::episode::Episode;
use super::rows::{Hold, Row};
use std::time::Duration;

/// Longest random fault.
const HOLD_MAX_MS: u64 = 20_000;
/// Longest pause between two faults of one episode.
const PAUSE_MAX_MS: u64 = 6_000;

/// The dice and the rows among which they choose.
pub(super) struct Plan {
    dice: fastrand::Rng,
    rows: Vec<Row>,
}

impl Plan {
    /// Those of the rows that may come in any order with any other: what a person breaks by hand is
    /// measured alone.
    pub(super) fn new(seed: u64, rows: &[Row]) -> Self {
        Self {
            dice: fastrand::Rng::with_seed(seed),
            rows: rows.iter().filter(|row| !row.by_hand).copied().collect(),
        }
    }

    /// What comes next: one fault, often two, sometimes three.
    pub(super) fn next(&mut self) -> Option<Episode> {
        let count = match self.dice.u8(..10) {
            0..=4 => 1,
            5..=8 => 2,
            _ => 3,
        };
        let mut rows = Vec::new();
        for number in 0..count {
            let row = *self.dice.choice(&self.rows)?;
            let pause = if number == 0 {
                0
            } else {
                self.dice.u64(0..PAUSE_MAX_MS)
            };
            rows.push((Duration::from_millis(pause), row));
        }
        let hold = Hold::For(Duration::from_millis(self.dice.u64(0..HOLD_MAX_MS)));
        let random = true;
        Some(Episode { rows, hold, random })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::rows;

    #[test]
    fn same_seed_makes_the_same_schedule_and_another_one_another() {
        let rows = rows::all(Duration::from_secs(8));
        let schedule = |seed| {
            let mut plan = Plan::new(seed, &rows);
            let names = std::iter::repeat_with(|| plan.next().map(|e| e.name()));
            names.take(50).collect::<Vec<_>>()
        };
        assert_eq!(schedule(1), schedule(1));
        assert_ne!(schedule(1), schedule(2));
    }

    #[test]
    fn every_row_is_reached_and_none_that_a_person_breaks() {
        let rows = rows::all(Duration::from_secs(8));
        let mut plan = Plan::new(7, &rows);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let episode = plan.next().expect("an episode");
            seen.extend(episode.rows.iter().map(|(_, row)| row.name));
        }
        let expected = rows.iter().filter(|row| !row.by_hand);
        assert_eq!(seen, expected.map(|row| row.name).collect());
    }
}
