//! A bucket without endpoint and keys in the settings. The default AWS chain must find credentials, as in a pod on EKS,
//! and the programs report when none exist.
//!
//! The S3 is LocalStack's, which takes any credentials. THE SOURCE OF THE CREDENTIALS IS A FAKE: LocalStack has no STS
//! here, and no EKS runs. The fake answers the two requests of the chain as AWS documents them, and records the
//! requests.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use orderflow_testbed::{
    Producer, Service, Stack, Store, api::Api, eventually, folder, http, product::Environment, provision,
    wait::PATIENCE,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::support::dependencies_up;

const ROLE: &str = "arn:aws:iam::111122223333:role/orders";
const TOKEN: &str = "a-token-of-the-service-account";
const SECRET_KEY: &str = "a-secret-key-of-the-role";

#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_is_changed_for_credentials() -> Result<()> {
    let (stack, aws) =
        (Stack::builder().store(Store::Localstack).start().await?, FakeAws::start(StatusCode::OK).await?);
    let environment = web_identity(&stack, &aws)?;
    let log = a_receipt_is_written(&stack, environment).await?;
    let asked = aws.asked();
    let question = asked.iter().find(|question| question.contains("Action=AssumeRoleWithWebIdentity"));
    let question = question.with_context(|| format!("STS was not asked: {asked:?}"))?;
    ensure!(question.contains(TOKEN) && question.contains("role%2Forders"), "{question}");
    ensure!(![TOKEN, SECRET_KEY].iter().any(|secret| log.contains(secret)), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn eks_pod_identity_gives_credentials() -> Result<()> {
    let (stack, aws) =
        (Stack::builder().store(Store::Localstack).start().await?, FakeAws::start(StatusCode::OK).await?);
    let mut environment = without_keys(&stack);
    environment.extend([
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), format!("{}/v1/credentials", aws.url)),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE".to_owned(), token_file()?),
    ]);
    a_receipt_is_written(&stack, environment).await?;
    let asked = aws.asked();
    ensure!(asked.iter().any(|question| question.starts_with(&format!("GET /v1/credentials {TOKEN}"))), "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_be_assumed_is_reported_with_the_reason_of_aws() -> Result<()> {
    let (stack, aws) = (Stack::shared().await?, FakeAws::start(StatusCode::FORBIDDEN).await?);
    let reason = "AWS gives no credentials: AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity";
    expect_reason(web_identity(&stack, &aws)?, reason).await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credentials_are_reported() -> Result<()> {
    let stack = Stack::shared().await?;
    // In a pod, the instance's metadata service often accepts a request and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let mut environment = without_keys(&stack);
    environment.extend([
        ("AWS_EC2_METADATA_DISABLED".to_owned(), "false".to_owned()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), format!("http://{}", silent.local_addr()?)),
    ]);
    expect_reason(environment, "there are no AWS credentials: no keys, no web identity (IRSA)").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sts_is_distinguished_from_a_silent_s3() -> Result<()> {
    let stack = Stack::shared().await?;
    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let mut environment = without_keys(&stack);
    environment.extend([
        ("AWS_ENDPOINT_URL_STS".to_owned(), format!("http://{}", silent.local_addr()?)),
        ("AWS_ROLE_ARN".to_owned(), ROLE.to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), token_file()?),
    ]);
    expect_reason(environment, "AWS gives no credentials right now: no answer in time").await
}

/// Returns a stack's environment as on AWS: neither endpoint nor keys. Only the SDK knows the address of the S3.
fn without_keys(stack: &Stack) -> Environment {
    let given = ["S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let mut environment: Environment =
        stack.env().into_iter().filter(|(name, _)| !given.contains(&name.as_str())).collect();
    environment.extend([
        ("AWS_ENDPOINT_URL_S3".to_owned(), stack.object_store().endpoint()),
        // The machine that runs the tests may be an instance with a role.
        ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
    ]);
    environment
}

/// Returns the variables that the webhook of EKS adds to a pod whose ServiceAccount is annotated with a role.
fn web_identity(stack: &Stack, aws: &FakeAws) -> Result<Environment> {
    let mut environment = without_keys(stack);
    environment.extend([
        ("AWS_ROLE_ARN".to_owned(), ROLE.to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), token_file()?),
        ("AWS_STS_REGIONAL_ENDPOINTS".to_owned(), "regional".to_owned()),
        ("AWS_ENDPOINT_URL_STS".to_owned(), aws.url.clone()),
    ]);
    Ok(environment)
}

