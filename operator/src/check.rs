//! `orderflow-operator check`: prints one line each for the definition, the permissions that are missing, and the
//! leader.

use k8s_openapi::{
    api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, core::Resource};

use crate::{
    crd::OrderFlow,
    kubernetes::{cluster, explain},
    lease,
    permissions::{self, Permission},
    settings::{Cluster, Scope},
};

/// Returns true if the operator can work.
pub async fn run(settings: &Cluster) -> anyhow::Result<bool> {
    let config = cluster().await?;
    let (own, scope) = (settings.own_namespace(&config.default_namespace), settings.scope(&config.default_namespace));
    let client = Client::try_from(config)?;
    if let Err(error @ (kube::Error::HyperError(_) | kube::Error::Service(_))) = client.apiserver_version().await {
        anyhow::bail!("the API server does not answer: {}", explain(&error));
    }
    let mut lines = vec![definition(&client).await];
    let watched = match &scope {
        Scope::All => None,
        Scope::Namespace(namespace) => Some(namespace.as_str()),
    };
    let permissions = permissions::WATCHED.iter().map(|permission| (permission, watched));
    for (permission, namespace) in
        permissions.chain(permissions::OWN.iter().map(|permission| (permission, Some(own.as_str()))))
    {
        for verb in permission.verbs {
            lines.push(may(&client, permission, verb, namespace).await);
        }
    }
    lines.push(leader(&client, &own, &settings.lease_name).await);
    let ok = lines.iter().all(|line| line.ok);
    // Allowed permissions are only counted, so that failures stand out.
    let allowed = lines.iter().filter(|line| line.ok && line.target.starts_with("may ")).count();
    for line in lines.iter().filter(|line| !line.ok || !line.target.starts_with("may ")) {
        println!("{}  {}  {}", if line.ok { "ok    " } else { "FAILED" }, line.target, line.text);
    }
    println!("{}  {allowed} permissions", if ok { "ok    " } else { "      " });
    Ok(ok)
}

struct Line {
    target: String,
    text: String,
    ok: bool,
}

async fn definition(client: &Client) -> Line {
    let group = format!("{}/{}", OrderFlow::group(&()), OrderFlow::version(&()));
    let target = format!("definition of OrderFlow ({group})");
    match client.list_api_group_resources(&group).await {
        Ok(list) if list.resources.iter().any(|resource| resource.kind == "OrderFlow") => {
            Line { target, text: "served".to_owned(), ok: true }
        }
        Ok(_) => {
            Line { target, text: "not served: apply the output of `orderflow-operator crd`".to_owned(), ok: false }
        }
        Err(error) => Line { target, text: format!("not served: {}", explain(&error)), ok: false },
    }
}

async fn may(client: &Client, permission: &Permission, verb: &str, namespace: Option<&str>) -> Line {
    let (resource, subresource) = match permission.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (permission.resource, None),
    };
    let group = if permission.group.is_empty() { String::new() } else { format!(".{}", permission.group) };
    let place = namespace.map_or_else(|| "all namespaces".to_owned(), |namespace| format!("namespace {namespace}"));
    let target = format!("may {verb} {}{group} in {place}", permission.resource);
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(permission.group.to_owned()),
                namespace: namespace.map(ToOwned::to_owned),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match api.create(&PostParams::default(), &review).await {
        Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {
            Line { target, text: String::new(), ok: true }
        }
        Ok(_) => Line { target, text: format!("not allowed; required to {}", permission.reason), ok: false },
        Err(error) => Line { target, text: explain(&error), ok: false },
    }
}

async fn leader(client: &Client, namespace: &str, name: &str) -> Line {
    let target = format!("leader (Lease {namespace}/{name})");
    let lease = match lease::leader(client.clone(), namespace, name).await {
        Ok(lease) => lease,
        Err(error) => return Line { target, text: format!("{error:#}"), ok: false },
    };
    let spec = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let Some(holder) = lease.as_ref().and_then(lease::holder) else {
        return Line { target, text: "none: no operator runs".to_owned(), ok: false };
    };
    let age = spec.renew_time.map(|time| Timestamp::now().duration_since(time.0).as_secs());
    let alive = age.is_some_and(|age| age <= i64::from(spec.lease_duration_seconds.unwrap_or(15)));
    let renewed = age.map_or_else(|| "never renewed".to_owned(), |age| format!("renewed {age} s ago"));
    Line { target, text: format!("{holder}, {renewed}"), ok: alive }
}
