//! Which transaction must have come before which, and the cycles in that.
//!
//! The three kinds of dependency and the names of their cycles are Adya's ("Weak Consistency", 1999):
//! a cycle means that no order of the transactions explains what was seen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// It wrote the version before the other's.
    WriteWrite,
    /// It wrote what the other read.
    WriteRead,
    /// It read the version before the other's.
    ReadWrite,
}

/// The forms of a cycle, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CycleKind {
    /// Writes alone: not even READ UNCOMMITTED may show it.
    G0,
    /// Writes and reads of them: READ COMMITTED may not show it.
    G1c,
    /// One read of something that was already overwritten: REPEATABLE READ (snapshots) may not show it.
    GSingle,
    /// Several of those: SERIALIZABLE may not show it.
    G2Item,
}

impl CycleKind {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::G0 => "G0",
            Self::G1c => "G1c",
            Self::GSingle => "G-single",
            Self::G2Item => "G2-item",
        }
    }
}

/// A cycle: each transaction with the dependency of the next on it; the last leads to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle {
    /// Its form.
    pub kind: CycleKind,
    /// Its steps.
    pub steps: Vec<(usize, Edge)>,
}

/// Transactions, by number, and what is between them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    after: BTreeMap<usize, BTreeMap<usize, BTreeSet<Edge>>>,
}

const WRITES: [Edge; 1] = [Edge::WriteWrite];
const COMMITTED: [Edge; 2] = [Edge::WriteWrite, Edge::WriteRead];
const ALL: [Edge; 3] = [Edge::WriteWrite, Edge::WriteRead, Edge::ReadWrite];

impl Graph {
    /// Enters a dependency; one of a transaction on itself says nothing and is left out.
    pub fn add(&mut self, from: usize, to: usize, edge: Edge) {
        if from == to {
            return;
        }
        self.after.entry(to).or_default();
        let next = self.after.entry(from).or_default();
        next.entry(to).or_default().insert(edge);
    }

    /// One cycle, of the worst form, in every knot of transactions that depend on each other.
    pub fn cycles(&self) -> Vec<Cycle> {
        let knots = self.components(&ALL);
        knots.iter().filter_map(|knot| self.worst(knot)).collect()
    }

    fn worst(&self, knot: &BTreeSet<usize>) -> Option<Cycle> {
        let within = |edges: &'static [Edge], kind| {
            let start = self.components(edges).into_iter();
            let start = start.filter(|part| part.is_subset(knot)).flatten().next()?;
            let steps = self.path(start, start, edges, knot)?;
            Some(Cycle { kind, steps })
        };
        within(&WRITES, CycleKind::G0)
            .or_else(|| within(&COMMITTED, CycleKind::G1c))
            .or_else(|| self.single(knot))
            .or_else(|| within(&ALL, CycleKind::G2Item))
    }

    /// A cycle with exactly one step from a read to the write that overtook it.
    fn single(&self, knot: &BTreeSet<usize>) -> Option<Cycle> {
        for from in knot {
            for (to, edges) in self.after.get(from)? {
                if !edges.contains(&Edge::ReadWrite) || !knot.contains(to) {
                    continue;
                }
                if let Some(back) = self.path(*to, *from, &COMMITTED, knot) {
                    let mut steps = vec![(*from, Edge::ReadWrite)];
                    steps.extend(back);
                    let kind = CycleKind::GSingle;
                    return Some(Cycle { kind, steps });
                }
            }
        }
        None
    }

    /// The shortest way of at least one step, as the transactions left on it.
    fn path(
        &self,
        from: usize,
        to: usize,
        edges: &[Edge],
        within: &BTreeSet<usize>,
    ) -> Option<Vec<(usize, Edge)>> {
        let mut came: BTreeMap<usize, (usize, Edge)> = BTreeMap::new();
        let mut pending = VecDeque::from([from]);
        while let Some(at) = pending.pop_front() {
            for (next, kinds) in self.after.get(&at)? {
                let Some(edge) = edges.iter().find(|edge| kinds.contains(edge)) else {
                    continue;
                };
                if !within.contains(next) || came.contains_key(next) {
                    continue;
                }
                came.insert(*next, (at, *edge));
                if *next == to {
                    return Some(unwind(&came, from, to));
                }
                pending.push_back(*next);
            }
        }
        None
    }

    /// Strongly connected components of more than one transaction (Tarjan, without recursion: a
    /// history has tens of thousands of transactions).
    fn components(&self, edges: &[Edge]) -> Vec<BTreeSet<usize>> {
        let mut search = Tarjan::default();
        for root in self.after.keys() {
            if !search.index.contains_key(root) {
                search.explore(self, *root, edges);
            }
        }
        search.found
    }

    fn next(&self, at: usize, edges: &[Edge]) -> Vec<usize> {
        let next = self.after.get(&at).into_iter().flatten();
        let next = next.filter(|(_, kinds)| edges.iter().any(|edge| kinds.contains(edge)));
        next.map(|(to, _)| *to).collect()
    }
}

