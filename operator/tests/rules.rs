//! The CEL rules of the definition, each with specs that keep and that break it. The testbed sends the same table to a
//! real API server; here it is evaluated in the process, so that a broken rule fails within a second.

use kube_cel::Validator;
use orderflow_operator::crd;
use serde_json::{Value, json};

fn table() -> Value {
    serde_json::from_str(include_str!("rules.json")).expect("the table is JSON")
}

fn schema() -> Value {
    let definition = serde_json::to_value(crd::definition()).expect("the definition is JSON");
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Applies a JSON merge patch (RFC 7386).
fn merged(base: &Value, patch: &Value) -> Value {
    let (Value::Object(base), Value::Object(patch)) = (base, patch) else { return patch.clone() };
    let mut merged = base.clone();
    for (name, value) in patch {
        if value.is_null() {
            merged.remove(name);
        } else {
            let before = merged.remove(name).unwrap_or_else(|| if value.is_object() { json!({}) } else { Value::Null });
            merged.insert(name.clone(), self::merged(&before, value));
        }
    }
    Value::Object(merged)
}

fn expect(case: &Value, object: &Value, old: Option<&Value>) {
    let found = Validator::new().validate(&schema(), object, old);
    match (&case["refused"], found) {
        (Value::Null, Ok(())) => {}
        (Value::Null, Err(errors)) => panic!("{case} was refused: {errors}"),
        (message, Ok(())) => panic!("{case} was not refused ({message})"),
        (message, Err(errors)) => {
            let message = message.as_str().expect("a message is text");
            assert!(errors.to_string().contains(message), "{case}: {errors}");
        }
    }
}

#[test]
fn a_spec_that_breaks_a_rule_is_refused_with_its_message() {
    let table = table();
    for case in table["creations"].as_array().expect("a list") {
        let mut object = merged(&table["base"], &case["changes"]);
        // The API server fills in the defaults before it evaluates the rules.
        if object["spec"]["consumer"].is_null() {
            object["spec"]["consumer"] = json!({});
        }
        expect(case, &object, None);
    }
}

#[test]
fn an_update_of_an_immutable_field_is_refused() {
    let table = table();
    for case in table["updates"].as_array().expect("a list") {
        let old = merged(&table["base"], &case["from"]);
        expect(case, &merged(&old, &case["to"]), Some(&old));
    }
}

#[test]
fn the_table_breaks_every_rule() {
    fn messages(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                for rule in map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                    found.push(rule["message"].as_str().expect("every rule has a message").to_owned());
                }
                map.values().for_each(|value| messages(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| messages(value, found)),
            _ => {}
        }
    }
    let table = table();
    let mut rules = Vec::new();
    messages(&schema(), &mut rules);
    let broken: Vec<&str> = ["creations", "updates"]
        .iter()
        .flat_map(|part| table[part].as_array().expect("a list"))
        .filter_map(|case| case["refused"].as_str())
        .collect();
    for rule in rules {
        assert!(broken.iter().any(|message| rule.contains(message)), "no spec in the table breaks: {rule}");
    }
}
