//! Rows and columns, and the formats in which they are printed (`cli.md` 5).

use super::args::Format;
use crate::config::value::python_text;
use crate::config::yaml;
use proto::rest::json::to_text;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Column after which PyYAML folds a long text here.
const YAML_WIDTH: usize = 200;

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its title in a table.
    pub title: Cow<'static, str>,
    /// Its key in the other formats.
    pub key: Cow<'static, str>,
    /// Numbers stand on the right.
    pub right: bool,
}

impl Column {
    /// Left-aligned, one name everywhere.
    pub const fn left(name: &'static str) -> Self {
        Self {
            title: Cow::Borrowed(name),
            key: Cow::Borrowed(name),
            right: false,
        }
    }

    /// Right-aligned, one name everywhere.
    pub const fn right(name: &'static str) -> Self {
        Self {
            title: Cow::Borrowed(name),
            key: Cow::Borrowed(name),
            right: true,
        }
    }

    /// Left-aligned, with a name that somebody else chose.
    pub fn named(name: String) -> Self {
        Self {
            title: Cow::Owned(name.clone()),
            key: Cow::Owned(name),
            right: false,
        }
    }
}

/// Rows and columns. A null cell is empty; a mapping is shown as YAML.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    /// Columns.
    pub columns: Vec<Column>,
    /// As many cells as columns each.
    pub rows: Vec<Vec<Value>>,
}

/// Whether keys without a value are printed at all in JSON and YAML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// As empty texts.
    Keep,
    /// Not.
    Drop,
    /// As null.
    Null,
}

impl Sheet {
    /// The text in a format other than a table's, with its last newline.
    pub fn render(&self, format: Format, empty: Empty) -> String {
        match format {
            Format::Pretty => self.table(None),
            Format::Tsv => self.tsv("\t"),
            Format::Json => format!("{}\n", to_text(&self.documents(empty))),
            Format::Yaml | Format::Yml => {
                // An empty line follows, as scripts have always seen it.
                format!(
                    "{}\n",
                    yaml::to_string_wide(&self.documents(empty), YAML_WIDTH)
                )
            }
        }
    }

    fn documents(&self, empty: Empty) -> Value {
        let document = |row: &Vec<Value>| {
            let pairs = self.columns.iter().zip(row);
            let filled = pairs.filter(|(_, cell)| empty != Empty::Drop || !is_empty(cell));
            let pair = |(column, cell): (&Column, &Value)| {
                let cell = if cell.is_null() && empty != Empty::Null {
                    Value::from("")
                } else {
                    cell.clone()
                };
                (column.key.clone().into_owned(), cell)
            };
            Value::Object(filled.map(pair).collect::<Map<_, _>>())
        };
        self.rows.iter().map(document).collect()
    }

    /// Header and rows, with `delimiter` between the fields and no quotes.
    pub fn tsv(&self, delimiter: &str) -> String {
        let header: Vec<&str> = self.columns.iter().map(|column| &*column.key).collect();
        format!("{}\n{}", header.join(delimiter), self.tsv_rows(delimiter))
    }

    /// [`Self::tsv`] without the header.
    pub fn tsv_rows(&self, delimiter: &str) -> String {
        let line = |row: &Vec<Value>| {
            let cells: Vec<String> = row.iter().map(flat).collect();
            cells.join(delimiter) + "\n"
        };
        self.rows.iter().map(line).collect()
    }

    /// The table; the caption overwrites the beginning of its top rule.
    pub fn table(&self, caption: Option<&str>) -> String {
        let rows: Vec<Vec<Vec<String>>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| lines(&block(cell))).collect())
            .collect();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let cells = rows.iter().filter_map(|row| row.get(index)).flatten();
                cells
                    .map(|line| width(line))
                    .chain([width(&column.title)])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let bars: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        let rule = format!("+{}+\n", bars.join("+"));
        let header: Vec<Vec<String>> = self
            .columns
            .iter()
            .map(|column| vec![column.title.clone().into_owned()])
            .collect();
        let tall = rows.iter().flatten().any(|cell| cell.len() > 1);
        let mut out = caption.map_or_else(|| rule.clone(), |text| captioned(&rule, text));
        out.push_str(&self.line(&header, &widths));
        out.push_str(&rule);
        for (index, row) in rows.iter().enumerate() {
            if tall && index > 0 {
                out.push_str(&rule);
            }
            out.push_str(&self.line(row, &widths));
        }
        out.push_str(&rule);
        out
    }

    /// One row, of as many lines as its tallest cell.
    fn line(&self, cells: &[Vec<String>], widths: &[usize]) -> String {
        let height = cells.iter().map(Vec::len).max().unwrap_or(1);
        let mut out = String::new();
        for at in 0..height {
            let parts = self.columns.iter().zip(widths).zip(cells);
            let parts = parts.map(|((column, full), lines)| {
                let text = lines.get(at).map(String::as_str).unwrap_or_default();
                let blanks = " ".repeat(full.saturating_sub(width(text)));
                let (before, after) = if column.right {
                    (&*blanks, "")
                } else {
                    ("", &*blanks)
                };
                format!(" {before}{text}{after} ")
            });
            out.push_str(&format!("|{}|\n", parts.collect::<Vec<_>>().join("|")));
        }
        out
    }
}

