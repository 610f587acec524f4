//! What happened, one line per event that matters, and how often each rule and fault was reached.

use super::clock::{MS, SEC, T};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Rule,
    Order,
    Etcd,
    Pg,
    Guard,
    Job,
    Fault,
    Client,
    Check,
}

#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Whether lines are kept at all; counting never stops.
    pub told: bool,
    pub lines: Vec<String>,
    /// Few, and each text has one address nearly always: looked up by that, it costs next to nothing.
    pub reached: Vec<(&'static str, u64)>,
    /// A number that two runs of one seed must share.
    pub trace: u64,
}

impl Story {
    pub fn tell(&mut self, now: T, who: &str, tag: Tag, what: impl FnOnce() -> String) {
        if self.told {
            let (s, ms) = (now / SEC, now % SEC / MS);
            self.lines
                .push(format!("{s:>4}.{ms:03} {who:<4} {tag:?}: {}", what()));
        }
    }

    pub fn reach(&mut self, what: &'static str) {
        let known = self
            .reached
            .iter_mut()
            .find(|(k, _)| std::ptr::eq(*k, what));
        match known {
            Some((_, count)) => *count += 1,
            None => self.reached.push((what, 1)),
        }
    }

    /// How often what was reached.
    pub fn add_to(&self, total: &mut BTreeMap<&'static str, u64>) {
        for (what, count) in &self.reached {
            *total.entry(what).or_default() += count;
        }
    }

    pub fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(5);
    }
}
