use super::*;
use serde_json::json;

/// The table of `configuration.md` 3.3.
#[test]
fn integers_with_units() {
    for (input, unit, expected) in [
        (json!("0x10"), None, Some(16)),
        (json!("010"), None, Some(8)),
        (json!("08"), None, None),
        (json!("1.5"), None, Some(2)),
        (json!(".5"), None, Some(0)),
        (json!("2.5"), None, Some(2)),
        (json!("1e3"), None, Some(1000)),
        (json!(true), None, None),
        (json!(""), None, None),
        (json!(null), None, None),
        (json!("5 min"), Some("s"), Some(300)),
        (json!("1d"), Some("s"), Some(86400)),
        (json!("1h"), Some("s"), Some(3600)),
        (json!("30MIN"), Some("s"), None),
        (json!("1MB"), None, None),
        (json!("1.5GB"), Some("MB"), Some(1536)),
        (json!("1MB"), Some("B"), Some(1_048_576)),
        (json!("512kB"), Some("B"), Some(524_288)),
        (json!("0.5MB"), Some("kB"), Some(512)),
        (json!("1GB"), Some("8kB"), Some(131_072)),
        (json!("64MB"), Some("16384kB"), Some(4)),
        (json!("1 MB x"), Some("MB"), None),
        (json!("5s"), Some("MB"), None),
        (json!(10.9), None, Some(11)),
        (json!("-1"), None, Some(-1)),
        (json!("x"), None, None),
        (json!("99999999999999999999"), None, None),
    ] {
        assert_eq!(parse_int(&input, unit), expected, "{input} {unit:?}");
    }
}

#[test]
fn pythons_int_cuts_off_and_takes_plain_text_only() {
    for (input, expected) in [
        (json!(10.9), Some(10)),
        (json!("20"), Some(20)),
        (json!(" +2_0 "), Some(20)),
        (json!("-3"), Some(-3)),
        (json!("30s"), None),
        (json!("1.5"), None),
        (json!("_1"), None),
        (json!(null), None),
        (json!(true), Some(1)),
        (json!([]), None),
    ] {
        assert_eq!(python_int(&input), expected, "{input}");
    }
}

#[test]
fn values_print_as_in_python() {
    for (value, expected) in [
        (json!(true), "True"),
        (json!(null), "None"),
        (json!("a'b"), "a'b"),
        (json!(["a", 1, null]), "['a', 1, None]"),
        (json!({"a": "it's"}), "{'a': \"it's\"}"),
        (json!(1.0), "1.0"),
        (json!(0.1), "0.1"),
        (json!(1e16), "1e+16"),
        (json!(1.5e300), "1.5e+300"),
        (json!(0.00001), "1e-05"),
        (json!(0.0001), "0.0001"),
        (json!(123456789012345.0), "123456789012345.0"),
        (json!(-2.5), "-2.5"),
    ] {
        assert_eq!(python_text(&value), expected);
    }
}

/// `configuration.md` 3.5.
#[test]
fn addresses() {
    for (text, default, expected) in [
        ("a:1", None, Some("a:1")),
        ("a", Some(5432), Some("a:5432")),
        ("a", None, None),
        ("[::1]:1", None, Some("[::1]:1")),
        ("::1:5432", None, Some("[::1]:5432")),
        ("[::1]", Some(1), Some("[::1]:1")),
        ("a,b:1", None, Some("a,b:1")),
        ("*:8008", None, Some("*:8008")),
        (":8008", None, Some(":8008")),
        ("a:b", Some(1), None),
        ("a:70000", Some(1), None),
    ] {
        let shown = split_host_port(text, default).map(|a| a.text());
        assert_eq!(shown.as_deref(), expected, "{text}");
    }
}

#[test]
fn commands_split_as_in_a_shell() {
    let words = |text: &str| shell_words(text).map(|w| w.join("|"));
    for (text, expected) in [
        ("a b  c", Some("a|b|c")),
        ("a 'b c' \"d e\"", Some("a|b c|d e")),
        ("a\\ b 'it'\\''s'", Some("a b|it's")),
        ("\"a\\\"b\\n\"", Some("a\"b\\n")),
        ("a ''", Some("a|")),
        ("", Some("")),
        ("'a", None),
        ("\"a", None),
        ("a\\", None),
    ] {
        assert_eq!(words(text).as_deref(), expected, "{text}");
    }
}
