//! The control plane is a real one: controllers act, RBAC and Pod Security refuse, the audit log is complete, and
//! stored objects survive `kill -9`.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use orderflow_testbed::{
    Kubernetes, Process, eventually, folder,
    wait::{PATIENCE, accepted},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Returns the control plane that the tests share; none of them stops it.
async fn kubernetes() -> Result<&'static Kubernetes> {
    static SHARED: OnceCell<Kubernetes> = OnceCell::const_new();
    SHARED.get_or_try_init(|| start("kubernetes")).await
}

async fn start(name: &str) -> Result<Kubernetes> {
    let started = Instant::now();
    let kubernetes = Kubernetes::start(folder::for_test_process()?, name).await?;
    println!("Kubernetes, new: {:?}", started.elapsed());
    for process in [kubernetes.etcd(), kubernetes.api_server(), kubernetes.controller_manager()] {
        println!("{}: {} MB", process.name(), resident_megabytes(process)?);
    }
    Ok(kubernetes)
}

#[tokio::test]
async fn a_deployment_gets_a_replica_set_that_is_deleted_with_it() -> Result<()> {
    let client = kubernetes().await?.client()?;
    create_namespace(&client, "collected", json!({})).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "collected");
    let replica_sets: Api<ReplicaSet> = Api::namespaced(client.clone(), "collected");
    let pods: Api<Pod> = Api::namespaced(client, "collected");

    let deployment = json!({
        "metadata": { "name": "shop" },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "app": "shop" } },
            "template": { "metadata": { "labels": { "app": "shop" } }, "spec": pod_spec(false) },
        },
    });
    deployments.create(&PostParams::default(), &object(deployment)?).await?;
    eventually("a replica set and its pod", PATIENCE, || async {
        accepted((names(&replica_sets).await?, names(&pods).await?), |(sets, pods)| sets.len() == 1 && pods.len() == 1)
    })
    .await?;

    deployments.delete("shop", &DeleteParams::background()).await?;
    eventually("both to be collected", PATIENCE, || async {
        accepted((names(&replica_sets).await?, names(&pods).await?), |(sets, pods)| sets.is_empty() && pods.is_empty())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_namespace_is_deleted_with_its_objects() -> Result<()> {
    let client = kubernetes().await?.client()?;
    create_namespace(&client, "short-lived", json!({})).await?;
    create_config_map(&client, "short-lived").await?;

    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete("short-lived", &DeleteParams::default()).await?;
    eventually("the namespace to go away", PATIENCE, || async {
        accepted(namespaces.get_opt("short-lived").await?, Option::is_none)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_service_account_without_a_role_is_refused_and_audited_by_name() -> Result<()> {
    let kubernetes = kubernetes().await?;
    let client = kubernetes.client()?;
    create_namespace(&client, "refused", json!({})).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "refused");
    accounts.create(&PostParams::default(), &object(json!({ "metadata": { "name": "nobody" } }))?).await?;
    let request: TokenRequest = object(json!({ "spec": { "audiences": [] } }))?;
    let answer = accounts.create_token_request("nobody", &PostParams::default(), &request).await?;
    let token = answer.status.context("read the token")?.token;

    let config_maps: Api<ConfigMap> = Api::namespaced(kubernetes.client_with_token(&token)?, "refused");
    assert_eq!(refusal(config_maps.list(&ListParams::default()).await)?.code, 403);
    let config_maps: Api<ConfigMap> = Api::namespaced(kubernetes.client_with_token("forged")?, "refused");
    assert_eq!(refusal(config_maps.list(&ListParams::default()).await)?.code, 401);

    let log = std::fs::read_to_string(kubernetes.audit_log())?;
    let events: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let by_nobody: Vec<_> = events
        .iter()
        .filter(|event| event["user"]["username"] == "system:serviceaccount:refused:nobody")
        .map(|event| json!([event["verb"], event["objectRef"]["resource"], event["responseStatus"]["code"]]))
        .collect();
    assert_eq!(by_nobody, [json!(["list", "configmaps", 403])]);

    let file = kubernetes.kubeconfig_with_token("nobody", &token)?;
    assert!(std::fs::read_to_string(file)?.contains(&token));
    kubernetes.kubeconfig_with_token("../nobody", &token).expect_err("a path was taken for a name");
    Ok(())
}

#[tokio::test]
async fn a_privileged_pod_is_refused_where_pod_security_is_enforced() -> Result<()> {
    let client = kubernetes().await?.client()?;
    create_namespace(&client, "restricted", json!({ "pod-security.kubernetes.io/enforce": "restricted" })).await?;
    create_namespace(&client, "unrestricted", json!({})).await?;
    let pod: Pod = object(json!({ "metadata": { "name": "mighty" }, "spec": pod_spec(true) }))?;

    let refused = Api::namespaced(client.clone(), "restricted").create(&PostParams::default(), &pod).await;
    let refusal = refusal(refused)?;
    assert_eq!(refusal.code, 403);
    assert!(refusal.message.contains("violates PodSecurity"), "{}", refusal.message);
    eventually("the pod to be taken where nothing is enforced", PATIENCE, || async {
        Api::namespaced(client.clone(), "unrestricted").create(&PostParams::default(), &pod).await
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_api_server_comes_back_with_all_stored_objects() -> Result<()> {
    let kubernetes = start("killed-kubernetes").await?;
    let client = kubernetes.client()?;
    create_config_map(&client, "default").await?;
    let url = kubernetes.url();

    kubernetes.api_server().kill();
    let config_maps: Api<ConfigMap> = Api::namespaced(client, "default");
    config_maps.get("kept").await.expect_err("the killed API server answered");
    let started = Instant::now();
    kubernetes.start_api_server_again().await?;
    println!("API server, after a kill: {:?}", started.elapsed());

    assert_eq!(kubernetes.url(), url);
    config_maps.get("kept").await?;
    Ok(())
}

#[tokio::test]
async fn a_kubernetes_started_again_in_its_folder_keeps_its_data() -> Result<()> {
    let kubernetes = start("twice-kubernetes").await?;
    create_config_map(&kubernetes.client()?, "default").await?;
    let started = Instant::now();
    kubernetes.stop_api_server().await?;
    println!("API server, stopped gracefully: {:?}", started.elapsed());
    drop(kubernetes);

    let kubernetes = start("twice-kubernetes").await?;
    Api::<ConfigMap>::namespaced(kubernetes.client()?, "default").get("kept").await?;
    Ok(())
}

async fn create_namespace(client: &Client, name: &str, labels: Value) -> Result<()> {
    let namespace = object(json!({ "metadata": { "name": name, "labels": labels } }))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

async fn create_config_map(client: &Client, namespace: &str) -> Result<()> {
    let config_map: ConfigMap = object(json!({ "metadata": { "name": "kept" } }))?;
    Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &config_map).await?;
    Ok(())
}

fn pod_spec(privileged: bool) -> Value {
    json!({ "containers": [{ "name": "main", "image": "shop", "securityContext": { "privileged": privileged } }] })
}

fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    serde_json::from_value(value).context("read an object")
}

async fn names<K>(api: &Api<K>) -> Result<Vec<String>>
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let list = api.list(&ListParams::default()).await?;
    Ok(list.into_iter().filter_map(|object| object.meta().name.clone()).collect())
}

fn refusal<T>(answer: kube::Result<T>) -> Result<Box<kube::core::Status>> {
    match answer {
        Err(kube::Error::Api(status)) => Ok(status),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("the request was allowed"),
    }
}

fn resident_megabytes(process: &Process) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
