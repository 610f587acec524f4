//! The unified diff that `edit-config` shows, by the same matching as Python's `difflib`, so that
//! scripts that compare it see the lines that they know.

use std::collections::HashMap;
use std::ops::Range;

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// From this many lines on, `difflib` takes no lines for anchors that appear in more than one of a
/// hundred.
const POPULAR_FROM: usize = 200;

/// The diff without colours: headers, then the hunks. Empty when nothing differs.
pub fn unified(before: &str, after: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut lines = Vec::new();
    for hunk in hunks(changes(&a, &b), a.len()) {
        if lines.is_empty() {
            lines.extend([String::from("--- "), String::from("+++ ")]);
        }
        lines.push(header(&hunk));
        for change in hunk {
            let prefixed = |sign: char, lines: &[&str], range: Range<usize>| {
                let lines = lines.get(range).unwrap_or_default();
                lines
                    .iter()
                    .map(|line| format!("{sign}{line}"))
                    .collect::<Vec<_>>()
            };
            if change.same {
                lines.extend(prefixed(' ', &a, change.a));
                continue;
            }
            lines.extend(prefixed('-', &a, change.a));
            lines.extend(prefixed('+', &b, change.b));
        }
    }
    lines
}

/// A stretch that is the same on both sides, or that one replaces by the other.
#[derive(Clone, Debug, PartialEq)]
struct Stretch {
    same: bool,
    a: Range<usize>,
    b: Range<usize>,
}

fn header(hunk: &[Stretch]) -> String {
    let span = |of: fn(&Stretch) -> &Range<usize>| {
        let start = hunk.first().map_or(0, |s| of(s).start);
        let end = hunk.last().map_or(0, |s| of(s).end);
        match end - start {
            1 => format!("{}", start + 1),
            // An empty range begins before the line that follows.
            0 => format!("{start},0"),
            length => format!("{},{length}", start + 1),
        }
    };
    format!("@@ -{} +{} @@", span(|s| &s.a), span(|s| &s.b))
}

/// Groups changes that are close to each other, with their context.
fn hunks(stretches: Vec<Stretch>, lines: usize) -> Vec<Vec<Stretch>> {
    if stretches.iter().all(|s| s.same) {
        return Vec::new();
    }
    let mut hunks = Vec::new();
    let mut hunk: Vec<Stretch> = Vec::new();
    for stretch in stretches {
        let length = stretch.a.len();
        if !stretch.same {
            hunk.push(stretch);
            continue;
        }
        let is_last = stretch.a.end == lines;
        let head = |n: usize| Stretch {
            same: true,
            a: stretch.a.start..stretch.a.start + n,
            b: stretch.b.start..stretch.b.start + n,
        };
        let tail = |n: usize| Stretch {
            same: true,
            a: stretch.a.end - n..stretch.a.end,
            b: stretch.b.end - n..stretch.b.end,
        };
        if hunk.is_empty() {
            hunk.push(tail(length.min(CONTEXT)));
        } else if is_last || length > 2 * CONTEXT {
            hunk.push(head(length.min(CONTEXT)));
            hunks.push(std::mem::take(&mut hunk));
            hunk.push(tail(length.min(CONTEXT)));
        } else {
            hunk.push(stretch);
        }
    }
    if hunk.iter().any(|s| !s.same) {
        hunks.push(hunk);
    }
    hunks
}

/// Both texts as a sequence of stretches.
fn changes(a: &[&str], b: &[&str]) -> Vec<Stretch> {
    let mut blocks = Vec::new();
    matching_blocks(a, b, &mut blocks);
    blocks.push((a.len(), b.len(), 0));
    let mut stretches: Vec<Stretch> = Vec::new();
    let (mut at_a, mut at_b) = (0, 0);
    for (start_a, start_b, length) in blocks {
        if at_a < start_a || at_b < start_b {
            stretches.push(Stretch {
                same: false,
                a: at_a..start_a,
                b: at_b..start_b,
            });
        }
        let (end_a, end_b) = (start_a + length, start_b + length);
        match stretches.last_mut() {
            Some(last)
                if last.same && length > 0 && last.a.end == start_a && last.b.end == start_b =>
            {
                (last.a.end, last.b.end) = (end_a, end_b);
            }
            _ if length > 0 => {
                stretches.push(Stretch {
                    same: true,
                    a: start_a..end_a,
                    b: start_b..end_b,
                });
            }
            _ => {}
        }
        (at_a, at_b) = (end_a, end_b);
    }
    stretches
}

