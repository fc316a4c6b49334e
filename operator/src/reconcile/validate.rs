//! Turns a spec and its Secrets into a [`Pipeline`], after which no step reads the spec again. An invalid spec is
//! an error. An invalid part has a [`Problem`], and the other parts are not affected.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use orderflow_core::{ShardMap, Topics, plain};
use orderflow_service::{kafka, postgres, s3, secrecy::SecretString};
use serde_json::Value;
use url::Url;

use super::{
    backends::{self, Backends},
    dereference::{Secrets, place},
};
use crate::{
    condition::{Problem, Reason},
    crd::{self, OrderFlowSpec, SecretKey},
    pipeline::{
        Adoption, Bucket, BucketAccess, Consumer, Identity, Images, Part, Peers, Pipeline, Pods, Producer, Sasl, Scale,
        Shard, ShardAccess, Tls, Topic, TopicAccess, Traces, Username,
    },
};

const DEFAULT_REPLICAS: i32 = 2;

pub fn validate(
    identity: Identity,
    adoption: Adoption,
    spec: &OrderFlowSpec,
    secrets: &Secrets,
    images: &Images,
    backends: &Backends,
) -> Result<Pipeline, Problem> {
    require_plain("spec", &serde_json::to_value(spec).unwrap_or_default())?;
    let map = map(spec)?;
    let mut shards: Vec<Shard> = std::iter::zip(&map, &spec.shards)
        .map(|(shard, spec)| Shard {
            index: shard.index,
            name: spec.name.clone(),
            dsn: spec.dsn_secret_ref.clone(),
            ca: spec.ca_secret_ref.clone(),
            access: shard_access(spec, secrets, backends).map_err(|problem| problem.in_part(&spec.name)),
        })
        .collect();
    refuse_same_databases(&mut shards);
    let consumer_replicas = spec.consumer.replicas.unwrap_or(DEFAULT_REPLICAS);
    if consumer_replicas > spec.topic.partitions {
        return Err(invalid("consumer.replicas: must not exceed topic.partitions"));
    }
    Ok(Pipeline {
        adoption,
        map,
        shards,
        bucket: bucket(spec, secrets, backends)?,
        topic: topic(spec, secrets, backends)?,
        producer: producer(&spec.producer, images)?,
        consumer: Consumer {
            replicas: consumer_replicas,
            log_notifications: spec.consumer.log_notifications,
            group: spec
                .consumer
                .group_id
                .clone()
                .unwrap_or_else(|| format!("{}.{}", identity.namespace, identity.name)),
            pods: Pods {
                image: spec.consumer.image.clone().unwrap_or_else(|| images.consumer.clone()),
                image_pull_policy: pull_policy(spec.consumer.image_pull_policy),
                resources: resources(spec.consumer.resources.as_ref(), &CONSUMER_RESOURCES),
                service_account_annotations: spec.consumer.service_account.annotations.clone(),
            },
        },
        traces: spec.traces.as_ref().map(traces).transpose()?,
        network_policy: spec.network_policy.enabled.then(|| Peers {
            clients: spec.network_policy.clients.clone(),
            internal: spec.network_policy.internal.clone(),
            metrics: spec.network_policy.metrics.clone(),
            dns: spec.network_policy.dns.clone(),
            kafka: spec.network_policy.kafka.clone(),
            postgres: spec.network_policy.postgres.clone(),
            s3: spec.network_policy.s3.clone(),
            traces: spec.network_policy.traces.clone(),
        }),
        identity,
    })
}

fn traces(spec: &crd::Traces) -> Result<Traces, Problem> {
    let wrong = |rule: &str| invalid(format!("traces.endpoint: {rule}"));
    let address = Url::parse(&spec.endpoint).map_err(|error| wrong(&error.to_string()))?;
    let is_plain = address.username().is_empty()
        && address.password().is_none()
        && address.path() == "/"
        && address.query().is_none()
        && address.fragment().is_none();
    // The programs read it by this type, which takes no international names.
    if !is_plain || spec.endpoint.parse::<http::Uri>().is_err() {
        return Err(wrong("must be http:// or https:// with an ASCII host and at most a port"));
    }
    let port = address.port_or_known_default().filter(|port| *port > 0);
    Ok(Traces {
        endpoint: spec.endpoint.trim_end_matches('/').to_owned(),
        port: port.ok_or_else(|| wrong("must not have port 0"))?,
        ratio: f64::from(spec.sample_percent) / 100.0,
        url_template: spec.url_template.clone(),
    })
}

