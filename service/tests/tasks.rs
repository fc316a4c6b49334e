//! Checks that each task and thread has an owner that awaits its end; without an owner it dies unnoticed. The
//! supervisor owns the long-running ones, and restarts, counts and names them. This file lists every other place that
//! starts one.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The files with places that start a task or thread, the number of these places, and their owners.
const AWAITED: [(&str, usize, &str); 15] = [
    ("operator/src/controller.rs", 1, "one reconcile, awaited by the controller, which sees its panic"),
    ("producer/src/dead_letters.rs", 1, "one query of Kafka, awaited with a deadline"),
    ("producer/src/http/server.rs", 1, "one connection, awaited by the graceful shutdown"),
    ("producer/src/http/trail.rs", 1, "one search in Kafka, awaited by the request"),
    ("producer/src/kafka_query.rs", 1, "one query of Kafka, awaited with a deadline"),
    ("producer/src/probe.rs", 1, "one query of Kafka, awaited by the probe"),
    ("producer/src/relay/publisher.rs", 1, "drops a client of librdkafka, which blocks, and then ends"),
    ("producer/src/relay/session.rs", 1, "one transaction, awaited by the relay"),
    (
        "producer/src/shard/reader.rs",
        1,
        "one query of a shard, awaited by the request unless its client is gone; it ends at its deadline",
    ),
    (
        "producer/src/stats.rs",
        1,
        "one round of queries, awaited by the requests, which notice an end without an answer",
    ),
    ("provision/src/topics/cluster.rs", 5, "one call of librdkafka each, awaited, and the drop of a client"),
    ("provision/src/topics/owner.rs", 2, "one reading or writing of the owner's records each, awaited"),
    ("service/src/admin.rs", 1, "one connection, joined by the admin task, and aborted at its end"),
    ("service/src/traces/export.rs", 1, "one request to the collector, awaited by the thread that exports"),
    ("service/src/kafka/transaction/offsets.rs", 1, "one transaction's offsets, joined by it"),
];

const PRODUCT: [&str; 7] = ["core", "service", "dead-letters", "provision", "producer", "consumer", "operator"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Counts the lines of product code, without its tests, that start a task or a thread.
fn starts(text: &str) -> usize {
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.filter(|line| [".spawn(", "::spawn(", "spawn_blocking("].iter().any(|start| line.contains(start))).count()
}

#[test]
fn every_task_and_thread_outside_the_supervisor_has_an_owner_that_awaits_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut wrong = Vec::new();
    for file in PRODUCT.iter().flat_map(|package| sources(&root.join(package).join("src"))) {
        let name = file.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if name == "service/src/supervisor.rs" {
            continue;
        }
        let found = starts(&fs::read_to_string(&file).unwrap());
        let listed = AWAITED.iter().find(|(listed, ..)| *listed == name).map_or(0, |(_, count, _)| *count);
        if found != listed {
            wrong.push(format!("{name} starts {found} tasks or threads, and {listed} are listed"));
        }
    }
    assert!(wrong.is_empty(), "let the supervisor own them, or list their owner here:\n{}", wrong.join("\n"));
}

#[test]
fn starts_in_code_are_counted_and_those_in_comments_and_tests_are_not() {
    let text = "// tokio::spawn(x)\nlet task = tokio::spawn(work());\nthread::Builder::new()\n    .spawn(work)?;\n\
                spawn_blocking(f)\n#[cfg(test)]\nmod tests {\n    tokio::spawn(x);\n}\n";
    assert_eq!(starts(text), 3);
}