fn is_empty(cell: &Value) -> bool {
    match cell {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A cell on one line.
fn flat(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::Object(map) if map.is_empty() => String::new(),
        Value::Object(_) => yaml::to_flow(cell),
        other => python_text(other),
    }
}

/// A cell of a table: a mapping takes a line for each pair.
fn block(cell: &Value) -> String {
    match cell {
        Value::Object(map) if !map.is_empty() => {
            yaml::to_string_wide(cell, YAML_WIDTH).trim_end().to_owned()
        }
        other => flat(other),
    }
}

fn lines(text: &str) -> Vec<String> {
    text.split('\n').map(str::to_owned).collect()
}

/// Overwrites the rule behind its first corner, but never its last one.
fn captioned(rule: &str, caption: &str) -> String {
    let rule: Vec<char> = rule.trim_end().chars().collect();
    let room = rule.len().saturating_sub(2);
    let caption: Vec<char> = format!(" {caption} ").chars().take(room).collect();
    let rest = rule.iter().skip(1 + caption.len());
    let text: String = rule.iter().take(1).chain(&caption).chain(rest).collect();
    format!("{text}\n")
}

/// Columns that a text takes on a terminal: East Asian wide characters two, combining marks none.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f | 0x20d0..=0x20ff => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sheet(rows: Vec<Vec<Value>>) -> Sheet {
        Sheet {
            columns: vec![
                Column::left("Member"),
                Column::right("TL"),
                Column::left("Tags"),
            ],
            rows,
        }
    }

    #[test]
    fn a_cell_of_several_lines_puts_rules_between_all_rows() {
        let rows = vec![
            vec![
                json!("a"),
                json!(5),
                json!({"nofailover": true, "clonefrom": true}),
            ],
            vec![json!("名前"), Value::Null, Value::Null],
        ];
        let shown = sheet(rows).table(Some("Cluster: x (y)"));
        assert_eq!(
            shown,
            "+ Cluster: x (y) ----------------+\n\
             | Member | TL | Tags             |\n\
             +--------+----+------------------+\n\
             | a      |  5 | clonefrom: true  |\n\
             |        |    | nofailover: true |\n\
             +--------+----+------------------+\n\
             | 名前   |    |                  |\n\
             +--------+----+------------------+\n"
        );
    }

    #[test]
    fn nothing_gives_two_rules_and_a_long_caption_is_cut() {
        assert_eq!(
            sheet(Vec::new()).table(Some("Cluster: much-too-long (uninitialized)")),
            "+ Cluster: much-too-l+\n\
             | Member | TL | Tags |\n\
             +--------+----+------+\n\
             +--------+----+------+\n"
        );
    }

    #[test]
    fn empty_cells_are_kept_or_dropped() {
        let sheet = sheet(vec![vec![json!("é"), Value::Null, json!({"a": 1})]]);
        let json = |empty| sheet.render(Format::Json, empty);
        assert_eq!(
            json(Empty::Drop),
            "[{\"Member\": \"\\u00e9\", \"Tags\": {\"a\": 1}}]\n"
        );
        assert_eq!(
            json(Empty::Keep),
            "[{\"Member\": \"\\u00e9\", \"TL\": \"\", \"Tags\": {\"a\": 1}}]\n"
        );
        assert_eq!(sheet.tsv("\t"), "Member\tTL\tTags\né\t\t{a: 1}\n");
        assert_eq!(
            sheet.render(Format::Yaml, Empty::Drop),
            "- Member: é\n  Tags:\n    a: 1\n\n"
        );
    }
}