fn invalid(message: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("spec.{message}"))
}

/// Requires that each text of the spec is one line without invisible characters, whatever the definition allows. Libraries
/// panic on such a character, truncate the text or send it on. Annotations are exempt: only the cluster interprets them.
fn require_plain(path: &str, value: &Value) -> Result<(), Problem> {
    match value {
        Value::String(text) => plain::check(text).map_err(|error| {
            Problem::new(Reason::SpecInvalid, format!("{path}: {error}: \"{}\"", plain::escape(text)))
        }),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| require_plain(&format!("{path}[{index}]"), item))
        }
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| *name != "annotations")
            .try_for_each(|(name, member)| require_plain(&format!("{path}.{name}"), member)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn map(spec: &OrderFlowSpec) -> Result<ShardMap, Problem> {
    let text: Vec<String> = spec.shards.iter().map(|shard| format!("{}={}", shard.name, shard.users)).collect();
    text.join(",").parse().map_err(invalid)
}

fn shard_access(spec: &crd::Shard, secrets: &Secrets, backends: &Backends) -> Part<ShardAccess> {
    let dsn = secrets.text(&spec.dsn_secret_ref)?;
    let place = place(&spec.dsn_secret_ref);
    backends::refuse_files(dsn).map_err(|reason| Problem::new(Reason::SecretInvalid, format!("{place}: {reason}")))?;
    let mut secret_values = vec![dsn.as_bytes().to_vec()];
    let ca = spec.ca_secret_ref.as_ref().map(|key| secrets.pem(key)).transpose()?;
    secret_values.extend(ca.map(|ca| ca.as_bytes().to_vec()));
    let ca = ca.map(|ca| postgres::Ca::Pem(ca.as_bytes().to_vec()));
    let dsn = SecretString::from(dsn.to_owned());
    let options = postgres::options(&place, &dsn, ca.as_ref(), "orderflow-operator")
        .map_err(|error| Problem::new(Reason::SecretInvalid, format!("{error:#}")))?;
    backends.require_database(&options).map_err(|refusal| backends::unusable_dsn(&place, refusal))?;
    Ok(ShardAccess { options, secret_values })
}

/// Refuses a database that two shards name. The first shard would set up an empty one, and the second DSN would then
/// look like the mistake.
fn refuse_same_databases(shards: &mut [Shard]) {
    for index in 1..shards.len() {
        let (before, rest) = shards.split_at_mut(index);
        let Ok(access) = &rest[0].access else { continue };
        let same = before.iter().find(|other| {
            other.access.as_ref().is_ok_and(|other| postgres::same_database(&other.options, &access.options))
        });
        if let Some(same) = same {
            let message = format!("{}: its DSN names the same database as {}'s", rest[0].name, same.name);
            rest[0].access = Err(Problem::new(Reason::SameDatabase, message));
        }
    }
}

fn bucket(spec: &OrderFlowSpec, secrets: &Secrets, backends: &Backends) -> Result<Bucket, Problem> {
    let crd::Bucket { name, region, endpoint, credentials_secret_ref } = &spec.bucket;
    let address = endpoint.as_ref().map(|endpoint| {
        let url = endpoint.parse::<url::Url>().ok();
        url.and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)))
            .ok_or_else(|| invalid("bucket.endpoint: must be a URL such as http://HOST:PORT"))
    });
    let address = address.transpose()?;
    let port = address.as_ref().map_or(443, |(_, port)| *port);
    let allowed = address.iter().try_for_each(|(host, port)| {
        backends.require(host, *port).map_err(|refusal| backends::unusable_endpoint(host, refusal))
    });
    let secret = credentials_secret_ref.as_ref().map(|secret| secret.name.clone());
    let session_token = secret.as_ref().is_some_and(|secret| secrets.optional(secret, "AWS_SESSION_TOKEN").is_some());
    let mut settings = s3::Settings {
        s3_endpoint: endpoint.clone(),
        s3_bucket: name.clone(),
        aws_region: region.clone(),
        aws_access_key_id: None,
        aws_secret_access_key: None,
        aws_session_token: None,
        s3_timeout_ms: 5000,
    };
    let access = match &secret {
        None => Ok(BucketAccess { settings, secret_values: Vec::new() }),
        Some(secret) => {
            credentials(secret, session_token, secrets).map_err(|problem| problem.in_part("bucket")).map(|values| {
                let mut values_of = values.iter();
                settings.aws_access_key_id = values_of.next().cloned();
                settings.aws_secret_access_key = values_of.next().cloned().map(SecretString::from);
                settings.aws_session_token = values_of.next().cloned().map(SecretString::from);
                BucketAccess { settings, secret_values: values.into_iter().map(String::into_bytes).collect() }
            })
        }
    };
    let access = allowed.and(access);
    Ok(Bucket {
        name: name.clone(),
        region: region.clone(),
        endpoint: endpoint.clone(),
        port,
        credentials: secret,
        session_token,
        access,
    })
}

