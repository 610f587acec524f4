use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Rows of `configuration.md` 3.1 and the corners around them, as PyYAML 6 reads them.
#[test]
fn plain_scalars_are_yaml_1_1() {
    for (text, expected) in [
        ("on", json!(true)),
        ("Off", json!(false)),
        ("YES", json!(true)),
        ("no", json!(false)),
        ("true", json!(true)),
        ("False", json!(false)),
        ("oN", json!("oN")),
        ("y", json!("y")),
        ("n", json!("n")),
        ("t", json!("t")),
        ("0644", json!(420)),
        ("0o17", json!("0o17")),
        ("08", json!("08")),
        ("0", json!(0)),
        ("-0", json!(0)),
        ("0x1F", json!(31)),
        ("0x", json!("0x")),
        ("0b101", json!(5)),
        ("1_000", json!(1000)),
        ("+12", json!(12)),
        ("12:30", json!(750)),
        ("5:50", json!(350)),
        ("10:5432", json!("10:5432")),
        ("190:20:30", json!(685_230)),
        ("127.0.0.1:5432", json!("127.0.0.1:5432")),
        ("1e3", json!("1e3")),
        ("1.0e+3", json!(1000.0)),
        ("1.0e3", json!("1.0e3")),
        ("1.", json!(1.0)),
        (".5", json!(0.5)),
        ("1.5", json!(1.5)),
        ("1.2.3", json!("1.2.3")),
        ("2001-01-01", json!("2001-01-01")),
        ("~", json!(null)),
        ("null", json!(null)),
        ("", json!(null)),
        ("'on'", json!("on")),
        ("\"0644\"", json!("0644")),
        (
            "18446744073709551615",
            json!(18_446_744_073_709_551_615_u64),
        ),
    ] {
        assert_eq!(from_str(text), Ok(expected), "{text}");
    }
}

#[test]
fn later_duplicates_win_and_keep_the_first_place() {
    let doc = from_str("b: 1\na: 2\nb: 3\n").expect("valid");
    assert_eq!(
        serde_json::to_string(&doc).expect("json"),
        r#"{"b":3,"a":2}"#
    );
}

#[test]
fn merge_keys_give_way_to_own_keys_and_earlier_maps() {
    let text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 9\n";
    let doc = from_str(text).expect("valid");
    assert_eq!(doc.get("z"), Some(&json!({"a": 9, "b": 2, "c": 4})));
    assert!(from_str("z:\n  <<: 5\n").is_err());
    assert_eq!(from_str("\"<<\": 5"), Ok(json!({"<<": 5})));
}

#[test]
fn what_pyyaml_refuses_is_an_error_with_its_place() {
    for text in [
        "a: 1\n---\nb: 2\n",
        "a: !!python/name:os.system x\n",
        "a: *nowhere\n",
        "a: [1, 2\n",
        "a: b: c\n",
        "\ta: 1\n",
        "? [1, 2]\n: x\n",
    ] {
        assert!(from_str(text).is_err(), "{text:?}");
    }
    let error = from_str("ok: 1\nbad: [\n").expect_err("unfinished list");
    assert!(error.line >= 2, "{error}");
}

#[test]
fn an_error_does_not_quote_the_text() {
    let error = from_str("password: \"secret\n  x: y: z").expect_err("broken");
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn nested_aliases_cannot_fill_the_memory() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    assert!(from_str(&text).is_err());
    assert!(from_str(&"[".repeat(5000)).is_err());
}

#[test]
fn block_style_looks_like_pyyaml() {
    let doc = json!({
        "ttl": 30,
        "pause": true,
        "nothing": null,
        "empty": {},
        "none": [],
        "postgresql": {
            "use_pg_rewind": true,
            "pg_hba": ["host all all all md5", "local all all trust"],
            "parameters": {"work_mem": "8MB", "flag": "on", "octal": "0644", "n": "100"},
        },
        "list": [{"a": 1, "b": 2}, ["x", "y"], "yes"],
        "colon": "a: b",
        "quote": "it's",
        "hash": "a #b",
        "path": "/a:b",
        "e": 1e16,
        "text": "",
        "lines": "a\nb\n",
    });
    expect_test::expect![[r"
        colon: 'a: b'
        e: 1.0e+16
        empty: {}
        hash: 'a #b'
        lines: 'a

          b

          '
        list:
        - a: 1
          b: 2
        - - x
          - y
        - 'yes'
        none: []
        nothing: null
        path: /a:b
        pause: true
        postgresql:
          parameters:
            flag: 'on'
            n: '100'
            octal: '0644'
            work_mem: 8MB
          pg_hba:
          - host all all all md5
          - local all all trust
          use_pg_rewind: true
        quote: it's
        text: ''
        ttl: 30
    "]]
    .assert_eq(&to_string(&doc));
}

#[test]
fn long_texts_fold_where_pyyaml_folds() {
    let b = "b".repeat(20);
    let doc = json!({
        "pg_hba": [format!("host all all 0.0.0.0/0 md5 {} {b}", "a".repeat(49))],
        "quoted": format!("'{} {b} x: y", "a".repeat(80)),
        "unicode": "ünï",
    });
    let expected = [
        "pg_hba:",
        &format!("- host all all 0.0.0.0/0 md5 {} {b}", "a".repeat(49)),
        &format!("quoted: {}{}", "'".repeat(3), "a".repeat(80)),
        "  bbbbbbbbbbbbbbbbbbbb x: y'",
        "unicode: ünï",
        "",
    ];
    assert_eq!(to_string(&doc).split('\n').collect::<Vec<_>>(), expected);
    assert_eq!(from_str(&to_string(&doc)), Ok(doc.clone()));
    let narrow = to_string_wide(&json!({"a": doc}), 20);
    assert_eq!(from_str(&narrow), Ok(json!({"a": doc})), "{narrow}");
}

#[test]
fn flow_style_is_one_line() {
    let tags = json!({"nofailover": true, "clonefrom": true, "dc": "a, b", "list": [1, "x"]});
    assert_eq!(
        to_flow(&tags),
        "{clonefrom: true, dc: 'a, b', list: [1, x], nofailover: true}"
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[ -~]{0,12}",
        "[ab' ]{0,12}",
        "[a-z:#'\"\\-?,{}\\[\\]&*!|>%@` \n]{0,10}",
        "[0-9_:.xeE+-]{0,8}",
        "\\PC{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e20..1e20_f64).prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((text.clone(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(value in any_value()) {
        prop_assert_eq!(from_str(&to_string(&value)), Ok(value.clone()), "{}", to_string(&value));
        let narrow = to_string_wide(&value, 4);
        prop_assert_eq!(from_str(&narrow), Ok(value.clone()), "{}", narrow);
        prop_assert_eq!(from_str(&to_flow(&value)), Ok(value.clone()), "{}", to_flow(&value));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z&*!:<>|{}\\[\\]\"' \n\t#,%@?-]{0,60}") {
        let _ = from_str(&text);
    }
}

#[test]
fn only_whole_timestamps_are_quoted() {
    for (text, quoted) in [
        ("2030-01-01", true),
        ("2030-1-1", false),
        ("2030-01-01T00:00:00+00:00", true),
        ("2030-1-1 0:00:00.5 Z", true),
        ("2030-01-01 00:00", false),
        ("2030-01-01T00:00:00+00:00 if version < 15.0.0", false),
    ] {
        let shown = to_string(&Value::from(text));
        assert_eq!(shown.starts_with('\''), quoted, "{shown}");
    }
}
