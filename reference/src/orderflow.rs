//! Renders the page of the OrderFlow resource: fields, rules, conditions, reasons and permissions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use orderflow_operator::{
    condition::{Class, Kind, Reason},
    crd,
    permissions::{self, Permission},
};

use crate::{
    head,
    schema::range,
    table::{Table, code, none, prose},
};

/// Types of Kubernetes whose fields the page leaves to their own documentation.
const FOREIGN: &[(&str, &str)] = &[
    ("Condition", "https://pkg.go.dev/k8s.io/apimachinery/pkg/apis/meta/v1#Condition"),
    ("NetworkPolicyPeer", "https://pkg.go.dev/k8s.io/api/networking/v1#NetworkPolicyPeer"),
    ("Quantity", "https://pkg.go.dev/k8s.io/apimachinery/pkg/api/resource#Quantity"),
];

/// Returns the whole page.
pub fn page() -> String {
    let head = head(
        "OrderFlow resource",
        "For anyone who writes an OrderFlow or reads its status. `kubectl explain orderflow.spec` shows the same fields.",
    );
    let sections = [
        ("## spec", "`[]` stands for each item of a list.", spec()),
        (
            "## Rules",
            "The API server refuses an OrderFlow that breaks one of these rules, with the message in the table.",
            rules(),
        ),
        ("## status", "The operator writes these fields.", status()),
        ("## Conditions", "Each condition has a reason of the [list below](#reasons).", conditions()),
        ("## Reasons", "A reason says why a condition has its value, and what the operator does next.", reasons()),
        (
            "## Permissions",
            "The operator's roles have these permissions, and `orderflow-operator check` asks for each of them.",
            String::new(),
        ),
        ("### In each watched namespace", "", permissions_table(permissions::WATCHED)),
        ("### In the operator's own namespace", "", permissions_table(permissions::OWN)),
    ];
    let parts = sections.into_iter().map(|(heading, introduction, body)| {
        let parts = [heading.to_owned(), introduction.to_owned(), body.trim_end().to_owned()];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("\n\n")
    });
    let parts: Vec<String> = std::iter::once(head.trim_end().to_owned()).chain(parts).collect();
    parts.join("\n\n") + "\n"
}

fn spec() -> String {
    let schema = schema();
    let rows = fields(&schema, "spec").into_iter().map(|Field { path, required, schema }| {
        let default = match scalar_default(schema) {
            Some(default) => code(&default),
            None if required => "required".to_owned(),
            None => none(),
        };
        [code(&path), type_of(schema), default, allowed(schema), description(schema)]
    });
    Table::new(["field", "type", "default", "allowed", "meaning"]).rows(rows).render()
}

fn status() -> String {
    let schema = schema();
    let rows = fields(&schema, "status")
        .into_iter()
        .map(|Field { path, schema, .. }| [code(&path), type_of(schema), description(schema)]);
    Table::new(["field", "type", "meaning"]).rows(rows).render()
}

fn rules() -> String {
    let schema = schema();
    let mut rows = rules_of("the resource", &schema);
    rows.extend(property(&schema, "spec").into_iter().flat_map(|schema| rules_of("`spec`", schema)));
    for Field { path, schema, .. } in fields(&schema, "spec") {
        rows.extend(rules_of(&code(&path), schema));
        // The rules for the items of a list are part of the items' schema.
        if let Some(items) = items(schema) {
            rows.extend(rules_of(&format!("each of {}", code(&path)), items));
        }
    }
    Table::new(["message", "applies to", "expression that must be true"]).rows(rows).render()
}

fn conditions() -> String {
    let rows = Kind::ALL.iter().map(|kind| [code(kind), prose(kind.explanation())]);
    Table::new(["type", "`True` means"]).rows(rows).render()
}

fn reasons() -> String {
    let rows =
        Reason::ALL.iter().map(|reason| [code(reason), prose(reason.explanation()), next(reason.class()).to_owned()]);
    Table::new(["reason", "meaning", "next reconcile"]).rows(rows).render()
}