/// Reads the access key id, the secret and, if there is one, the session token.
fn credentials(secret: &str, session_token: bool, secrets: &Secrets) -> Part<Vec<String>> {
    let token = session_token.then_some("AWS_SESSION_TOKEN");
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        .into_iter()
        .chain(token)
        .map(|key| secrets.text(&SecretKey { name: secret.to_owned(), key: key.to_owned() }).map(ToOwned::to_owned))
        .collect()
}

fn topic(spec: &OrderFlowSpec, secrets: &Secrets, backends: &Backends) -> Result<Topic, Problem> {
    let topic = &spec.topic;
    let ports: Option<BTreeSet<u16>> = topic
        .bootstrap_servers
        .split(',')
        .map(|server| server.rsplit_once(':').and_then(|(_, port)| port.parse().ok()))
        .collect();
    let allowed = backends::brokers(&topic.bootstrap_servers).try_for_each(|(host, port)| {
        backends.require(host, port).map_err(|refusal| backends::unusable_broker(host, refusal))
    });
    let days: Option<u64> = topic.retention.strip_suffix('d').and_then(|days| days.parse().ok());
    let sasl = topic.sasl.as_ref().map(|sasl| {
        let key = |key: &str| SecretKey { name: sasl.secret_ref.name.clone(), key: key.to_owned() };
        Sasl {
            mechanism: match sasl.mechanism {
                crd::SaslMechanism::Plain => "PLAIN",
                crd::SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                crd::SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            },
            username: sasl.username.clone().map_or_else(|| Username::In(key("username")), Username::Given),
            password: key("password"),
        }
    });
    Ok(Topic {
        names: Topics::named(&topic.name),
        brokers: topic.bootstrap_servers.clone(),
        ports: ports.ok_or_else(|| invalid("topic.bootstrapServers: must be HOST:PORT[,HOST:PORT…]"))?,
        partitions: topic.partitions,
        replication_factor: topic.replication_factor,
        retention: Duration::from_secs(
            days.ok_or_else(|| invalid("topic.retention: must be a number of days, such as 30d"))? * 24 * 60 * 60,
        ),
        tls: topic.tls.as_ref().map(|tls| Tls { ca: tls.ca_secret_ref.clone() }),
        access: allowed
            .and_then(|()| topic_access(topic, sasl.as_ref(), secrets).map_err(|problem| problem.in_part("topic"))),
        sasl,
    })
}

fn topic_access(topic: &crd::Topic, sasl: Option<&Sasl>, secrets: &Secrets) -> Part<TopicAccess> {
    let mut secret_values = Vec::new();
    let ca = topic.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref());
    let ca = ca.map(|key| secrets.pem(key)).transpose()?;
    secret_values.extend(ca.map(|ca| ca.as_bytes().to_vec()));
    let (mut username, mut password) = (None, None);
    if let Some(sasl) = sasl {
        let name = match &sasl.username {
            Username::Given(name) => name.as_str(),
            Username::In(key) => secrets.text(key)?,
        };
        let secret = secrets.text(&sasl.password)?;
        secret_values.extend([name.as_bytes().to_vec(), secret.as_bytes().to_vec()]);
        (username, password) = (Some(name.to_owned()), Some(SecretString::from(secret.to_owned())));
    }
    let settings = kafka::Settings {
        kafka_brokers: topic.bootstrap_servers.clone(),
        kafka_topic: topic.name.clone(),
        kafka_tls: topic.tls.is_some(),
        kafka_ca_file: None,
        kafka_ca_pem: ca.map(ToOwned::to_owned),
        kafka_sasl_mechanism: topic.sasl.as_ref().map(|sasl| match sasl.mechanism {
            crd::SaslMechanism::Plain => kafka::SaslMechanism::Plain,
            crd::SaslMechanism::ScramSha256 => kafka::SaslMechanism::ScramSha256,
            crd::SaslMechanism::ScramSha512 => kafka::SaslMechanism::ScramSha512,
        }),
        kafka_sasl_username: username,
        kafka_sasl_password: password,
    };
    Ok(TopicAccess { settings, secret_values })
}

