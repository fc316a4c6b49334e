//! Controls of the other tests: their checks fail when they should. Without these, a manifest could pass because
//! nothing is checked.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::folder;
use serde_json::{Value, json};

use crate::{
    control_plane::has_strimzi,
    files::{objects, pod_template},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_does_not_exist_is_refused() -> Result<()> {
    let site = Site::new().await?;
    site.dry_run(&deployment()).await?;
    let mut wrong = deployment();
    wrong["spec"]["template"]["spec"]["containers"][0]["imagee"] = json!("other");
    let refused = site.dry_run(&wrong).await.err().context("it was accepted")?;
    ensure!(format!("{refused:#}").contains("imagee"), "{refused:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_does_not_exist_in_a_custom_resource_is_refused() -> Result<()> {
    if !has_strimzi("the strictness for custom resources")? {
        return Ok(());
    }
    let site = Site::new().await?;
    let pool = json!({
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaNodePool",
        "metadata": { "name": "pool", "labels": { "strimzi.io/cluster": "orderflow" } },
        "spec": { "replicas": 1, "roles": ["broker"], "storage": { "type": "ephemeral" } },
    });
    site.dry_run(&pool).await?;
    let mut wrong = pool;
    wrong["spec"]["storage"]["sizee"] = json!("1Gi");
    let refused = site.dry_run(&wrong).await.err().context("it was accepted")?;
    ensure!(format!("{refused:#}").contains("sizee"), "{refused:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_harmful_pod_is_refused_by_each_level() -> Result<()> {
    let mut privileged = pod_template(&deployment()).context("no template")?;
    privileged["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    for level in ["restricted", "baseline"] {
        let refused = Site::enforcing(level).await?.dry_run_pod(&privileged).await.err();
        let refused = refused.with_context(|| format!("{level}: it was accepted"))?;
        ensure!(format!("{refused:#}").contains("violates PodSecurity"), "{level}: {refused:#}");
    }
    let plain = pod_template(&deployment()).context("no template")?;
    Site::enforcing("baseline").await?.dry_run_pod(&plain).await?;
    let refused = Site::enforcing("restricted").await?.dry_run_pod(&plain).await.err().context("it was accepted")?;
    ensure!(format!("{refused:#}").contains("violates PodSecurity"), "{refused:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_rendered_installed_changed_and_removed() -> Result<()> {
    let site = Site::new().await?;
    let chart = folder::for_test_process()?.join("trivial");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: trivial\nversion: 0.1.0\n")?;
    std::fs::write(chart.join("templates/NOTES.txt"), "It says {{ .Values.word }}.\n")?;
    let object =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  word: {{ .Values.word }}\n";
    std::fs::write(chart.join("templates/object.yaml"), object)?;

    let rendered = site.helm.render("trivial", &chart, &json!({ "word": "one" })).await?;
    ensure!(rendered.info.notes.contains("It says one."), "{:?}", rendered.info);
    let [object] = &objects(&rendered.manifests())?[..] else { anyhow::bail!("{}", rendered.manifest) };
    ensure!(object["data"]["word"] == "one", "{object}");
    let api = site.api_of(object).await?;
    ensure!(api.get_opt("trivial").await?.is_none(), "rendering created it");

    let installed = site.helm.install("trivial", &chart, &json!({ "word": "one" })).await?;
    ensure!(installed.info.status == "deployed" && installed.revision == 1, "{installed:?}");
    site.helm.upgrade("trivial", &chart, &json!({ "word": "two" })).await?;
    ensure!(api.get("trivial").await?.data["data"]["word"] == "two", "it was not changed");
    let status = site.helm.status("trivial").await?;
    ensure!(status.revision == 2 && status.info.status == "deployed", "{status:?}");

    let refused = site.helm.install("trivial", &chart, &json!({ "word": "one" })).await.err().context("twice")?;
    ensure!(format!("{refused:#}").contains("cannot reuse a name that is still in use"), "{refused:#}");
    site.helm.uninstall("trivial", &[]).await?;
    ensure!(api.get_opt("trivial").await?.is_none(), "it still exists");
    Ok(())
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "plain" },
        "spec": {
            "selector": { "matchLabels": { "app": "plain" } },
            "template": {
                "metadata": { "labels": { "app": "plain" } },
                "spec": { "containers": [{ "name": "plain", "image": "plain:1" }] },
            },
        },
    })
}