/// Says when the operator reconciles a resource with a reason of `class` again.
fn next(class: Class) -> &'static str {
    match class {
        Class::Fine => "with the next probe",
        Class::WaitForChange => "as soon as the Secret or the spec changes",
        Class::NeedsUser => "with the next probe; **someone has to act**",
        Class::Transient => "with backoff",
        Class::Conflict => "at once",
    }
}

fn permissions_table(permissions: &[Permission]) -> String {
    let rows = permissions.iter().map(|Permission { group, resource, verbs, reason }| {
        let resource = if group.is_empty() { code(resource) } else { format!("{} ({group})", code(resource)) };
        [resource, verbs.join(", "), prose(reason)]
    });
    Table::new(["resource", "verbs", "to"]).rows(rows).render()
}

/// One field of the definition.
struct Field<'a> {
    /// The path from `spec` or `status` on, as in `shards[].name`.
    path: String,
    required: bool,
    schema: &'a JSONSchemaProps,
}

fn schema() -> JSONSchemaProps {
    let definition = crd::definition();
    let version = definition.spec.versions.into_iter().next().expect("the definition has a version");
    version.schema.and_then(|schema| schema.open_api_v3_schema).expect("the version has a schema")
}

/// Returns all fields below `part`, each before its own fields, without those of foreign types.
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

/// Returns the entry of a foreign type, whose description begins with the type's name.
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

/// Returns a default, but for an object, whose fields have their own.
fn scalar_default(schema: &JSONSchemaProps) -> Option<String> {
    let default = &schema.default.as_ref()?.0;
    match default.as_str() {
        _ if default.is_object() || default.is_array() => None,
        Some(text) => Some(text.to_owned()),
        None => Some(default.to_string()),
    }
}

fn allowed(schema: &JSONSchemaProps) -> String {
    let counts = [
        (schema.min_length, schema.max_length, " characters"),
        (schema.min_items, schema.max_items, " items"),
        (schema.min_properties, schema.max_properties, " entries"),
        // All of them are whole numbers.
        (schema.minimum.map(|least| least as i64), schema.maximum.map(|most| most as i64), ""),
    ];
    let mut allowed: Vec<String> =
        counts.into_iter().filter_map(|(least, most, unit)| range(least, most, unit)).collect();
    if let Some(values) = &schema.enum_ {
        let values: Vec<String> =
            values.iter().filter_map(|value| value.0.as_str()).map(|value| code(&value)).collect();
        allowed.push(values.join(", "));
    }
    allowed.extend(schema.pattern.as_ref().map(code));
    if allowed.is_empty() { none() } else { allowed.join("; ") }
}

fn rules_of(place: &str, schema: &JSONSchemaProps) -> Vec<[String; 3]> {
    let rules = schema.x_kubernetes_validations.iter().flatten();
    rules
        .map(|rule| {
            let message = rule.message.as_deref().unwrap_or_default();
            [prose(message), place.to_owned(), code(&rule.rule)]
        })
        .collect()
}

fn description(schema: &JSONSchemaProps) -> String {
    schema.description.as_deref().map(prose).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_shown_with_its_path_type_default_bounds_and_description() {
        let spec = spec();
        for start in [
            "| `shards[].users` | string | required | at most 3 characters; `^[A-Z]-[A-Z]$` | ",
            "| `deletionPolicy` | string | `Retain` | `Retain`, `Delete` | ",
            "| `topic.replicationFactor` | integer | – | 1 to 32767 | ",
        ] {
            assert!(spec.lines().any(|line| line.starts_with(start)), "{start}\nis not in\n{spec}");
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
        let rows = rules.lines().filter(|line| line.starts_with("| ")).count() - 1;
        assert_eq!(rows, definition.matches("\"rule\":").count(), "{rules}");
    }
}