fn producer(spec: &crd::Producer, images: &Images) -> Result<Producer, Problem> {
    let scale = match (spec.replicas, &spec.autoscaling) {
        (Some(_), Some(_)) => return Err(invalid("producer: set replicas or autoscaling, not both")),
        (replicas, None) => Scale::Fixed(replicas.unwrap_or(DEFAULT_REPLICAS)),
        (None, Some(scale)) => Scale::Automatic {
            min: scale.min,
            max: scale.max,
            target_cpu_percent: scale.target_cpu_utilization_percentage,
        },
    };
    Ok(Producer {
        scale,
        pods: Pods {
            image: spec.image.clone().unwrap_or_else(|| images.producer.clone()),
            image_pull_policy: pull_policy(spec.image_pull_policy),
            resources: resources(spec.resources.as_ref(), &PRODUCER_RESOURCES),
            service_account_annotations: spec.service_account.annotations.clone(),
        },
    })
}

fn pull_policy(policy: crd::ImagePullPolicy) -> &'static str {
    match policy {
        crd::ImagePullPolicy::Always => "Always",
        crd::ImagePullPolicy::IfNotPresent => "IfNotPresent",
        crd::ImagePullPolicy::Never => "Never",
    }
}

/// The default requests and limits of a container.
struct DefaultResources {
    cpu: &'static str,
    memory: &'static str,
    memory_limit: &'static str,
}

/// The producer's defaults. It used 40 MB under full load; a queue of long orders on many shards may need more.
const PRODUCER_RESOURCES: DefaultResources = DefaultResources { cpu: "100m", memory: "64Mi", memory_limit: "256Mi" };

/// The consumer's defaults. It used 110 MB while it drained a long topic.
const CONSUMER_RESOURCES: DefaultResources = DefaultResources { cpu: "100m", memory: "64Mi", memory_limit: "256Mi" };

