//! Checks that the consumer contains no client of any server but Kafka.

use std::process::Command;

#[test]
fn no_client_of_postgres_or_s3_is_built_into_the_consumer() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "-p", "orderflow-consumer", "-e", "normal", "--prefix", "none", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run cargo tree");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("names of packages are text");
    let has = |package: &str| tree.lines().any(|line| line.split(' ').next() == Some(package));
    assert!(has("rdkafka"), "the tree has no Kafka client, so it is not the consumer's:\n{tree}");
    for package in ["sqlx", "sqlx-core", "sqlx-postgres", "aws-sdk-s3", "aws-config", "reqwest"] {
        assert!(!has(package), "the consumer depends on {package}:\n{tree}");
    }
}
