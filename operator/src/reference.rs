//! The generated parts of `docs/operator.md`: fields and rules of the resource, conditions, reasons and permissions, as
//! Markdown. Pure and deterministic; a test compares them with the document.

use std::fmt::{Display, Write};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use crate::{
    condition::{Class, Kind, Reason},
    crd,
    permissions::{self, Permission},
};

/// The name of a part, as in its marker in the document, and the function that makes its text.
pub type Part = (&'static str, fn() -> String);

pub const PARTS: &[Part] = &[
    ("spec", spec),
    ("rules", rules),
    ("status", status),
    ("conditions", conditions),
    ("reasons", reasons),
    ("watched-permissions", watched_permissions),
    ("own-permissions", own_permissions),
];

/// Kubernetes' own types, which the definition contains in full. Each is shown as a link to its documentation.
const FOREIGN: &[(&str, &str)] = &[
    ("Condition", "https://pkg.go.dev/k8s.io/apimachinery/pkg/apis/meta/v1#Condition"),
    ("NetworkPolicyPeer", "https://pkg.go.dev/k8s.io/api/networking/v1#NetworkPolicyPeer"),
    ("Quantity", "https://pkg.go.dev/k8s.io/apimachinery/pkg/api/resource#Quantity"),
];

fn spec() -> String {
    let schema = schema();
    let rows = fields(&schema, "spec").into_iter().map(|Field { path, required, schema }| {
        let default = match scalar_default(schema) {
            Some(default) => code(&default),
            None if required => "required".to_owned(),
            None => "–".to_owned(),
        };
        [code(&path), type_of(schema), default, bounds(schema), description(schema)]
    });
    table(["field", "type", "default", "allowed", "what it is"], rows)
}

fn status() -> String {
    let schema = schema();
    let rows = fields(&schema, "status")
        .into_iter()
        .map(|Field { path, schema, .. }| [code(&path), type_of(schema), description(schema)]);
    table(["field", "type", "what it is"], rows)
}

fn rules() -> String {
    let schema = schema();
    let mut rows = rules_of("the resource", &schema);
    rows.extend(property(&schema, "spec").into_iter().flat_map(|schema| rules_of("`spec`", schema)));
    for Field { path, schema, .. } in fields(&schema, "spec") {
        rows.extend(rules_of(&code(&path), schema));
        // The rules of a list's items are in the schema of the items.
        if let Some(items) = items(schema) {
            rows.extend(rules_of(&format!("each of {}", code(&path)), items));
        }
    }
    table(["of", "message of the API server", "unless"], rows)
}

fn conditions() -> String {
    let rows = Kind::ALL.iter().map(|kind| [code(kind), kind.explanation().to_owned()]);
    table(["type", "`True` means"], rows)
}

fn reasons() -> String {
    let rows = Reason::ALL
        .iter()
        .map(|reason| [code(reason), cell(reason.explanation()), next_step(reason.class()).to_owned()]);
    table(["reason", "what it means", "what the operator does next"], rows)
}

/// Describes [`crate::reconcile::outcome::requeue`].
fn next_step(class: Class) -> &'static str {
    match class {
        Class::Fine => "reconciles again with the next probe",
        Class::WaitForChange => "reconciles as soon as the Secret or the spec changes",
        Class::NeedsUser => "reconciles again with the next probe; **a person has to act**",
        Class::Transient => "retries with backoff (1 s to 5 minutes, plus jitter)",
        Class::Conflict => "retries at once on the current object",
    }
}

fn watched_permissions() -> String {
    permissions_table(permissions::WATCHED)
}

fn own_permissions() -> String {
    permissions_table(permissions::OWN)
}

fn permissions_table(permissions: &[Permission]) -> String {
    let rows = permissions.iter().map(|Permission { group, resource, verbs, reason }| {
        let resource = if group.is_empty() { (*resource).to_owned() } else { format!("{resource} ({group})") };
        [resource, verbs.join(", "), (*reason).to_owned()]
    });
    table(["resource", "verbs", "to"], rows)
}

/// A field of the definition.
struct Field<'a> {
    /// The path within the part, such as `shards[].name`.
    path: String,
    required: bool,
    schema: &'a JSONSchemaProps,
}

fn schema() -> JSONSchemaProps {
    let definition = crd::definition();
    let version = definition.spec.versions.into_iter().next().expect("the definition has a version");
    version.schema.and_then(|schema| schema.open_api_v3_schema).expect("the version has a schema")
}

/// Lists all fields below a part, each before its subfields. Foreign types are not opened.
fn fields<'a>(schema: &'a JSONSchemaProps, part: &str) -> Vec<Field<'a>> {
    let mut fields = Vec::new();
    if let Some(part) = property(schema, part) {
        collect(part, "", &mut fields);
    }
    fields
}

fn collect<'a>(schema: &'a JSONSchemaProps, prefix: &str, fields: &mut Vec<Field<'a>>) {
    if foreign(schema).is_some() {
        return;
    }
    if let Some(items) = items(schema) {
        return collect(items, &format!("{prefix}[]"), fields);
    }
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, schema) in schema.properties.iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        fields.push(Field { path: path.clone(), required: required.contains(name), schema });
        collect(schema, &path, fields);
    }
}

