//! The events of libyaml, safely: the parser that `serde_norway` itself stands on (libyaml translated
//! to Rust). Its serde interface cannot be used here, since it resolves plain scalars by the rules of
//! YAML 1.2 and does not say which scalars were quoted.
//!
//! This is the only module of the crate that opts in to `unsafe` for YAML. What makes it sound:
//! the parser and its input live in one box that never moves, events are copied into owned values
//! and deleted before the next call, and nothing borrows from the parser.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::raw::c_char;
#[expect(
    clippy::unsafe_removed_from_name,
    reason = "every use stands in an unsafe block anyway"
)]
use unsafe_libyaml_norway as sys;

/// Line and column of an event, counted from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) column: u64,
}

/// A node's anchor and tag, as written.
#[derive(Debug, Default)]
pub(super) struct Properties {
    pub(super) anchor: Option<String>,
    pub(super) tag: Option<String>,
}

/// What the parser met.
#[derive(Debug)]
pub(super) enum Event {
    DocumentStart,
    DocumentEnd,
    StreamStart,
    StreamEnd,
    Alias(String),
    Scalar {
        properties: Properties,
        text: String,
        plain: bool,
    },
    SequenceStart(Properties),
    SequenceEnd,
    MappingStart(Properties),
    MappingEnd,
}

/// What the parser could not read, and where.
#[derive(Debug)]
pub(super) struct ParseError {
    pub(super) problem: String,
    pub(super) mark: Mark,
}

/// A parser over a text that outlives it.
pub(super) struct Parser<'t> {
    // Boxed because libyaml keeps pointers into its own structure.
    sys: Box<MaybeUninit<sys::yaml_parser_t>>,
    _text: &'t str,
}

impl<'t> Parser<'t> {
    /// A parser at the start of `text`.
    pub(super) fn new(text: &'t str) -> Result<Self, ParseError> {
        let mut sys = Box::new(MaybeUninit::<sys::yaml_parser_t>::uninit());
        // SAFETY: `initialize` accepts uninitialised memory and fills all of it.
        if unsafe { sys::yaml_parser_initialize(sys.as_mut_ptr()) }.fail {
            let problem = String::from("the YAML parser cannot be set up");
            return Err(ParseError {
                problem,
                mark: Mark::default(),
            });
        }
        // SAFETY: the parser is initialised; `text` lives as long as `Self` by its lifetime, and its
        // length is given.
        unsafe {
            sys::yaml_parser_set_encoding(sys.as_mut_ptr(), sys::YAML_UTF8_ENCODING);
            sys::yaml_parser_set_input_string(sys.as_mut_ptr(), text.as_ptr(), text.len() as u64);
        }
        Ok(Self { sys, _text: text })
    }

    /// The next event and where it starts. Not to be called again after `StreamEnd` or an error.
    pub(super) fn next(&mut self) -> Result<(Event, Mark), ParseError> {
        let mut event = MaybeUninit::<sys::yaml_event_t>::uninit();
        // SAFETY: the parser is initialised, and `parse` writes the whole event before anything else.
        if unsafe { sys::yaml_parser_parse(self.sys.as_mut_ptr(), event.as_mut_ptr()) }.fail {
            return Err(self.error());
        }
        // SAFETY: `parse` succeeded, so the event is initialised.
        let event_ref = unsafe { event.assume_init_ref() };
        let mark = mark(event_ref.start_mark);
        // SAFETY: the event is the one that the parser has just filled in.
        let converted = unsafe { convert(event_ref) };
        // SAFETY: the event is initialised and not used any more; `converted` owns its text.
        unsafe { sys::yaml_event_delete(event.as_mut_ptr()) };
        match converted {
            Some(event) => Ok((event, mark)),
            None => Err(ParseError {
                problem: String::from("unexpected YAML event"),
                mark,
            }),
        }
    }

    fn error(&self) -> ParseError {
        // SAFETY: the parser is initialised.
        let parser = unsafe { self.sys.assume_init_ref() };
        // SAFETY: `problem` and `context` are null or point to static, NUL-terminated literals.
        let (problem, context) = unsafe { (literal(parser.problem), literal(parser.context)) };
        let problem = problem.unwrap_or_else(|| String::from("not YAML"));
        let problem = match context {
            Some(context) => format!("{problem} {context}"),
            None => problem,
        };
        ParseError {
            problem,
            mark: mark(parser.problem_mark),
        }
    }
}

impl Drop for Parser<'_> {
    fn drop(&mut self) {
        // SAFETY: the parser was initialised in `new` and is deleted once.
        unsafe { sys::yaml_parser_delete(self.sys.as_mut_ptr()) };
    }
}

fn mark(mark: sys::yaml_mark_t) -> Mark {
    Mark {
        line: mark.line + 1,
        column: mark.column + 1,
    }
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives during the call.
unsafe fn literal(text: *const impl Sized) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: by the contract of this function.
    let text = unsafe { CStr::from_ptr(text.cast::<c_char>()) };
    Some(text.to_string_lossy().into_owned())
}

/// # Safety
/// Both are null or NUL-terminated strings that live during the call.
unsafe fn properties(anchor: *mut u8, tag: *mut u8) -> Properties {
    // SAFETY: by the contract of this function.
    unsafe {
        Properties {
            anchor: literal(anchor),
            tag: literal(tag),
        }
    }
}

/// # Safety
/// `event` was filled in by `yaml_parser_parse` and is not deleted yet.
unsafe fn convert(event: &sys::yaml_event_t) -> Option<Event> {
    // In each block below the union field read is the one that belongs to the event's type, and its
    // strings are null or NUL-terminated.
    Some(match event.type_ {
        sys::YAML_STREAM_START_EVENT => Event::StreamStart,
        sys::YAML_STREAM_END_EVENT => Event::StreamEnd,
        sys::YAML_DOCUMENT_START_EVENT => Event::DocumentStart,
        sys::YAML_DOCUMENT_END_EVENT => Event::DocumentEnd,
        // SAFETY: see above.
        sys::YAML_ALIAS_EVENT => Event::Alias(unsafe { literal(event.data.alias.anchor) }?),
        sys::YAML_SCALAR_EVENT => {
            // SAFETY: see above; `value` points to `length` initialised bytes.
            let (data, bytes) = unsafe {
                let data = event.data.scalar;
                (
                    data,
                    std::slice::from_raw_parts(data.value, usize::try_from(data.length).ok()?),
                )
            };
            Event::Scalar {
                // SAFETY: see above.
                properties: unsafe { properties(data.anchor, data.tag) },
                text: String::from_utf8_lossy(bytes).into_owned(),
                plain: data.style == sys::YAML_PLAIN_SCALAR_STYLE,
            }
        }
        sys::YAML_SEQUENCE_START_EVENT => {
            // SAFETY: see above.
            let data = unsafe { event.data.sequence_start };
            // SAFETY: see above.
            Event::SequenceStart(unsafe { properties(data.anchor, data.tag) })
        }
        sys::YAML_SEQUENCE_END_EVENT => Event::SequenceEnd,
        sys::YAML_MAPPING_START_EVENT => {
            // SAFETY: see above.
            let data = unsafe { event.data.mapping_start };
            // SAFETY: see above.
            Event::MappingStart(unsafe { properties(data.anchor, data.tag) })
        }
        sys::YAML_MAPPING_END_EVENT => Event::MappingEnd,
        _ => return None,
    })
}
