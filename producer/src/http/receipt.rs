//! `GET /api/orders/{id}/receipt`: the stored object, unchanged.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use orderflow_service::s3;
use tokio::time::timeout;

use super::{
    app::Shared,
    orders,
    parameter::IdOfPath,
    problem::{Problem, declare_responses},
    view::{MISSING, PENDING},
};

/// Largest object that is served as a receipt, in bytes; ours have a few hundred.
const LIMIT: usize = 64 * 1024;

/// Longest wait for the text of an object after its head, for which the S3 client has a deadline of its own.
const TEXT_TIMEOUT: Duration = Duration::from_secs(5);

declare_responses!(GetReceiptProblems: NOT_FOUND, RECEIPT_ABSENT, SHARD_UNAVAILABLE, S3_UNAVAILABLE);

/// Get the receipt of an order
#[utoipa::path(
    get, path = "/api/orders/{id}/receipt", tag = "orders",
    params(("id" = uuid::Uuid, Path, description = "The order's UUID")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "The receipt"),
        GetReceiptProblems,
    )
)]
pub async fn get_receipt(State(app): State<Shared>, IdOfPath(id): IdOfPath) -> Result<Response, Problem> {
    let (stored, _) = orders::find(&app, id).await?;
    let object = app.s3.get_object().bucket(&*app.bucket).key(&stored.order.receipt_s3_key).send().await;
    let object = match object {
        Ok(object) => object,
        Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
            return Err(Problem::receipt_absent(if stored.receipt_pending { PENDING } else { MISSING }));
        }
        Err(error) => return Err(Problem::s3_unavailable(&s3::explain(&error))),
    };
    let text = timeout(TEXT_TIMEOUT, read(object.body));
    Ok(plain_text(
        text.await.unwrap_or_else(|_| Err(Problem::s3_unavailable("the object was not read to its end in time")))?,
    ))
}

async fn read(mut body: ByteStream) -> Result<Bytes, Problem> {
    let mut text = Vec::new();
    while let Some(chunk) = body.next().await {
        text.extend_from_slice(&chunk.map_err(|_| Problem::s3_unavailable("the object ended early"))?);
        if text.len() > LIMIT {
            return Err(Problem::s3_unavailable("the object at the receipt's key is too large"));
        }
    }
    Ok(text.into())
}

fn plain_text(text: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], text).into_response()
}