fn property<'a>(schema: &'a JSONSchemaProps, name: &str) -> Option<&'a JSONSchemaProps> {
    schema.properties.as_ref()?.get(name)
}

fn items(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(items) => Some(items),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn values(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.additional_properties.as_ref()? {
        JSONSchemaPropsOrBool::Schema(values) => Some(values),
        JSONSchemaPropsOrBool::Bool(_) => None,
    }
}

/// Finds the foreign type of a schema. Kubernetes begins a type's description with the type's name.
fn foreign(schema: &JSONSchemaProps) -> Option<&'static (&'static str, &'static str)> {
    let description = schema.description.as_deref()?;
    FOREIGN.iter().find(|(name, _)| description.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))
}

fn type_of(schema: &JSONSchemaProps) -> String {
    if let Some((name, address)) = foreign(schema) {
        return format!("[{name}]({address})");
    }
    if let Some(items) = items(schema) {
        return format!("list of {}", type_of(items));
    }
    if let Some(values) = values(schema) {
        return format!("map to {}", type_of(values));
    }
    schema.type_.clone().unwrap_or_else(|| "any".to_owned())
}

/// Returns the default of a scalar. An object has none, because each of its fields has its own.
fn scalar_default(schema: &JSONSchemaProps) -> Option<String> {
    let default = &schema.default.as_ref()?.0;
    match default.as_str() {
        _ if default.is_object() || default.is_array() => None,
        Some(text) => Some(text.to_owned()),
        None => Some(default.to_string()),
    }
}

fn bounds(schema: &JSONSchemaProps) -> String {
    let mut bounds = Vec::new();
    let counts = [
        (schema.min_length, schema.max_length, " characters"),
        (schema.min_items, schema.max_items, " items"),
        (schema.min_properties, schema.max_properties, " entries"),
        // Whole numbers only.
        (schema.minimum.map(|least| least as i64), schema.maximum.map(|most| most as i64), ""),
    ];
    for (least, most, unit) in counts {
        match (least, most) {
            (Some(least), Some(most)) => bounds.push(format!("{least} to {most}{unit}")),
            (Some(least), None) => bounds.push(format!("at least {least}{unit}")),
            (None, Some(most)) => bounds.push(format!("at most {most}{unit}")),
            (None, None) => {}
        }
    }
    if let Some(values) = &schema.enum_ {
        let values: Vec<String> =
            values.iter().filter_map(|value| value.0.as_str()).map(|value| code(&value)).collect();
        bounds.push(values.join(", "));
    }
    bounds.extend(schema.pattern.as_ref().map(code));
    bounds.join("; ")
}

fn rules_of(place: &str, schema: &JSONSchemaProps) -> Vec<[String; 3]> {
    let rules = schema.x_kubernetes_validations.iter().flatten();
    rules
        .map(|rule| {
            let message = rule.message.as_deref().unwrap_or_default();
            [place.to_owned(), cell(message), code(&rule.rule)]
        })
        .collect()
}

fn description(schema: &JSONSchemaProps) -> String {
    schema.description.as_deref().map(cell).unwrap_or_default()
}

fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "| {} |\n|{}", head.join(" | "), "---|".repeat(N));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Puts the text on one line and escapes what would end the cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn code(text: &impl Display) -> String {
    format!("`{}`", cell(&text.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_shown_with_its_path_type_default_bounds_and_description() {
        let spec = spec();
        for row in [
            "| `shards[].users` | string | required | at most 3 characters; `^[A-Z]-[A-Z]$` | Range of first letters of its users, such as `A-M`. |",
            "| `deletionPolicy` | string | `Retain` | `Retain`, `Delete` | Policy that keeps or removes tables, receipts and topics when the resource is deleted. |",
            "| `topic.replicationFactor` | integer | – | 1 to 32767 | Replication factor of a new topic. Default: the brokers' own. |",
        ] {
            assert!(spec.lines().any(|line| line == row), "{row}\nis not in\n{spec}");
        }
    }

    #[test]
    fn types_of_kubernetes_are_linked_and_not_opened() {
        let (spec, status) = (spec(), status());
        assert!(spec.contains("| `networkPolicy.kafka` | list of [NetworkPolicyPeer](https://"), "{spec}");
        assert!(spec.contains("| `producer.resources.limits` | map to [Quantity](https://"), "{spec}");
        assert!(status.contains("| `conditions` | list of [Condition](https://"), "{status}");
        for opened in ["podSelector", "cidr", "lastTransitionTime"] {
            assert!(!spec.contains(opened) && !status.contains(opened), "{opened}");
        }
    }

    #[test]
    fn every_rule_of_the_definition_is_shown() {
        let definition = serde_json::to_string(&crd::definition()).unwrap();
        let rules = rules();
        assert_eq!(rules.lines().count() - 2, definition.matches("\"rule\":").count(), "{rules}");
    }

    #[test]
    fn every_row_has_as_many_cells_as_its_head() {
        for (name, part) in PARTS {
            let text = part();
            let cells = |line: &str| line.replace("\\|", "").matches('|').count();
            let head = cells(text.lines().next().unwrap());
            for line in text.lines() {
                assert_eq!(cells(line), head, "{name}: {line}");
            }
        }
    }
}
