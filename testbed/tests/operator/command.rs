//! The operator's own reports: `check`, `/readyz` and `/metrics`.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{authorization::v1::SubjectAccessReview, rbac::v1::Role};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use orderflow_testbed::{
    Kubernetes, Operator, Service, eventually, folder, http,
    operator::{self, create},
    wait::PATIENCE,
};
use serde_json::{Value, json};

use crate::support::{NAME, World, metrics};

const WATCHES: [&str; 8] = [
    "deployments",
    "horizontalpodautoscalers",
    "networkpolicies",
    "orderflows",
    "poddisruptionbudgets",
    "secrets",
    "serviceaccounts",
    "services",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_check_succeeds_where_an_operator_works() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    let text = eventually("a check that succeeds", PATIENCE, async || {
        let (ok, text) = check(&world).await?;
        ensure!(ok, "{text}");
        Ok(text)
    })
    .await?;
    ensure!(!text.contains("FAILED"), "{text}");
    expect_line(&text, &["ok ", "definition of OrderFlow (orderflow.dev/v1alpha1)", "served"])?;
    let lease = format!("leader (Lease {}/orderflow-operator)", world.namespace);
    expect_line(&text, &["ok ", &lease, "renewed"])?;
    expect_line(&text, &["ok ", "permissions"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_a_missing_permission_and_its_purpose() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    eventually("a check that succeeds", PATIENCE, async || {
        let (ok, text) = check(&world).await?;
        ensure!(ok, "{text}");
        Ok(())
    })
    .await?;
    deny(&world, "services", "delete").await?;
    let (ok, text) = check(&world).await?;
    ensure!(!ok, "{text}");
    expect_line(&text, &["FAILED", "may delete services", "manage the producers' Services"])?;
    ensure!(text.matches("FAILED").count() == 1, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_fails_without_a_live_leader() -> Result<()> {
    let world = World::new().await?;
    let (ok, text) = check(&world).await?;
    ensure!(!ok, "{text}");
    expect_line(&text, &["FAILED", "leader", "no operator runs"])?;

    let operator = world.operator().await?;
    eventually("a check that succeeds", PATIENCE, async || {
        let (ok, text) = check(&world).await?;
        ensure!(ok, "{text}");
        Ok(())
    })
    .await?;
    operator.process().kill();
    eventually("a check that misses the dead leader", PATIENCE, async || {
        let (ok, text) = check(&world).await?;
        ensure!(!ok, "{text}");
        expect_line(&text, &["FAILED", "leader", "renewed"])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_reports_a_definition_that_is_not_served() -> Result<()> {
    let folder = folder::for_test_process()?;
    let kubernetes = Kubernetes::start(folder, "kubernetes-without-definition").await?;
    let environment = vec![("POD_NAMESPACE".to_owned(), "default".to_owned())];
    let (ok, text) =
        operator::command(folder, "check-without-definition", kubernetes.admin_kubeconfig(), environment, "check")
            .await?;
    ensure!(!ok, "{text}");
    expect_line(&text, &["FAILED", "definition of OrderFlow", "not served"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_ready_once_each_watch_has_listed() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    eventually("each watch to be up", PATIENCE, async || {
        let (status, readiness) = readyz(&operator).await?;
        let up = |kind: &&str| readiness["dependencies"][format!("watch of {kind}")]["status"] == "up";
        ensure!(status == 200 && WATCHES.iter().all(up), "{status} {readiness}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_watch_is_named_until_it_is_allowed() -> Result<()> {
    let world = World::new().await?;
    let rules = deny(&world, "services", "list").await?;
    let operator = world.operator().await?;
    eventually("the others to be up", PATIENCE, async || {
        let (status, readiness) = readyz(&operator).await?;
        ensure!(status == 503 && readiness["ready"] == false, "{status} {readiness}");
        for kind in WATCHES {
            let expected = if kind == "services" { "down" } else { "up" };
            ensure!(readiness["dependencies"][format!("watch of {kind}")]["status"] == expected, "{readiness}");
        }
        let reasons = readiness["reasons"].to_string();
        ensure!(reasons.contains("watch of services") && reasons.contains("cannot list resource"), "{readiness}");
        Ok(())
    })
    .await?;
    // A kind that cannot be listed looks like a missing one, so nothing is done.
    ensure!(world.writes_to_children()?.iter().all(|write| write.starts_with("create secrets/")), "it wrote");

    let roles: Api<Role> = world.api();
    roles.replace("watched", &PostParams::default(), &Role { rules, ..roles.get("watched").await? }).await?;
    eventually("all to be up", PATIENCE, async || {
        let (status, readiness) = readyz(&operator).await?;
        ensure!(status == 200, "{readiness}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_waits_for_the_lease_is_ready_and_not_the_leader() -> Result<()> {
    let world = World::new().await?;
    let leader = world.operator().await?;
    eventually("a leader", PATIENCE, async || {
        let metrics = metrics(&leader).await?;
        ensure!(metrics.contains("\norderflow_operator_leader 1\n"), "{metrics}");
        Ok(())
    })
    .await?;
    let standby = world.operator().await?;
    eventually("the other to be ready", PATIENCE, async || {
        let (status, readiness) = readyz(&standby).await?;
        ensure!(status == 200, "{readiness}");
        Ok(())
    })
    .await?;
    let metrics = metrics(&standby).await?;
    ensure!(metrics.contains("\norderflow_operator_leader 0\n"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_report_reconciles_problems_and_readiness() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let absent = json!({ "spec": { "bucket": { "credentialsSecretRef": { "name": "absent" } } } });
    world.create(world.orderflow_with(&absent)).await?;
    world.wait_for("BucketReady", "False", "SecretMissing").await?;
    let ready = format!("orderflow_operator_ready{{namespace=\"{}\",name=\"{NAME}\"}}", world.namespace);
    for line in [
        "orderflow_operator_leader 1",
        "# TYPE orderflow_operator_reconciles counter",
        "# TYPE orderflow_operator_reconcile_duration_seconds histogram",
        &format!("{ready} 0"),
    ] {
        shows(&operator, line).await?;
    }
    for counter in [
        "orderflow_operator_reconciles_total",
        "orderflow_operator_reconcile_duration_seconds_count",
        "orderflow_operator_problems_total{reason=\"SecretMissing\"}",
    ] {
        eventually(&format!("{counter} to count"), PATIENCE, async || {
            let metrics = metrics(&operator).await?;
            let line = metrics.lines().find_map(|line| line.strip_prefix(counter)).context(metrics.clone())?;
            ensure!(line.trim().parse::<u64>()? > 0, "{line}");
            Ok(())
        })
        .await?;
    }

    world.patch(json!({ "spec": { "bucket": { "credentialsSecretRef": { "name": "s3-credentials" } } } })).await?;
    shows(&operator, &format!("{ready} 1")).await?;
    // A deleted resource has no series.
    world.orderflows().delete(NAME, &DeleteParams::default()).await?;
    eventually("no word of the deleted resource", PATIENCE, async || {
        let metrics = metrics(&operator).await?;
        ensure!(!metrics.contains(&ready), "{metrics}");
        Ok(())
    })
    .await
}

/// Runs `orderflow-operator check` beside the operator of this world. Returns whether it succeeded, and what it
/// printed.
async fn check(world: &World) -> Result<(bool, String)> {
    let name = format!("check-{}", world.namespace);
    operator::command(folder::for_test_process()?, &name, &world.kubeconfig, world.operator_environment(), "check")
        .await
}

fn expect_line(text: &str, words: &[&str]) -> Result<()> {
    let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found, "no line with {words:?}:\n{text}");
    Ok(())
}

async fn shows(operator: &Operator, line: &str) -> Result<()> {
    eventually(&format!("metric {line}"), PATIENCE, async || {
        let metrics = metrics(operator).await?;
        ensure!(metrics.lines().any(|found| found == line), "{metrics}");
        Ok(())
    })
    .await
}

async fn readyz(operator: &Operator) -> Result<(u16, Value)> {
    let answer = http::client().get(format!("{}/readyz", operator.admin_url()?)).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// Removes a permission from the operator's role, waits until the API server enforces that, and returns the former
/// rules.
async fn deny(
    world: &World,
    resource: &str,
    verb: &str,
) -> Result<Option<Vec<k8s_openapi::api::rbac::v1::PolicyRule>>> {
    let roles: Api<Role> = world.api();
    let mut role = roles.get("watched").await?;
    let before = role.rules.clone();
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.as_deref() == Some(&[resource.to_owned()]) {
            rule.verbs.retain(|found| found != verb);
        }
    }
    roles.replace("watched", &PostParams::default(), &role).await?;
    eventually(&format!("no permission to {verb} {resource}"), PATIENCE, async || {
        let question = json!({ "spec": {
            "user": format!("system:serviceaccount:{}:orderflow-operator", world.namespace),
            "resourceAttributes": { "namespace": world.namespace, "resource": resource, "verb": verb },
        }});
        let api: Api<SubjectAccessReview> = Api::all(world.client.clone());
        let answer = create(&api, question).await?;
        ensure!(answer.status.is_some_and(|status| !status.allowed), "still allowed");
        Ok(())
    })
    .await?;
    Ok(before)
}
