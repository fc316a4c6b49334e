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
        let answered = self.service.call(request);
        async move {
            let mut count = Count { method, status: None, requests };
            let answer = answered.await;
            count.status = answer.as_ref().ok().map(|response| response.status().as_u16());
            drop(count);
            answer
        }
        .boxed()
    }
}

/// Counts a request when it ends, even if its caller no longer waits for the answer.
struct Count {
    method: String,
    status: Option<u16>,
    requests: Requests,
}

impl Drop for Count {
    fn drop(&mut self) {
        let status = self.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.requests.get_or_create(&[("method", self.method.clone()), ("status", status)]).inc();
    }
}
