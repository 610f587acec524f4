//! Turns examples into what nobody wrote: damage as disks and networks do it, and damage that knows the language.

use std::collections::BTreeSet;

/// Longest input of an ordinary mutation unless an example is longer, and of one in [`LARGE_EVERY`].
const SIZE_MAX: usize = 2 << 10;
const LARGE_MAX: usize = 32 << 10;
const LARGE_EVERY: usize = 500;

/// Enough for days.
const SHAPES_MAX: usize = 1 << 22;

/// Numbers at which arithmetic and formats end.
const NUMBERS: [&str; 24] = [
    "0",
    "-0",
    "-1",
    "1",
    "127",
    "255",
    "256",
    "32768",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-400",
    "0.1",
];

/// What means something to more than one reader, or breaks text that is cut at a byte.
const COMMON: [&str; 46] = [
    "null", "true", "false", "on", "off", "{}", "[]", "\"\"", "{", "}", "[", "]", "(", ")", "\"",
    "'", ":", ",", ";", "=", "/", "\\", "\\u0000", "\\ud800", "%", "%2", "%00", "%ff", "+", "-",
    "--", " ", "\t", "\n", "\r\n", "\0", "#", "é", "𝄞", "\u{feff}", "\u{2028}", "\u{85}", "NaN",
    "infinity", "0x", "1e",
];

/// Makes inputs; the same ones for the same seed, target and corpus.
pub struct Mutator {
    rng: fastrand::Rng,
    words: Vec<Vec<u8>>,
    /// Of the parents.
    shapes: BTreeSet<u64>,
    size_max: usize,
}

impl Mutator {
    pub fn new(seed: u64, target: &str, words: &[&str], examples: &[Vec<u8>]) -> Self {
        let given = words
            .iter()
            .chain(&COMMON)
            .map(|word| word.as_bytes().to_vec());
        let found = examples.iter().flat_map(|example| tokens(example));
        let all: BTreeSet<Vec<u8>> = given.chain(found).collect();
        let longest = examples.iter().map(Vec::len).max().unwrap_or(0);
        Self {
            rng: fastrand::Rng::with_seed(seed ^ hash(target.as_bytes())),
            words: all.into_iter().collect(),
            shapes: BTreeSet::new(),
            size_max: SIZE_MAX.max(longest + 256).min(LARGE_MAX),
        }
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.rng.usize(..limit)
    }

    /// Whether an input that was accepted is to be a parent: none had its shape, and it is not too long.
    pub fn keeps(&mut self, input: &[u8]) -> bool {
        input.len() <= self.size_max && self.shapes.len() < SHAPES_MAX && {
            let shape = self.shape(input);
            self.shapes.insert(shape)
        }
    }

    /// What is left when unknown words are all the same, and numbers of the same length.
    fn shape(&self, input: &[u8]) -> u64 {
        let mut shape = Vec::with_capacity(input.len());
        let mut done = 0;
        for (start, end) in spans(input, is_word) {
            shape.extend_from_slice(&input[done..start]);
            let word = &input[start..end];
            if word.iter().all(u8::is_ascii_digit) {
                shape.push(b'0');
                shape.push(word.len().min(24) as u8);
            } else if self
                .words
                .binary_search_by(|known| known.as_slice().cmp(word))
                .is_ok()
            {
                shape.extend_from_slice(word);
            } else {
                shape.push(b'w');
            }
            done = end;
        }
        shape.extend_from_slice(&input[done..]);
        hash(&shape)
    }