fn token_file() -> Result<String> {
    let file = folder::for_test_process()?.join("web-identity-token");
    std::fs::write(&file, TOKEN)?;
    Ok(file.to_str().context("a path of text")?.to_owned())
}

/// Waits until a receipt is written, and returns the producer's log.
async fn a_receipt_is_written(stack: &Stack, environment: Environment) -> Result<String> {
    let producer = Producer::builder(folder::for_test_process()?, environment).start().await?;
    dependencies_up(&producer, &["shard1", "s3"]).await?;
    let api = Api::new(&producer)?;
    let order = api.place("alice", None).await?.acked(0)?;
    api.receipt_stored(&order.id).await?;
    stack.s3().get_object().bucket(stack.bucket()).key(&order.receipt).send().await.context("get the receipt")?;
    Ok(producer.process().log_since_start())
}

/// Waits until the producer reports this reason for S3; provisioning must report it, too.
async fn expect_reason(environment: Environment, reason: &str) -> Result<()> {
    let folder = folder::for_test_process()?;
    let provisioning = environment.iter().cloned().chain([("OWNER".to_owned(), "test/reported".to_owned())]).collect();
    let producer = Producer::builder(folder, environment).start().await?;
    let url = format!("{}/readyz", producer.admin_url()?);
    eventually(&format!("s3: {reason}"), PATIENCE, async || {
        let readiness: Value = http::client().get(&url).send().await?.json().await?;
        let reported = readiness["dependencies"]["s3"]["reason"].as_str().unwrap_or_default();
        ensure!(reported.contains(reason), "{readiness}");
        Ok(())
    })
    .await?;
    let refused = provision(folder, provisioning).await.err().context("provisioning went well")?.to_string();
    ensure!(refused.contains(reason), "{refused}");
    for text in [refused, producer.process().log_since_start()] {
        ensure!(!text.contains(TOKEN), "the token is shown in {text}");
    }
    Ok(())
}

/// THE FAKE: gives the credentials of a role to any request like that of a pod on EKS.
struct FakeAws {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl FakeAws {
    /// Starts the fake. A status other than 200 refuses.
    async fn start(status: StatusCode) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = asked.clone();
        let server = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let asked = remembered.clone();
                let service = service_fn(move |request| answer(request, status, asked.clone()));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service),
                );
            }
        });
        Ok(Self { url, asked, server })
    }

    /// Returns method, path, authorization and body of each request.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no thread panics with the lock").clone()
    }
}

impl Drop for FakeAws {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    status: StatusCode,
    asked: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    const EXPIRES: &str = "2099-01-01T00:00:00Z";
    let is_sts = request.method() == hyper::Method::POST;
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("-");
    let mut question = format!("{} {} {authorization} ", request.method(), request.uri());
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    question.push_str(&String::from_utf8_lossy(&body));
    asked.lock().expect("no thread panics with the lock").push(question);

    let text = match (status, is_sts) {
        (StatusCode::OK, true) => format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId>\
             <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>a-session</SessionToken>\
             <Expiration>{EXPIRES}</Expiration></Credentials><AssumedRoleUser><Arn>{ROLE}/a</Arn>\
             <AssumedRoleId>A:a</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult>\
             <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
        ),
        (StatusCode::OK, false) => json!({
            "AccessKeyId": "ASIAEXAMPLE",
            "SecretAccessKey": SECRET_KEY,
            "Token": "a-session",
            "Expiration": EXPIRES,
        })
        .to_string(),
        _ => "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
              <Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error>\
              <RequestId>1</RequestId></ErrorResponse>"
            .to_owned(),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}