/// Builds requests and limits. The default has no CPU limit, because throttling looks like a slow database.
fn resources(spec: Option<&crd::Resources>, default: &DefaultResources) -> ResourceRequirements {
    let map = |values: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        values.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect()
    };
    let (requests, limits) = match spec {
        None => (map(&[("cpu", default.cpu), ("memory", default.memory)]), map(&[("memory", default.memory_limit)])),
        Some(spec) => (spec.requests.clone(), spec.limits.clone()),
    };
    let some = |values: BTreeMap<_, _>| (!values.is_empty()).then_some(values);
    ResourceRequirements { requests: some(requests), limits: some(limits), ..ResourceRequirements::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::fixture;

    fn problem_of(changes: &Value) -> Option<Problem> {
        fixture::try_pipeline(changes, &Secrets::new(fixture::SECRETS)).err()
    }

    #[test]
    fn an_invalid_spec_is_refused_even_without_the_api_server() {
        let shards = |users: [&str; 2]| {
            let shards: Vec<Value> = users
                .iter()
                .enumerate()
                .map(|(number, users)| {
                    let name = format!("postgres-shard{}", number + 1);
                    json!({ "name": name, "users": users, "dsnSecretRef": { "name": name, "key": "dsn" } })
                })
                .collect();
            json!({ "shards": shards })
        };
        for (changes, named) in [
            (shards(["A-M", "M-Z"]), "the users M-Z of postgres-shard2 overlap those of postgres-shard1"),
            (shards(["A-M", "Z-N"]), "is not NAME=USERS"),
            (json!({ "consumer": { "replicas": 7 } }), "consumer.replicas"),
            (json!({ "producer": { "autoscaling": { "min": 1, "max": 2 } } }), "producer"),
            (json!({ "bucket": { "endpoint": "nowhere" } }), "bucket.endpoint"),
            (json!({ "topic": { "bootstrapServers": "kafka:port" } }), "topic.bootstrapServers"),
            (json!({ "topic": { "retention": "1w" } }), "topic.retention"),
            (json!({ "topic": { "name": "orders\r" } }), "topic.name: must have no control or invisible characters"),
            (json!({ "bucket": { "region": "us-east-1 " } }), r#"as character 10: "us-east-1 ""#),
            (json!({ "consumer": { "image": "a\u{200b}b" } }), r#""a\u{200b}b""#),
            (json!({ "traces": { "endpoint": "http://user:secret@collector:4318" } }), "traces.endpoint"),
            (json!({ "traces": { "endpoint": "http://collector:4318?x=1" } }), "traces.endpoint"),
            (json!({ "traces": { "endpoint": "http://münchen:4318" } }), "traces.endpoint"),
            (json!({ "traces": { "endpoint": "http://collector:0" } }), "traces.endpoint"),
        ] {
            let problem = problem_of(&changes).unwrap_or_else(|| panic!("{changes} was not refused"));
            assert_eq!(problem.reason, Reason::SpecInvalid, "{changes}");
            assert!(problem.message.starts_with("spec.") && problem.message.contains(named), "{}", problem.message);
        }
        assert_eq!(problem_of(&json!({})), None);
    }

    #[test]
    fn an_invalid_value_is_the_problem_of_its_part() {
        // The changed Secret and key, the part that fails, and the reason.
        for (secret, key, value, part, reason) in [
            ("postgres-shard2", "dsn", Some("mysql://db/orders"), "shard2", Reason::SecretInvalid),
            ("postgres-shard2", "dsn", Some("postgres://o:hunter2@db/orders\n"), "shard2", Reason::SecretInvalid),
            ("postgres-shard1", "ca.crt", Some("hunter2"), "shard1", Reason::SecretInvalid),
            ("postgres-shard2", "dsn", None, "shard2", Reason::SecretKeyMissing),
            ("s3-credentials", "AWS_SECRET_ACCESS_KEY", None, "bucket", Reason::SecretKeyMissing),
            ("kafka-user", "password", Some(""), "topic", Reason::SecretInvalid),
            ("kafka-ca", "ca.crt", Some("hunter2"), "topic", Reason::SecretInvalid),
            ("s3-credentials", "AWS_ACCESS_KEY_ID", Some("AKIA\nhunter2"), "bucket", Reason::SecretInvalid),
            ("kafka-user", "password", Some("hunter2\u{200b}"), "topic", Reason::SecretInvalid),
        ] {
            let changed = fixture::SECRETS.into_iter().filter_map(|entry| {
                if (entry.0, entry.1) == (secret, key) { Some((secret, key, value?)) } else { Some(entry) }
            });
            // Another key, so that the Secret exists.
            let secrets = Secrets::from_values(changed.chain([(secret, "another", "value")]));
            let pipeline = fixture::pipeline_with(&fixture::everything_changes(), &secrets);
            let mut problems: Vec<&Problem> =
                pipeline.shards.iter().filter_map(|shard| shard.access.as_ref().err()).collect();
            problems.extend(pipeline.bucket.access.as_ref().err());
            problems.extend(pipeline.topic.access.as_ref().err());
            assert_eq!(problems.len(), 1, "{secret} {key}: {problems:?}");
            assert_eq!(problems[0].reason, reason, "{secret} {key}");
            let message = &problems[0].message;
            assert!(message.starts_with(part) && message.contains(secret) && message.contains(key), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn two_shards_cannot_share_a_database() {
        let secrets =
            Secrets::from_values(fixture::SECRETS.into_iter().map(|(secret, key, value)| match (secret, key) {
                ("postgres-shard2", "dsn") => (secret, key, "postgres://other:password@postgres-shard1/orders"),
                _ => (secret, key, value),
            }));
        let pipeline = fixture::pipeline_with(&json!({}), &secrets);
        assert!(pipeline.shards[0].access.is_ok());
        let problem = pipeline.shards[1].access.as_ref().err().expect("the second is refused");
        assert_eq!(problem.reason, Reason::SameDatabase);
        assert_eq!(problem.message, "shard2: its DSN names the same database as shard1's");
    }

    #[test]
    fn omitted_fields_have_their_defaults() {
        let pipeline = fixture::pipeline(&json!({ "producer": null, "consumer": null }));
        assert_eq!(pipeline.producer.scale, Scale::Fixed(2));
        assert_eq!((pipeline.consumer.replicas, pipeline.consumer.group.as_str()), (2, "store.shop"));
        assert_eq!(pipeline.topic.retention, Duration::from_secs(30 * 24 * 60 * 60));
        assert_eq!((pipeline.topic.partitions, pipeline.bucket.port), (6, 4566));
        assert!(pipeline.network_policy.is_some());
        assert_eq!(fixture::pipeline(&json!({ "bucket": { "endpoint": null } })).bucket.port, 443);
    }
}
