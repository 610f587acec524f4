//! `synchronous_standby_names`: its grammar, and what a value enforces (PostgreSQL documentation,
//! "synchronous_standby_names", section 19.6.2; the scanner in `syncrep_scanner.l`).

use crate::ids::STRICT_PLACEHOLDER;
use serde::{Deserialize, Serialize};

/// How PostgreSQL chooses the standbys that a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// The first ones of the list that are connected. A list without a keyword means this.
    #[default]
    First,
    /// Any of the list.
    Any,
}

/// A value of `synchronous_standby_names`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParsedNames {
    /// How standbys are chosen.
    pub form: Form,
    /// How many a commit waits for. Zero only for the empty value.
    pub count: u32,
    /// The list, in its order, without quotes.
    pub names: Vec<String>,
}

/// Parses a value; `None` for one that PostgreSQL would refuse. The empty value gives no names.
pub fn parse_names(text: &str) -> Option<ParsedNames> {
    let tokens = tokens(text)?;
    match tokens.as_slice() {
        [] => Some(ParsedNames::default()),
        [
            Token::Bare(keyword),
            Token::Bare(count),
            Token::Open,
            list @ ..,
            Token::Close,
        ] => {
            let form = match keyword.to_ascii_lowercase().as_str() {
                "any" => Form::Any,
                "first" => Form::First,
                _ => return None,
            };
            Some(ParsedNames {
                form,
                count: parse_count(count)?,
                names: parse_list(list)?,
            })
        }
        [Token::Bare(count), Token::Open, list @ .., Token::Close] => {
            let names = parse_list(list)?;
            Some(ParsedNames {
                form: Form::First,
                count: parse_count(count)?,
                names,
            })
        }
        list => Some(ParsedNames {
            form: Form::First,
            count: 1,
            names: parse_list(list)?,
        }),
    }
}

enum Token {
    /// An identifier, a keyword, a number or `*`.
    Bare(String),
    Quoted(String),
    Open,
    Close,
    Comma,
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '*' => tokens.push(Token::Bare("*".into())),
            '"' => {
                let mut name = String::new();
                loop {
                    match chars.next()? {
                        '"' if chars.next_if_eq(&'"').is_some() => name.push('"'),
                        '"' => break,
                        other => name.push(other),
                    }
                }
                tokens.push(Token::Quoted(name));
            }
            c if c.is_ascii_digit() || starts_identifier(c) => {
                let digits = c.is_ascii_digit();
                let mut word = String::from(c);
                while let Some(next) = chars.next_if(|n| {
                    n.is_ascii_digit() || (!digits && (starts_identifier(*n) || *n == '$'))
                }) {
                    word.push(next);
                }
                tokens.push(Token::Bare(word));
            }
            _ => return None,
        }
    }
    Some(tokens)
}

fn starts_identifier(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn parse_count(word: &str) -> Option<u32> {
    word.parse().ok().filter(|n| *n > 0)
}

fn parse_list(tokens: &[Token]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match (index % 2, token) {
            (0, Token::Bare(word)) if !is_keyword(word) => names.push(word.clone()),
            (0, Token::Quoted(word)) => names.push(word.clone()),
            (1, Token::Comma) => {}
            _ => return None,
        }
    }
    // A list ends with a name, so it has an odd number of tokens.
    (tokens.len() % 2 == 1).then_some(names)
}

fn is_keyword(word: &str) -> bool {
    word.eq_ignore_ascii_case("any") || word.eq_ignore_ascii_case("first")
}

/// The value that makes commits wait for `count` of `names`, in the form that Patroni writes: sorted,
/// without a keyword for [`Form::First`], one name alone without its number. No names give the empty
/// value, which lets commits pass.
pub fn render_names(names: &[String], count: u32, form: Form) -> String {
    let mut quoted: Vec<String> = names.iter().map(|name| quote(name)).collect();
    quoted.sort_unstable();
    quoted.dedup();
    match (form, quoted.as_slice()) {
        (_, []) => String::new(),
        (Form::First, [one]) if count <= 1 => one.clone(),
        (Form::First, list) => format!("{count} ({})", list.join(",")),
        (Form::Any, list) => format!("ANY {count} ({})", list.join(",")),
    }
}

/// The value with which no commit is acknowledged: it waits for a standby that cannot exist.
pub fn placeholder() -> String {
    STRICT_PLACEHOLDER.to_owned()
}

fn quote(name: &str) -> String {
    let mut chars = name.chars();
    let starts = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let plain = starts && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$');
    if plain && !is_keyword(name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(names: &[&str], count: u32, form: Form) -> String {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        render_names(&names, count, form)
    }

    #[test]
    fn names_are_rendered_as_patroni_renders_them() {
        assert_eq!(render(&[], 1, Form::First), "");
        assert_eq!(render(&["b"], 1, Form::First), "b");
        assert_eq!(render(&["b", "a"], 2, Form::First), "2 (a,b)");
        assert_eq!(render(&["b", "a"], 1, Form::Any), "ANY 1 (a,b)");
        assert_eq!(render(&["b"], 1, Form::Any), "ANY 1 (b)");
        assert_eq!(render(&["pg-1", "first", "Any", "1a"], 4, Form::First), {
            r#"4 ("1a","Any","first","pg-1")"#
        });
        assert_eq!(render(&[r#"a"b"#], 1, Form::First), r#""a""b""#);
    }

    #[test]
    fn every_form_of_the_grammar_is_read() {
        let read = |text: &str| parse_names(text).map(|p| (p.form, p.count, p.names.join("|")));
        let first = |n, names: &str| Some((Form::First, n, names.to_owned()));
        assert_eq!(read(""), first(0, ""));
        assert_eq!(read("  "), first(0, ""));
        assert_eq!(read("a"), first(1, "a"));
        assert_eq!(read("a, B ,\"c-1\""), first(1, "a|B|c-1"));
        assert_eq!(read("*"), first(1, "*"));
        assert_eq!(read("2 (a,b)"), first(2, "a|b"));
        assert_eq!(read("2(a,b)"), first(2, "a|b"));
        assert_eq!(read("first 1 (a)"), first(1, "a"));
        assert_eq!(
            read("ANY 2 (\"a\"\"b\",c,d)"),
            Some((Form::Any, 2, "a\"b|c|d".into()))
        );
        assert_eq!(read("\"first\""), first(1, "first"));
        assert_eq!(read("7"), first(1, "7"), "a number alone is a name");
        assert_eq!(read("1 (7,8)"), first(1, "7|8"));
    }

    #[test]
    fn what_postgres_refuses_is_refused() {
        for bad in [
            "first",
            "any",
            "a,",
            ",a",
            "a b",
            "2 (a",
            "2 a)",
            "()",
            "1 ()",
            "0 (a)",
            "-1 (a)",
            "ANY (a)",
            "ANY x (a)",
            "FIRST 1 a",
            "\"a",
            "a;b",
            "1a",
            "99999999999 (a)",
            "pg-1",
        ] {
            assert_eq!(parse_names(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back(
            names in proptest::collection::btree_set("\\PC{1,8}", 1..5),
            any in any::<bool>(),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let count = u32::try_from(names.len()).expect("few");
            let form = if any { Form::Any } else { Form::First };
            let parsed = parse_names(&render_names(&names, count, form)).expect("our own text");
            let read: std::collections::BTreeSet<String> = parsed.names.into_iter().collect();
            prop_assert_eq!(read, names.into_iter().collect());
            prop_assert_eq!((parsed.count, parsed.form), (count, form));
        }

        #[test]
        fn the_parser_never_panics(text in "\\PC*") {
            let _ = parse_names(&text);
        }
    }
}