fn unwind(came: &BTreeMap<usize, (usize, Edge)>, from: usize, to: usize) -> Vec<(usize, Edge)> {
    let mut steps = Vec::new();
    let mut at = to;
    while let Some((before, edge)) = came.get(&at) {
        steps.push((*before, *edge));
        at = *before;
        if at == from {
            break;
        }
    }
    steps.reverse();
    steps
}

#[derive(Default)]
struct Tarjan {
    index: BTreeMap<usize, usize>,
    low: BTreeMap<usize, usize>,
    stack: Vec<usize>,
    on_stack: BTreeSet<usize>,
    found: Vec<BTreeSet<usize>>,
}

impl Tarjan {
    fn explore(&mut self, graph: &Graph, root: usize, edges: &[Edge]) {
        let mut calls = vec![(root, self.enter(root, graph, edges))];
        while let Some((at, pending)) = calls.last_mut() {
            let at = *at;
            match pending.pop() {
                Some(next) if !self.index.contains_key(&next) => {
                    let after = self.enter(next, graph, edges);
                    calls.push((next, after));
                }
                Some(next) if self.on_stack.contains(&next) => self.lower(at, self.index[&next]),
                Some(_) => {}
                None => {
                    calls.pop();
                    self.leave(at);
                    if let Some((parent, _)) = calls.last() {
                        self.lower(*parent, self.low[&at]);
                    }
                }
            }
        }
    }

    fn enter(&mut self, at: usize, graph: &Graph, edges: &[Edge]) -> Vec<usize> {
        let number = self.index.len();
        self.index.insert(at, number);
        self.low.insert(at, number);
        self.stack.push(at);
        self.on_stack.insert(at);
        graph.next(at, edges)
    }

    fn lower(&mut self, at: usize, to: usize) {
        if let Some(low) = self.low.get_mut(&at) {
            *low = (*low).min(to);
        }
    }

    fn leave(&mut self, at: usize) {
        if self.low.get(&at) != self.index.get(&at) {
            return;
        }
        let mut component = BTreeSet::new();
        while let Some(top) = self.stack.pop() {
            self.on_stack.remove(&top);
            component.insert(top);
            if top == at {
                break;
            }
        }
        if component.len() > 1 {
            self.found.push(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Edge::{ReadWrite as Rw, WriteRead as Wr, WriteWrite as Ww};

    fn kinds(edges: &[(usize, usize, Edge)]) -> Vec<CycleKind> {
        let mut graph = Graph::default();
        for (from, to, edge) in edges {
            graph.add(*from, *to, *edge);
        }
        graph.cycles().into_iter().map(|cycle| cycle.kind).collect()
    }

    #[test]
    fn each_form_is_told_from_the_others() {
        assert_eq!(kinds(&[(1, 2, Ww), (2, 1, Ww)]), [CycleKind::G0]);
        assert_eq!(kinds(&[(1, 2, Ww), (2, 1, Wr)]), [CycleKind::G1c]);
        assert_eq!(kinds(&[(1, 2, Wr), (2, 1, Wr)]), [CycleKind::G1c]);
        let single = [(1, 2, Wr), (2, 3, Ww), (3, 1, Rw)];
        assert_eq!(kinds(&single), [CycleKind::GSingle]);
        assert_eq!(kinds(&[(1, 2, Rw), (2, 1, Rw)]), [CycleKind::G2Item]);
        assert_eq!(kinds(&[(1, 2, Ww), (2, 3, Wr), (1, 3, Rw)]), []);
    }

    #[test]
    fn worst_form_of_a_knot_is_named_and_every_knot_has_one() {
        let knots = [
            (1, 2, Rw),
            (2, 1, Rw),
            (2, 3, Wr),
            (3, 2, Ww),
            (7, 8, Ww),
            (8, 9, Ww),
            (9, 7, Ww),
        ];
        let mut found = kinds(&knots);
        found.sort();
        assert_eq!(found, [CycleKind::G0, CycleKind::G1c]);
    }

    #[test]
    fn steps_of_a_cycle_lead_back_to_its_begin() {
        let mut graph = Graph::default();
        for (from, to, edge) in [(5, 6, Wr), (6, 7, Ww), (7, 5, Rw), (5, 7, Rw)] {
            graph.add(from, to, edge);
        }
        let cycles = graph.cycles();
        let steps = vec![(7, Rw), (5, Wr), (6, Ww)];
        assert_eq!(cycles.first().map(|cycle| cycle.steps.clone()), Some(steps));
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let mut graph = Graph::default();
        for at in 0..20_000 {
            graph.add(at, at + 1, Ww);
        }
        assert!(graph.cycles().is_empty());
        graph.add(20_000, 0, Rw);
        let kinds: Vec<_> = graph.cycles().into_iter().map(|cycle| cycle.kind).collect();
        assert_eq!(kinds, [CycleKind::GSingle]);
    }
}
