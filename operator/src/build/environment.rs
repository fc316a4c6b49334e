//! The environment variables of the programs, and the files that some of them name. A secret appears only as a
//! reference to its Secret. Each pod gets only what it uses: the consumer gets no database and no bucket.

use std::fmt::Display;

use k8s_openapi::api::core::v1::{
    EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector, SecretKeySelector, SecretVolumeSource, Volume, VolumeMount,
};
use orderflow_service::postgres;

use super::ports::{HTTP_PORT, INTERNAL_PORT, METRICS_PORT};
use crate::{
    crd::SecretKey,
    pipeline::{Bucket, Identity, Pipeline, Shard, Topic, Username},
};

/// The folder of the files from Secrets, each in a folder of its own.
const AUTHORITIES: &str = "/etc/orderflow/ca";

/// The mode of files from Secrets. They belong to root, and the pod's `fsGroup` may read them.
const READABLE_BY_GROUP: i32 = 0o440;

#[derive(Default)]
pub struct Environment {
    pub variables: Vec<EnvVar>,
    pub volumes: Vec<Volume>,
    pub mounts: Vec<VolumeMount>,
}

pub fn producer(pipeline: &Pipeline) -> Environment {
    let mut environment = Environment::default();
    environment.value("PORT", &HTTP_PORT);
    environment.value("INTERNAL_PORT", &INTERNAL_PORT);
    environment.every_program();
    environment.value("SHARDS", &pipeline.map);
    for shard in &pipeline.shards {
        environment.shard(pipeline, shard);
    }
    environment.kafka(&pipeline.topic);
    // Producers show and verify the progress of the consumers.
    environment.value("KAFKA_GROUP_ID", &pipeline.consumer.group);
    environment.bucket(&pipeline.bucket);
    environment.traces(pipeline);
    if let Some(template) = pipeline.traces.as_ref().and_then(|traces| traces.url_template.as_ref()) {
        environment.value("TRACE_URL_TEMPLATE", template);
    }
    environment
}

pub fn consumer(pipeline: &Pipeline) -> Environment {
    let mut environment = Environment::default();
    environment.every_program();
    environment.kafka(&pipeline.topic);
    environment.value("KAFKA_GROUP_ID", &pipeline.consumer.group);
    // Set even if false: older images, which a spec can pin, log notifications by default.
    environment.value("LOG_NOTIFICATIONS", &pipeline.consumer.log_notifications);
    // The pod's name is unique among live pods, and a restarted container keeps it. So the container at once settles
    // the transaction that it left open.
    environment.field("INSTANCE", "metadata.name");
    environment.traces(pipeline);
    environment
}

impl Environment {
    fn every_program(&mut self) {
        self.value("ADMIN_PORT", &METRICS_PORT);
        self.value("LOG_FORMAT", &"json");
    }

    fn traces(&mut self, pipeline: &Pipeline) {
        let Some(traces) = &pipeline.traces else { return };
        self.value("OTEL_EXPORTER_OTLP_ENDPOINT", &traces.endpoint);
        self.value("OTEL_TRACES_SAMPLER", &"parentbased_traceidratio");
        self.value("OTEL_TRACES_SAMPLER_ARG", &traces.ratio);
        let Identity { namespace, name, .. } = &pipeline.identity;
        let resource = format!("k8s.namespace.name={namespace},orderflow.pipeline={name}");
        self.value("OTEL_RESOURCE_ATTRIBUTES", &resource);
    }

    fn shard(&mut self, pipeline: &Pipeline, shard: &Shard) {
        let in_map = pipeline.map.get(shard.index);
        self.secret(&postgres::dsn_variable(in_map), &shard.dsn);
        if let Some(ca) = &shard.ca {
            // By number, because a volume's name has a shorter limit than a shard's.
            self.file(&postgres::ca_variable(in_map), &format!("postgres-shard{}", in_map.number.get()), ca);
        }
    }

    fn kafka(&mut self, topic: &Topic) {
        self.value("KAFKA_BROKERS", &topic.brokers);
        self.value("KAFKA_TOPIC", &topic.names.orders);
        self.value("KAFKA_TLS", &topic.tls.is_some());
        if let Some(ca) = topic.tls.as_ref().and_then(|tls| tls.ca.as_ref()) {
            self.file("KAFKA_CA_FILE", "kafka", ca);
        }
        if let Some(sasl) = &topic.sasl {
            self.value("KAFKA_SASL_MECHANISM", &sasl.mechanism);
            match &sasl.username {
                Username::Given(name) => self.value("KAFKA_SASL_USERNAME", name),
                Username::In(key) => self.secret("KAFKA_SASL_USERNAME", key),
            }
            self.secret("KAFKA_SASL_PASSWORD", &sasl.password);
        }
    }

