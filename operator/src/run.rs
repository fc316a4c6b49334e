//! Runs the operator's process: admin port, Lease, watches, controller, and their orderly shutdown.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Api, Client, client::ClientBuilder};
use orderflow_service::{
    Dependencies, Need, Stage, Supervisor, admin, prometheus::registry::Registry, s3, shutdown::CancellationToken,
};

use crate::{
    api_requests::RequestCounter,
    build::config_hash::Key,
    cache::Stores,
    controller::{self, Queue, watch},
    kubernetes,
    lease::Candidate,
    metrics::{LONGEST_SILENCE, Metrics, Pulse},
    own_buckets::OwnBuckets,
    reconcile::{backends::Backends, context::Context, key, resource_state::ResourceStates},
    settings::Run,
};

/// Runs until `stop` is cancelled.
///
/// # Errors
/// Returns an error if it could not start or lost the Lease: another process may lead already, so this one must end.
pub async fn run(settings: Run, stop: CancellationToken) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (dependencies, pulse) = (Dependencies::new(stop.clone()), Pulse::default());
    let supervisor = Supervisor::new(&mut registry, stop.clone());
    let (watching, administering) = (supervisor.stage(), supervisor.stage());
    let address = SocketAddr::new(settings.admin.host, settings.admin.admin_port);
    let listener = admin::bind("admin", address).await?;
    let stuck = {
        let pulse = pulse.clone();
        move || {
            let silence = pulse.silence();
            (silence > LONGEST_SILENCE)
                .then(|| format!("the loop of the Lease has been stuck for {} s", silence.as_secs()))
        }
    };
    admin::serve_with(&administering, &supervisor, listener, dependencies.clone(), registry, "operator", stuck);

    let mut leading = pin!(lead(&settings, &metrics, &dependencies, &watching, &pulse, &stop));
    let result = tokio::select! {
        result = &mut leading => result,
        failure = supervisor.failed() => {
            tracing::error!(error = format!("{failure:#}"), "stopping");
            stop.cancel();
            // An orderly end releases the Lease, so that another process can lead at once.
            if let Err(error) = leading.await {
                tracing::warn!(error = format!("{error:#}"), "stop leading");
            }
            Err(failure)
        }
    };
    // From here on a task that ends is not restarted. This includes a leader that lost its Lease.
    stop.cancel();
    watching.stop();
    administering.stop();
    administering.ended(ADMIN_END).await;
    result
}

/// The longest wait at shutdown for responses of the admin port that are in progress.
const ADMIN_END: Duration = Duration::from_secs(1);

async fn lead(
    settings: &Run,
    metrics: &Metrics,
    dependencies: &Dependencies,
    watching: &Stage,
    pulse: &Pulse,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let config = kubernetes::cluster().await?;
    let (own, scope) =
        (settings.cluster.own_namespace(&config.default_namespace), settings.cluster.scope(&config.default_namespace));
    let backends = settings.backends(&config);
    let client = ClientBuilder::try_from(config).context("create a client of the cluster")?;
    let client = client.with_layer(&RequestCounter::new(metrics.api_requests.clone())).build();
    let identity = settings.identity();
    tracing::info!(identity, namespace = own, ?scope, "starting");

    let candidate = Candidate::new(
        Api::namespaced(client.clone(), &own),
        &settings.cluster.lease_name,
        identity.clone(),
        settings.lease_duration(),
        pulse.clone(),
        // A process that waits for the Lease is ready; otherwise a rollout of the operator would never end.
        dependencies.register("Lease", Need::Always),
    );
    tokio::select! {
        () = candidate.acquire() => {}
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!(identity, "leading");
    metrics.leader.set(1);

    let work = async {
        let queue = Queue::new(metrics.workqueue_depth.clone());
        let key = key::read_or_create(&client, &own, &settings.cluster.lease_name).await?;
        let stores = watch::start(&client, &scope, &queue, dependencies, watching);
        control(settings, client.clone(), backends, stores, queue, identity, key, metrics.clone(), stop.clone()).await;
        anyhow::Ok(())
    };
    let result = tokio::select! {
        lost = candidate.renew() => Err(lost),
        result = work => result,
    };
    metrics.leader.set(0);
    if result.is_ok() {
        candidate.release().await;
    }
    result
}

#[expect(clippy::too_many_arguments, reason = "called once, to assemble the parts")]
async fn control(
    settings: &Run,
    client: Client,
    backends: Backends,
    stores: Stores,
    queue: Queue,
    identity: String,
    key: Key,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let context = Context {
        client,
        s3: s3::http(),
        stores,
        states: ResourceStates::default(),
        metrics,
        images: settings.images(),
        own_buckets: OwnBuckets::new(settings.bucket_pattern.clone()),
        backends,
        key,
        identity: identity.into(),
        probe_interval: settings.probe_interval(),
        cleanup_deadline: settings.cleanup_deadline(),
    };
    controller::run(Arc::new(context), queue, settings.concurrency, stop).await;
}
