//! Renders the tables of a shard from the catalog of a provisioned database.

use std::fmt::Write;

use crate::{
    head,
    table::{Table, code, none, prose},
    topics::{self, Topic},
};

/// A table as the catalog has it.
#[derive(Debug)]
pub struct Relation {
    pub name: String,
    pub columns: Vec<Column>,
    /// The definitions of its keys and checks.
    pub constraints: Vec<String>,
    /// The definitions of the indexes that belong to no constraint.
    pub indexes: Vec<String>,
    /// The storage parameters, as in `autovacuum_vacuum_threshold=5000`.
    pub parameters: Vec<String>,
}

#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub type_name: String,
    pub nullable: bool,
    pub default: Option<String>,
}

/// The name of a table, its meaning, and the names and meanings of its columns.
type About = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ABOUT: &[About] = &[
    (
        "orders",
        "Orders, inserted once and never updated.",
        &[
            ("id", "UUIDv7, made before the write"),
            ("user_id", "the user who ordered; the first character chooses the shard"),
            ("product_name", "as the client sent it"),
            ("quantity", "pieces"),
            ("price", "unit price"),
            ("status", "`created`"),
            ("receipt_s3_key", "key of the receipt in the bucket"),
            ("created_at", "time of acceptance, by the producer's clock"),
            ("updated_at", "the same as `created_at`"),
            ("map_epoch", "the shard map under which it was placed, in `orderflow_map`"),
        ],
    ),
    (
        "idempotency_keys",
        "The order that each `Idempotency-Key` of a user created. Rows are deleted after 24 hours.",
        &[
            ("user_id", "the user who sent the key"),
            ("key", "the key"),
            ("fingerprint", "SHA-256 of the order's fields; another one is a 422"),
            ("order_id", "the order that the key created"),
            ("created_at", "time of the first use, by the database's clock"),
        ],
    ),
    (
        "outbox",
        "Events that are not published yet. A row is deleted after Kafka has committed its event.",
        &[
            ("seq", "the order in which the relay publishes"),
            ("event_id", "id of the event, equal to `order_id`"),
            ("order_id", "the order"),
            ("user_id", "key of the event's record"),
            ("payload", "value of the event's record"),
            ("traceparent", "W3C trace context of the request, passed on in a header"),
            ("created_at", "time of acceptance"),
        ],
    ),
    (
        "outbox_dead",
        "Refused events: Kafka does not accept them for what they are. Each row needs someone to act.",
        &[
            ("event_id", "id of the event, equal to `order_id`"),
            ("order_id", "the order"),
            ("user_id", "key of the event's record"),
            ("payload", "value of the event's record"),
            ("traceparent", "W3C trace context of the request"),
            ("created_at", "time of acceptance"),
            ("reason", "Kafka's error"),
            ("died_at", "time of the refusal"),
        ],
    ),
    (
        "receipt_jobs",
        "Orders whose receipt is not written yet. A row is deleted after S3 has stored its receipt.",
        &[
            ("order_id", "the order"),
            ("attempts", "tries so far"),
            ("available_at", "time from which a worker may claim the job; a claim moves it ahead by the lease"),
            ("traceparent", "W3C trace context of the request, if it is recorded"),
        ],
    ),
    (
        "orderflow_meta",
        "One row that says whose database this is.",
        &[
            ("singleton", "keeps a second row out"),
            ("owner", "`NAMESPACE/NAME` of the OrderFlow"),
            ("shard_name", "the shard whose orders are here"),
            ("shard_index", "its number, less 1"),
            ("shard_map", "the shard map, as in `SHARDS`"),
            ("topic", "the events' topic"),
            ("bucket", "the bucket of the receipts"),
            ("schema_version", "number of the newest migration that was applied"),
            ("updated_at", "time of the last change of this row"),
        ],
    ),
    (
        "orderflow_map",
        "The shard maps that this database has been part of.",
        &[
            ("epoch", "number of the map, from 1"),
            ("shards", "the map, as in `SHARDS`"),
            ("ranges", "its ranges of users; absent in the first"),
            ("written_at", "time at which it was written here"),
        ],
    ),
    (
        "orderflow_gate",
        "The ranges of users that this database may store, in 64 equal rows. Each statement that stores orders locks one.",
        &[
            ("slot", "the backend's process id modulo 64"),
            ("owned", "the ranges that may be stored"),
            ("fenced", "ranges that may be stored again from `fenced_until` on"),
            ("fenced_until", "the end of the fence"),
        ],
    ),
];