    fn bucket(&mut self, bucket: &Bucket) {
        if let Some(endpoint) = &bucket.endpoint {
            self.value("S3_ENDPOINT", endpoint);
        }
        self.value("S3_BUCKET", &bucket.name);
        self.value("AWS_REGION", &bucket.region);
        if let Some(secret) = &bucket.credentials {
            let token = bucket.session_token.then_some("AWS_SESSION_TOKEN");
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].into_iter().chain(token) {
                self.secret(name, &SecretKey { name: secret.clone(), key: name.to_owned() });
            }
        }
    }

    /// Adds a variable with a literal value. Kubernetes expands `$(NAME)`, so every `$` is escaped as `$$`.
    fn value(&mut self, name: &str, value: &dyn Display) {
        let value = value.to_string().replace('$', "$$");
        self.variables.push(EnvVar { name: name.to_owned(), value: Some(value), value_from: None });
    }

    fn secret(&mut self, name: &str, SecretKey { name: secret, key }: &SecretKey) {
        let key = SecretKeySelector { name: secret.clone(), key: key.clone(), optional: None };
        self.value_from(name, EnvVarSource { secret_key_ref: Some(key), ..EnvVarSource::default() });
    }

    fn field(&mut self, name: &str, path: &str) {
        let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
        self.value_from(name, EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() });
    }

    fn value_from(&mut self, name: &str, source: EnvVarSource) {
        self.variables.push(EnvVar { name: name.to_owned(), value: None, value_from: Some(source) });
    }

    /// Mounts one key of a Secret as a file and puts its path into the variable. Other keys are not mounted.
    fn file(&mut self, name: &str, peer: &str, SecretKey { name: secret, key }: &SecretKey) {
        const FILE: &str = "ca.crt";
        let (volume, folder) = (format!("ca-{peer}"), format!("{AUTHORITIES}/{peer}"));
        self.value(name, &format!("{folder}/{FILE}"));
        let source = SecretVolumeSource {
            secret_name: Some(secret.clone()),
            items: Some(vec![KeyToPath { key: key.clone(), path: FILE.to_owned(), mode: None }]),
            default_mode: Some(READABLE_BY_GROUP),
            optional: None,
        };
        self.volumes.push(Volume { name: volume.clone(), secret: Some(source), ..Volume::default() });
        self.mounts.push(VolumeMount {
            name: volume,
            mount_path: folder,
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory, Parser};
    use orderflow_service::{admin, kafka, s3, telemetry};
    use serde_json::json;

    use super::*;
    use crate::build::fixture;

    /// Lists the variables as `NAME=value`, `NAME=<secret/key>` or `NAME=<field>`.
    fn listing(environment: &Environment) -> Vec<String> {
        let shown = |variable: &EnvVar| {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), None) => value.clone(),
                (None, Some(EnvVarSource { secret_key_ref: Some(key), .. })) => format!("<{}/{}>", key.name, key.key),
                (None, Some(EnvVarSource { field_ref: Some(field), .. })) => format!("<{}>", field.field_path),
                other => panic!("{}: {other:?}", variable.name),
            };
            format!("{}={value}", variable.name)
        };
        environment.variables.iter().map(shown).collect()
    }

    #[test]
    fn a_minimal_spec_becomes_this_environment() {
        let pipeline = fixture::pipeline(&json!({}));
        let producer_variables = [
            "PORT=8080",
            "INTERNAL_PORT=8081",
            "ADMIN_PORT=9464",
            "LOG_FORMAT=json",
            "SHARDS=shard1=A-M,shard2=N-Z",
            "PG_SHARD1_DSN=<postgres-shard1/dsn>",
            "PG_SHARD2_DSN=<postgres-shard2/dsn>",
            "KAFKA_BROKERS=orderflow-kafka-bootstrap:9092",
            "KAFKA_TOPIC=orders",
            "KAFKA_TLS=false",
            "KAFKA_GROUP_ID=store.shop",
            "S3_ENDPOINT=http://localstack:4566",
            "S3_BUCKET=order-receipts",
            "AWS_REGION=us-east-1",
            "AWS_ACCESS_KEY_ID=<s3-credentials/AWS_ACCESS_KEY_ID>",
            "AWS_SECRET_ACCESS_KEY=<s3-credentials/AWS_SECRET_ACCESS_KEY>",
            "AWS_SESSION_TOKEN=<s3-credentials/AWS_SESSION_TOKEN>",
        ];
        assert_eq!(listing(&producer(&pipeline)), producer_variables);
        let consumer_variables = [
            "ADMIN_PORT=9464",
            "LOG_FORMAT=json",
            "KAFKA_BROKERS=orderflow-kafka-bootstrap:9092",
            "KAFKA_TOPIC=orders",
            "KAFKA_TLS=false",
            "KAFKA_GROUP_ID=store.shop",
            "LOG_NOTIFICATIONS=false",
            "INSTANCE=<metadata.name>",
        ];
        assert_eq!(listing(&consumer(&pipeline)), consumer_variables);
    }

    #[test]
    fn both_programs_get_the_security_settings_of_kafka() {
        let pipeline = fixture::everything();
        for environment in [producer(&pipeline), consumer(&pipeline)] {
            let listing = listing(&environment);
            for variable in [
                "KAFKA_TLS=true",
                "KAFKA_CA_FILE=/etc/orderflow/ca/kafka/ca.crt",
                "KAFKA_SASL_MECHANISM=SCRAM-SHA-512",
                "KAFKA_SASL_USERNAME=<kafka-user/username>",
                "KAFKA_SASL_PASSWORD=<kafka-user/password>",
            ] {
                assert!(listing.iter().any(|shown| shown == variable), "{variable} in {listing:?}");
            }
        }
    }

    #[test]
    fn a_consumer_gets_no_database_and_no_bucket() {
        let environment = consumer(&fixture::everything());
        let others = ["PG_", "S3_", "AWS_", "SHARDS"];
        let found = environment.variables.iter().find(|found| others.iter().any(|other| found.name.starts_with(other)));
        assert_eq!(found, None);
        let volumes: Vec<&str> = environment.volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(volumes, ["ca-kafka"]);
    }

    #[test]
    fn aws_without_credentials_leaves_them_to_the_default_chain() {
        let aws = json!({"bucket": {"endpoint": null, "credentialsSecretRef": null, "region": "eu-west-1"}});
        let listing = listing(&producer(&fixture::pipeline(&aws)));
        let bucket: Vec<&String> =
            listing.iter().filter(|shown| shown.starts_with("AWS_") || shown.starts_with("S3_")).collect();
        assert_eq!(bucket, ["S3_BUCKET=order-receipts", "AWS_REGION=eu-west-1"]);
    }

    #[test]
    fn a_mounted_file_is_one_key_and_readable_by_the_group() {
        let environment = producer(&fixture::everything());
        let shown = |volume: &Volume, mount: &VolumeMount| {
            let secret = volume.secret.as_ref().unwrap();
            let items = secret.items.as_ref().unwrap();
            assert_eq!((items.len(), secret.default_mode, mount.read_only), (1, Some(0o440), Some(true)));
            assert_eq!(volume.name, mount.name);
            format!(
                "{}/{} = {}/{}",
                secret.secret_name.as_ref().unwrap(),
                items[0].key,
                mount.mount_path,
                items[0].path
            )
        };
        let files: Vec<String> = std::iter::zip(&environment.volumes, &environment.mounts)
            .map(|(volume, mount)| shown(volume, mount))
            .collect();
        let expected = [
            "postgres-shard1/ca.crt = /etc/orderflow/ca/postgres-shard1/ca.crt",
            "kafka-ca/ca.crt = /etc/orderflow/ca/kafka/ca.crt",
        ];
        assert_eq!(files, expected);
        let variables = listing(&environment);
        assert!(
            variables.contains(&"PG_SHARD1_CA_FILE=/etc/orderflow/ca/postgres-shard1/ca.crt".to_owned()),
            "{variables:?}"
        );
    }

    #[test]
    fn a_dollar_in_the_spec_is_escaped() {
        let sasl = json!({"mechanism": "PLAIN", "username": "$(PG_SHARD1_DSN)$", "secretRef": {"name": "kafka-user"}});
        let listing = listing(&producer(&fixture::pipeline(&json!({"topic": {"sasl": sasl}}))));
        let username = "KAFKA_SASL_USERNAME=$$(PG_SHARD1_DSN)$$".to_owned();
        assert!(listing.contains(&username), "{listing:?}");
    }

    #[test]
    fn every_variable_is_set_once_and_is_a_setting_of_the_program() {
        #[derive(Parser)]
        struct Shared {
            #[command(flatten)]
            admin: admin::Settings,
            #[command(flatten)]
            telemetry: telemetry::Settings,
            #[command(flatten)]
            kafka: kafka::Settings,
            #[command(flatten)]
            s3: s3::Settings,
        }
        let command = Shared::command();
        let shared = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        let program_settings = [
            "PORT",
            "INTERNAL_PORT",
            "SHARDS",
            "PG_SHARD1_DSN",
            "PG_SHARD1_CA_FILE",
            "PG_SHARD2_DSN",
            "KAFKA_GROUP_ID",
            "KAFKA_SASL_PASSWORD",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "INSTANCE",
            "LOG_NOTIFICATIONS",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_TRACES_SAMPLER",
            "OTEL_TRACES_SAMPLER_ARG",
            "TRACE_URL_TEMPLATE",
        ];
        let known: BTreeSet<&str> = shared.chain(program_settings).collect();
        let pipeline = fixture::everything();
        for environment in [producer(&pipeline), consumer(&pipeline)] {
            let mut set = BTreeSet::new();
            for variable in &environment.variables {
                assert!(known.contains(variable.name.as_str()), "{} is unknown", variable.name);
                assert!(set.insert(&variable.name), "{} is set twice", variable.name);
            }
        }
    }
}
