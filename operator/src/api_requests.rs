//! Counts the requests to the API server by method and status.

use std::task::{Context, Poll};

use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use orderflow_service::prometheus::metrics::{counter::Counter, family::Family};
use tower::{Layer, Service};

pub type Requests = Family<[(&'static str, String); 2], Counter>;

/// A layer of the client that counts its requests.
#[derive(Clone)]
pub struct RequestCounter(Requests);

/// A service with that layer.
#[derive(Clone)]
pub struct Counted<S> {
    service: S,
    requests: Requests,
}

impl RequestCounter {
    pub fn new(requests: Requests) -> Self {
        Self(requests)
    }
}

impl<S> Layer<S> for RequestCounter {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { service, requests: self.0.clone() }
    }
}

impl<S, B, C> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<C>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (method, requests) = (request.method().to_string(), self.requests.clone());
        self.service
            .call(request)
            .map(move |answer| {
                let status = match &answer {
                    Ok(response) => response.status().as_u16().to_string(),
                    Err(_) => "none".to_owned(),
                };
                requests.get_or_create(&[("method", method), ("status", status)]).inc();
                answer
            })
            .boxed()
    }
}
