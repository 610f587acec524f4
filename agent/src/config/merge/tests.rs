use super::*;
use proptest::prelude::*;
use serde_json::json;

fn patched(old: Value, new: Value) -> (Value, bool) {
    let (Value::Object(mut old), Value::Object(new)) = (old, new) else {
        panic!("mappings")
    };
    let changed = patch(&mut old, &new);
    (Value::Object(old), changed)
}

/// The table of `rest-api.md` 9.1 and of `configuration.md` 2.2.
#[test]
fn patches_follow_the_table() {
    for (old, new, expected, changed) in [
        (json!({"a": 1}), json!({"a": null}), json!({}), true),
        (json!({"a": 1}), json!({"b": null}), json!({"a": 1}), false),
        (
            json!({"a": {"b": 1}}),
            json!({"a": {"b": null}}),
            json!({"a": {}}),
            true,
        ),
        (
            json!({"a": {"b": 1}}),
            json!({"a": {"c": 2}}),
            json!({"a": {"b": 1, "c": 2}}),
            true,
        ),
        (
            json!({"a": 1}),
            json!({"a": {"b": null}}),
            json!({"a": {"b": null}}),
            true,
        ),
        (
            json!({}),
            json!({"slots": {"s1": null}}),
            json!({"slots": {"s1": null}}),
            true,
        ),
        (
            json!({"a": 30}),
            json!({"a": "30"}),
            json!({"a": 30}),
            false,
        ),
        (
            json!({"a": true}),
            json!({"a": "True"}),
            json!({"a": true}),
            false,
        ),
        (
            json!({"a": true}),
            json!({"a": "true"}),
            json!({"a": "true"}),
            true,
        ),
        (json!({"a": 1}), json!({"a": 1.0}), json!({"a": 1.0}), true),
        (
            json!({"a": [1]}),
            json!({"a": ["1"]}),
            json!({"a": ["1"]}),
            true,
        ),
        (
            json!({"a": [1, 2]}),
            json!({"a": [3]}),
            json!({"a": [3]}),
            true,
        ),
        (
            json!({"a": [1]}),
            json!({"a": "[1]"}),
            json!({"a": [1]}),
            false,
        ),
        (
            json!({"a": {"b": 1}}),
            json!({"a": 5}),
            json!({"a": 5}),
            true,
        ),
        (
            json!({"a": 1}),
            json!({"b": 2}),
            json!({"a": 1, "b": 2}),
            true,
        ),
    ] {
        let shown = format!("{old} + {new}");
        assert_eq!(patched(old, new), (expected, changed), "{shown}");
    }
}

#[test]
fn removing_a_key_keeps_the_order_of_the_others() {
    let (doc, _) = patched(json!({"a": 1, "b": 2, "c": 3}), json!({"a": null}));
    assert_eq!(doc.to_string(), r#"{"b":2,"c":3}"#);
}

#[test]
fn sameness_is_that_of_printed_values() {
    for (left, right, expected) in [
        (json!(1), json!("1"), true),
        (json!({}), json!(null), false),
        (json!([1]), json!(["1"]), false),
        (json!({"a": 1, "b": 2}), json!({"b": "2", "a": "1"}), true),
        (json!({"a": 1}), json!({"a": 1, "b": null}), false),
        (json!(null), json!("None"), true),
    ] {
        assert_eq!(same(&left, &right), expected, "{left} {right}");
        assert_eq!(same(&right, &left), expected, "{right} {left}");
    }
}

#[test]
fn set_creates_parents_and_prunes_empty_ones() {
    let mut doc = Map::new();
    set(&mut doc, &["a", "b", "c"], json!(1));
    set(&mut doc, &["a", "d"], json!(2));
    assert_eq!(
        Value::Object(doc.clone()),
        json!({"a": {"b": {"c": 1}, "d": 2}})
    );
    set(&mut doc, &["a", "b", "c"], Value::Null);
    assert_eq!(Value::Object(doc.clone()), json!({"a": {"d": 2}}));
    set(&mut doc, &["a", "d"], Value::Null);
    set(&mut doc, &["x", "y"], Value::Null);
    assert_eq!(Value::Object(doc), json!({}));
}

#[test]
fn names_of_settings_may_have_dots() {
    assert_eq!(split_path("a.b.c"), ["a", "b", "c"]);
    assert_eq!(
        split_path("postgresql.parameters.pg_stat_statements.track"),
        ["postgresql", "parameters", "pg_stat_statements.track"]
    );
}

fn any_doc() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        "[0-2]".prop_map(Value::from),
    ];
    let node = leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec(("[a-c]", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    proptest::collection::vec(("[a-c]", node), 0..4)
        .prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_patch_applied_twice_changes_nothing_more(old in any_doc(), new in any_doc()) {
        let (once, changed) = patched(old.clone(), new.clone());
        prop_assert_eq!(changed, once != old);
        let (twice, again) = patched(once.clone(), new);
        // A null inside a mapping that was stored as it is deletes only the second time.
        if !again {
            prop_assert_eq!(twice, once);
        }
    }

    #[test]
    fn an_empty_patch_and_the_document_itself_change_nothing(doc in any_doc()) {
        prop_assert_eq!(patched(doc.clone(), json!({})), (doc.clone(), false));
        let changed = patched(doc.clone(), doc.clone()).1;
        prop_assert!(!changed || doc.to_string().contains("null"));
    }

    #[test]
    fn sameness_is_reflexive(doc in any_doc()) {
        prop_assert!(same(&doc, &doc));
    }
}
