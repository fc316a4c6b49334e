//! Renders the page of the API from its OpenAPI document.

use std::fmt::Write;

use orderflow_producer::ProblemKind;
use serde_json::{Map, Value};

use crate::{
    head,
    schema::range,
    table::{Table, code, none, prose},
};

/// Returns the whole page. `document` describes the internal port, `public` the public one.
pub fn page(document: &Value, public: &Value, problems: &[&ProblemKind]) -> String {
    let mut text = head(
        "HTTP API",
        "For anyone who writes a client. The same description is served as `/openapi.json`, from which clients can be generated.",
    );
    text.push_str(
        "\nWith one port (`PORT`) the producer serves all operations there. With `INTERNAL_PORT` set, `PORT` serves only the \
         operations that are marked with the public port, and the internal port serves all.\n",
    );
    for (path, method, operation) in operations(document) {
        let port = if public["paths"][path][method].is_object() { "public and internal port" } else { "internal port" };
        write_operation(&mut text, path, method, port, operation);
    }
    write_problems(&mut text, problems);
    text.push_str("\n## Schemas\n");
    for (name, schema) in object(&document["components"]["schemas"]) {
        write_schema(&mut text, name, schema);
    }
    text
}

/// Returns the operations of a document with their paths and methods.
pub fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    object(&document["paths"])
        .flat_map(|(path, operations)| object(operations).map(move |(method, operation)| (path, method, operation)))
}

fn write_operation(text: &mut String, path: &str, method: &str, port: &str, operation: &Value) {
    let _ = write!(text, "\n## {} {path}\n\n{} *({port})*\n", method.to_uppercase(), sentence(&operation["summary"]));
    if let Some(description) = operation["description"].as_str() {
        for paragraph in description.split("\n\n") {
            let _ = write!(text, "\n{}\n", prose(paragraph));
        }
    }
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let rows: Vec<_> = parameters
        .map(|parameter| {
            let required = if parameter["required"] == true { "yes" } else { "no" };
            [
                code(&string(&parameter["name"])),
                string(&parameter["in"]).to_owned(),
                required.to_owned(),
                type_of(&parameter["schema"]),
                allowed(&parameter["schema"]),
                description(parameter),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let table = Table::new(["parameter", "in", "required", "type", "allowed", "meaning"]).rows(rows).render();
        let _ = write!(text, "\n{table}");
    }
    for (media_type, body) in object(&operation["requestBody"]["content"]) {
        let _ = write!(text, "\nRequest body: {} as {}.\n", type_of(&body["schema"]), code(&media_type));
    }
    let rows = object(&operation["responses"]).map(|(status, response)| {
        let bodies: Vec<String> = object(&response["content"])
            .map(|(media_type, body)| format!("{} as {}", type_of(&body["schema"]), code(&media_type)))
            .collect();
        let headers = object(&response["headers"]).map(|(name, header)| {
            let description = sentence(&header["description"]);
            format!(" Header {}: {description}", code(&name))
        });
        let body = if bodies.is_empty() { none() } else { bodies.join(", ") };
        [code(&status), body, sentence(&response["description"]) + &headers.collect::<String>()]
    });
    let table = Table::new(["status", "body", "meaning"]).rows(rows).render();
    let _ = write!(text, "\n{table}");
}

fn write_problems(text: &mut String, problems: &[&ProblemKind]) {
    text.push_str(
        "\n## Problem types\n\nEvery error is a [Problem](#problem) as RFC 9457 describes it. Its `type` is \
         `https://orderflow.dev/problems/` and a name of this table. Every 503 has the header `Retry-After`.\n\n",
    );
    let rows = problems
        .iter()
        .map(|problem| [code(&problem.name), problem.status.to_string(), prose(problem.title), prose(problem.meaning)]);
    text.push_str(&Table::new(["type", "status", "title", "meaning"]).rows(rows).render());
}

fn write_schema(text: &mut String, name: &str, schema: &Value) {
    let _ = write!(text, "\n### {name}\n");
    let about = description(schema);
    if !about.is_empty() {
        let _ = write!(text, "\n{}\n", if about.ends_with('.') { about } else { about + "." });
    }
    if !schema["properties"].is_object() {
        let _ = write!(text, "\nA {}: {}.\n", type_of(schema), allowed(schema));
        return;
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let rows = object(&schema["properties"]).map(|(field, schema)| {
        let always = if required.contains(&field) { "yes" } else { "no" };
        let mut meaning = description(schema);
        if let Some(example) = schema.get("example") {
            let example = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
            let stop = if meaning.is_empty() || meaning.ends_with('.') { "" } else { "." };
            meaning = format!("{meaning}{stop} Example: {}", code(&example)).trim_start().to_owned();
        }
        [code(&field), type_of(schema), always.to_owned(), allowed(schema), meaning]
    });
    let table = Table::new(["field", "type", "required", "allowed", "meaning"]).rows(rows).render();
    let _ = write!(text, "\n{table}");
}

/// Returns the type of a value, with a link to the schema of an object.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(items) = schema.get("items") {
        return format!("list of {}", type_of(items));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().map(string).collect::<Vec<_>>().join(" or "),
        one => string(one).to_owned(),
    };
    match schema["format"].as_str() {
        Some(format @ ("date-time" | "uuid")) => format!("{types} ({format})"),
        _ => types,
    }
}

fn allowed(schema: &Value) -> String {
    let length = |name: &str| schema[name].as_u64();
    let number = |name: &str| schema.get(name).map(ToString::to_string);
    let mut allowed: Vec<String> = [
        range(length("minLength"), length("maxLength"), " characters"),
        range(number("minimum"), number("maximum"), ""),
        number("multipleOf").map(|step| format!("multiples of {step}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let values: Vec<String> =
        schema["enum"].as_array().into_iter().flatten().map(|value| code(&string(value))).collect();
    if !values.is_empty() {
        allowed.push(values.join(", "));
    }
    allowed.extend(schema["pattern"].as_str().map(|pattern| code(&pattern)));
    if allowed.is_empty() { none() } else { allowed.join("; ") }
}

fn description(value: &Value) -> String {
    prose(string(&value["description"]))
}

fn sentence(value: &Value) -> String {
    let text = prose(string(value));
    if text.is_empty() || text.ends_with('.') { text } else { text + "." }
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn object(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(name, value)| (name.as_str(), value))
}