    /// A mutation of one of the parents.
    pub fn next(&mut self, parents: &[Vec<u8>]) -> Vec<u8> {
        let large = self.below(LARGE_EVERY) == 0;
        let mut input = parents[self.below(parents.len())].clone();
        loop {
            let other = &parents[self.below(parents.len())];
            self.change(&mut input, other, large);
            if self.below(3) == 0 {
                break;
            }
        }
        if large {
            self.blow_up(&mut input);
        }
        input.truncate(if large { LARGE_MAX } else { self.size_max });
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8], large: bool) {
        match self.below(16) {
            0 => self.flip(input),
            1 => self.random_bytes(input),
            2 | 3 => self.insert_word(input),
            4 | 5 => self.replace_token(input, other),
            6 | 7 => self.replace_number(input),
            8 => self.leave_out(input),
            9 => self.repeat(input, if large { 1000 } else { 6 }),
            10 => self.splice(input, other),
            11 => self.swap_lines(input),
            12 => self.change_case(input),
            13 | 14 => self.nest(input, other),
            _ => {
                let end = self.below(input.len() + 1);
                input.truncate(end);
            }
        }
    }

    fn flip(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let at = self.below(input.len());
            input[at] ^= 1 << self.below(8);
        }
    }

    fn random_bytes(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let count = 1 + self.below(8);
        let bytes: Vec<u8> = (0..count).map(|_| self.rng.u8(..)).collect();
        if self.rng.bool() {
            input.splice(at..at, bytes);
        } else {
            let end = input.len().min(at + count);
            input.splice(at..end, bytes);
        }
    }

    fn word(&mut self) -> Vec<u8> {
        let at = self.below(self.words.len());
        self.words[at].clone()
    }

    fn insert_word(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let word = self.word();
        input.splice(at..at, word);
    }

    /// A token by a word, or by a token of another input.
    fn replace_token(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let Some((start, end)) = self.pick(&spans(input, is_word)) else {
            return;
        };
        let new = match self.pick(&spans(other, is_word)) {
            Some((from, to)) if self.rng.bool() => other[from..to].to_vec(),
            _ => self.word(),
        };
        input.splice(start..end, new);
    }

    fn replace_number(&mut self, input: &mut Vec<u8>) {
        let Some((start, end)) = self.pick(&spans(input, |byte| byte.is_ascii_digit())) else {
            return;
        };
        let new = match self.below(4) {
            0 => vec![b'9'; 1 + self.below(40)],
            1 => self.rng.u64(..).to_string().into_bytes(),
            _ => NUMBERS[self.below(NUMBERS.len())].as_bytes().to_vec(),
        };
        input.splice(start..end, new);
    }

    fn pick(&mut self, spans: &[(usize, usize)]) -> Option<(usize, usize)> {
        (!spans.is_empty()).then(|| spans[self.below(spans.len())])
    }

    /// A range of the input, mostly a short one.
    fn range(&mut self, input: &[u8]) -> (usize, usize) {
        let start = self.below(input.len() + 1);
        let most = if self.below(4) == 0 { input.len() } else { 12 };
        (start, input.len().min(start + self.below(most + 1)))
    }

    fn leave_out(&mut self, input: &mut Vec<u8>) {
        let (start, end) = self.range(input);
        input.drain(start..end);
    }

    fn repeat(&mut self, input: &mut Vec<u8>, most: usize) {
        let (start, end) = self.range(input);
        let times = (1 + self.below(most)).min(LARGE_MAX / (end - start).max(1));
        let block = input[start..end].repeat(times);
        input.splice(end..end, block);
    }

    fn splice(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let (start, end) = self.range(input);
        let (from, to) = self.range(other);
        input.splice(start..end, other[from..to].iter().copied());
    }

    /// A whole part of another input, with the word before it, behind a bracket or a separator of this one.
    fn nest(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let breaks = |input: &[u8]| spans(input, |byte| b"{[(,;\n".contains(byte));
        let Some((from, to)) = self.pick(&parts(other)) else {
            return;
        };
        let part = other[from..to].to_vec();
        let here = parts(input);
        if self.below(4) == 0
            && let Some((start, end)) = self.pick(&here)
        {
            input.splice(start..end, part);
        } else if let Some((_, at)) = self.pick(&breaks(input)) {
            input.splice(at..at, part);
        }
    }

    fn swap_lines(&mut self, input: &mut Vec<u8>) {
        let mut lines: Vec<Vec<u8>> = input
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let (a, b) = (self.below(lines.len()), self.below(lines.len()));
        match self.below(3) {
            0 => lines.swap(a, b),
            1 => lines.insert(a, lines[b].clone()),
            _ => drop(lines.remove(a)),
        }
        *input = lines.join(&b'\n');
    }

    fn change_case(&mut self, input: &mut [u8]) {
        let Some((start, end)) = self.pick(&spans(input, |byte| byte.is_ascii_alphabetic())) else {
            return;
        };
        let upper = self.rng.bool();
        for byte in &mut input[start..end] {
            *byte = if upper {
                byte.to_ascii_uppercase()
            } else {
                byte.to_ascii_lowercase()
            };
        }
    }

    /// Thousands of the same thing: where work that grows with the square shows.
    fn blow_up(&mut self, input: &mut Vec<u8>) {
        let (start, end) = self.range(input);
        let block = if self.rng.bool() {
            self.word()
        } else {
            input[start..end].to_vec()
        };
        let times = LARGE_MAX / block.len().max(1);
        let at = self.below(input.len() + 1);
        input.splice(at..at, block.repeat(1 + self.below(times)));
    }
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

/// Parts between separators, and parts in brackets with the word before them.
fn parts(input: &[u8]) -> Vec<(usize, usize)> {
    let mut parts = spans(input, |byte| !b"{}[](),;\n".contains(byte));
    let mut open = Vec::new();
    for (at, byte) in input.iter().enumerate() {
        match byte {
            b'{' | b'[' | b'(' => open.push(at),
            b'}' | b']' | b')' => {
                parts.extend(open.pop().map(|start| (word_before(input, start), at + 1)))
            }
            _ => {}
        }
    }
    parts
}

fn word_before(input: &[u8], at: usize) -> usize {
    let outside = |byte: &u8| b"{}[](),;\n".contains(byte);
    input[..at]
        .iter()
        .rposition(outside)
        .map_or(0, |before| before + 1)
}

/// Words of an example, and words with what stands around them.
fn tokens(example: &[u8]) -> Vec<Vec<u8>> {
    let joined = |byte: &u8| is_word(byte) || b"-./:+@%\"'".contains(byte);
    let all = spans(example, is_word)
        .into_iter()
        .chain(spans(example, joined));
    all.filter(|(start, end)| end - start <= 48)
        .map(|(start, end)| example[start..end].to_vec())
        .collect()
}

/// Where runs of such bytes begin and end.
fn spans(input: &[u8], of: impl Fn(&u8) -> bool) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut start = None;
    for (at, byte) in input.iter().enumerate() {
        match (of(byte), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                spans.push((from, at));
                start = None;
            }
            _ => {}
        }
    }
    spans.extend(start.map(|from| (from, input.len())));
    spans
}

/// FNV-1a: the same in every build, unlike the hashes of `std`.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