/// The longest match, then the same on both sides of it.
fn matching_blocks(a: &[&str], b: &[&str], blocks: &mut Vec<(usize, usize, usize)>) {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, line) in b.iter().enumerate() {
        places.entry(line).or_default().push(at);
    }
    if b.len() >= POPULAR_FROM {
        let limit = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= limit);
    }
    let mut open = vec![(0..a.len(), 0..b.len())];
    while let Some((in_a, in_b)) = open.pop() {
        let (i, j, length) = longest_match(a, b, &places, in_a.clone(), in_b.clone());
        if length == 0 {
            continue;
        }
        blocks.push((i, j, length));
        open.push((in_a.start..i, in_b.start..j));
        open.push((i + length..in_a.end, j + length..in_b.end));
    }
    blocks.sort_unstable();
}

fn longest_match(
    a: &[&str],
    b: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    in_a: Range<usize>,
    in_b: Range<usize>,
) -> (usize, usize, usize) {
    let (mut best_i, mut best_j, mut best) = (in_a.start, in_b.start, 0);
    // Length of the match that ends at a line of b, for the line of a before.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for (i, line) in a.iter().enumerate().take(in_a.end).skip(in_a.start) {
        let mut next = HashMap::new();
        for &j in places.get(line).map(Vec::as_slice).unwrap_or_default() {
            if !in_b.contains(&j) {
                continue;
            }
            let before = j.checked_sub(1).and_then(|j| ending.get(&j)).copied();
            let length = before.unwrap_or(0) + 1;
            next.insert(j, length);
            if length > best {
                (best_i, best_j, best) = (i + 1 - length, j + 1 - length, length);
            }
        }
        ending = next;
    }
    // Popular lines are no anchors, but they do belong to a match beside them.
    let equal = |i: usize, j: usize| a.get(i).is_some() && a.get(i) == b.get(j);
    while best_i > in_a.start && best_j > in_b.start && equal(best_i - 1, best_j - 1) {
        (best_i, best_j, best) = (best_i - 1, best_j - 1, best + 1);
    }
    while best_i + best < in_a.end
        && best_j + best < in_b.end
        && equal(best_i + best, best_j + best)
    {
        best += 1;
    }
    (best_i, best_j, best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn distant_changes_get_hunks_of_their_own() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n";
        let after = "A\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\n";
        let shown = unified(before, after);
        let expected = [
            "--- ",
            "+++ ",
            "@@ -1,4 +1,4 @@",
            "-a",
            "+A",
            " b",
            " c",
            " d",
            "@@ -8,3 +8,4 @@",
            " h",
            " i",
            " j",
            "+k",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn one_sided_texts_have_empty_ranges() {
        assert_eq!(unified("", "a\n"), ["--- ", "+++ ", "@@ -0,0 +1 @@", "+a"]);
        assert_eq!(unified("a\n", ""), ["--- ", "+++ ", "@@ -1 +0,0 @@", "-a"]);
        assert!(unified("a\n", "a\n").is_empty());
    }

    proptest! {
        #[test]
        fn a_diff_turns_the_one_into_the_other(
            a in proptest::collection::vec("[abc]", 0..30),
            b in proptest::collection::vec("[abc]", 0..30),
        ) {
            let (a, b): (Vec<&str>, Vec<&str>) =
                (a.iter().map(String::as_str).collect(), b.iter().map(String::as_str).collect());
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for stretch in changes(&a, &b) {
                let (in_a, in_b) = (&a[stretch.a], &b[stretch.b]);
                prop_assert!(!stretch.same || in_a == in_b);
                left.extend_from_slice(in_a);
                right.extend_from_slice(in_b);
            }
            prop_assert_eq!(left, a);
            prop_assert_eq!(right, b);
        }
    }
}
