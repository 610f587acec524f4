//! JSON text in the form that readers of the interface are used to: `", "` and `": "` between the
//! parts, everything beyond ASCII as `\uXXXX` (`rest-api.md` 1.3). Scripts compare it as text.

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io;

/// The text of a value.
pub fn to_text<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::with_capacity(256);
    let mut out = Serializer::with_formatter(&mut bytes, Spaced);
    // Writing to memory cannot fail, and JSON values have no keys that are not text; should a caller
    // pass something else, an empty object is a better answer than a panic.
    match value.serialize(&mut out).map(|()| String::from_utf8(bytes)) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) | Err(_) => String::from("{}"),
    }
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return w.write_all(fragment.as_bytes());
        }
        let mut units = [0u16; 2];
        for c in fragment.chars() {
            if c.is_ascii() {
                w.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut units) {
                write!(w, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blanks_follow_commas_and_colons_and_the_rest_is_ascii() {
        let value = json!({"a": [1, "é", "𝄞"], "b": {}, "c": [], "d\"": null});
        assert_eq!(
            to_text(&value),
            r#"{"a": [1, "\u00e9", "\ud834\udd1e"], "b": {}, "c": [], "d\"": null}"#
        );
    }
}
