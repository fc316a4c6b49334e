//! The operator's process: admin port, Lease, watches, controller; and their end in good order.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use kube::{Api, Client};
use orderflow_service::{Dependencies, Need, admin, prometheus::registry::Registry, s3, shutdown::CancellationToken};

use crate::{
    build::config_hash::Key,
    context::{self, Context},
    controller::{self, Queue, watch},
    lease::Candidate,
    memory::Memories,
    metrics::{LONGEST_SILENCE, Metrics, Pulse},
    reconcile::key,
    settings::Run,
};

/// Runs until `stop` is cancelled.
///
/// # Errors
/// If it could not start, or lost the Lease: another may lead already, so the process must end.
pub async fn run(settings: Run, stop: CancellationToken) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (dependencies, pulse) = (Dependencies::default(), Pulse::default());
    let address = SocketAddr::new(settings.admin.host, settings.admin.admin_port);
    let listener = admin::bind("admin", address).await?;
    let stuck = {
        let pulse = pulse.clone();
        move || {
            let silence = pulse.silence();
            (silence > LONGEST_SILENCE)
                .then(|| format!("the loop of the Lease has stood still for {} s", silence.as_secs()))
        }
    };
    let admin_stop = CancellationToken::new();
    let admin = tokio::spawn(admin::serve_with(listener, dependencies.clone(), registry, stuck, admin_stop.clone()));

    let result = lead(&settings, &metrics, &dependencies, &pulse, &stop).await;
    dependencies.stop();
    admin_stop.cancel();
    admin.await.context("end the admin port")??;
    result
}

async fn lead(
    settings: &Run,
    metrics: &Metrics,
    dependencies: &Dependencies,
    pulse: &Pulse,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let config = context::cluster().await?;
    let (own, scope) =
        (settings.cluster.own_namespace(&config.default_namespace), settings.cluster.scope(&config.default_namespace));
    let client = Client::try_from(config).context("make a client of the cluster")?;
    let identity = settings.identity();
    tracing::info!(identity, namespace = own, ?scope, "starting");

    let candidate = Candidate::new(
        Api::namespaced(client.clone(), &own),
        &settings.cluster.lease_name,
        identity.clone(),
        settings.lease_duration(),
        pulse.clone(),
        // One who only waits for it is ready: a rollout of the operator would never end otherwise.
        dependencies.register("Lease", Need::Always),
    );
    tokio::select! {
        () = candidate.acquire() => {}
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!(identity, "leading");
    metrics.leader.set(1);

    let work = async {
        let key = key::read_or_make(&client, &own, &settings.cluster.lease_name).await?;
        control(settings, client.clone(), scope, identity, key, metrics.clone(), dependencies, stop.clone()).await;
        anyhow::Ok(())
    };
    let result = tokio::select! {
        lost = candidate.keep() => Err(lost),
        result = work => result,
    };
    metrics.leader.set(0);
    if result.is_ok() {
        candidate.release().await;
    }
    result
}

#[expect(clippy::too_many_arguments, reason = "called once, to put the parts together")]
async fn control(
    settings: &Run,
    client: Client,
    scope: crate::settings::Scope,
    identity: String,
    key: Key,
    metrics: Metrics,
    dependencies: &Dependencies,
    stop: CancellationToken,
) {
    let queue = Queue::default();
    let live = watch::start(&client, &scope, &queue, dependencies);
    let context = Context {
        client,
        s3: s3::http(),
        live,
        memories: Memories::default(),
        metrics,
        images: settings.images(),
        key,
        identity: identity.into(),
        probe_interval: settings.probe_interval(),
        cleanup_deadline: settings.cleanup_deadline(),
    };
    controller::run(Arc::new(context), queue, settings.concurrency, stop).await;
}