/// Begins the section in the page of topics and tables.
const HEADING: &str = "\n## Tables\n";

/// Returns `page` with a new section of the topics and its own section of the tables.
pub fn with_topics(page: &str, events: &str, topics: &[Topic]) -> String {
    let head = head(
        "Topics and tables",
        "For anyone who reads the topics, queries a shard's database, or sizes Kafka and Postgres.",
    );
    let tables = page.find(HEADING).map_or("", |start| &page[start..]);
    format!("{head}\n{}{tables}", topics::section(events, topics))
}

/// Returns `page` with a new section of the tables, or an error that names what has no meaning in this crate.
pub fn with_tables(page: &str, relations: &[Relation]) -> Result<String, String> {
    let before = page.find(HEADING).map_or(page, |start| &page[..start]);
    Ok(format!("{before}{}", section(relations)?))
}

fn section(relations: &[Relation]) -> Result<String, String> {
    let mut text = format!(
        "{HEADING}\nEach shard's database has these tables. The migrations are in `provision/migrations`; sqlx records in \
         `_sqlx_migrations` which of them were applied.\n"
    );
    for relation in relations {
        let name = &relation.name;
        let (_, about, columns) =
            ABOUT.iter().find(|(other, ..)| other == name).ok_or_else(|| format!("the table {name} has no meaning"))?;
        let rows = relation.columns.iter().map(|column| {
            let (_, meaning) = columns
                .iter()
                .find(|(other, _)| *other == column.name)
                .ok_or_else(|| format!("the column {name}.{} has no meaning", column.name))?;
            let null = if column.nullable { "yes" } else { "no" };
            let default = column.default.as_ref().map_or_else(none, code);
            Ok([code(&column.name), column.type_name.clone(), null.to_owned(), default, prose(meaning)])
        });
        let rows = rows.collect::<Result<Vec<_>, String>>()?;
        let table = Table::new(["column", "type", "null", "default", "meaning"]).rows(rows).render();
        let _ = write!(text, "\n### {name}\n\n{about}\n\n{table}\n");
        for definition in relation.constraints.iter().chain(&relation.indexes) {
            let _ = writeln!(text, "- {}", code(definition));
        }
        if !relation.parameters.is_empty() {
            let _ = writeln!(text, "- {}", code(&format!("WITH ({})", relation.parameters.join(", "))));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(name: &str, column: &str) -> Relation {
        let column = Column {
            name: column.to_owned(),
            type_name: "integer".to_owned(),
            nullable: false,
            default: Some("0".to_owned()),
        };
        Relation {
            name: name.to_owned(),
            columns: vec![column],
            constraints: vec!["PRIMARY KEY (order_id)".to_owned()],
            indexes: Vec::new(),
            parameters: vec!["fillfactor=90".to_owned()],
        }
    }

    #[test]
    fn a_column_is_shown_with_its_meaning() {
        let text = section(&[relation("receipt_jobs", "attempts")]).unwrap();
        assert!(text.contains("\n| `attempts` | integer | no | `0` | tries so far |\n"), "{text}");
        assert!(text.ends_with("\n- `PRIMARY KEY (order_id)`\n- `WITH (fillfactor=90)`\n"), "{text}");
    }

    #[test]
    fn a_column_without_a_meaning_is_named() {
        assert_eq!(section(&[relation("orders", "colour")]), Err("the column orders.colour has no meaning".to_owned()));
    }
}
