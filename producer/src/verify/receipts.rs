//! Checks the receipts of a slice in S3. Only the objects' sizes are read.

use std::collections::{BTreeMap, HashMap};

use anyhow::anyhow;
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::list_objects_v2::{ListObjectsV2Output, builders::ListObjectsV2FluentBuilder},
};
use futures_util::{StreamExt, stream};
use orderflow_core::OrderId;
use orderflow_service::{Backoff, s3};
use tokio::time::Duration;

use super::{finding::Receipt, progress::Progress, slice::Slice};

/// Requests in flight.
const IN_FLIGHT: usize = 32;

/// Tries of one request. Nothing is guessed from a failure: an S3 that is down must not seem to have lost everything.
const TRIES: u32 = 5;

pub struct Bucket {
    client: Client,
    name: String,
}

/// The receipts of one user: key and order.
type OfUser<'slice> = BTreeMap<&'slice str, OrderId>;

impl Bucket {
    pub async fn open(settings: &s3::Settings) -> anyhow::Result<Self> {
        let bucket = Self { client: s3::client(settings, s3::http()).await, name: settings.s3_bucket.clone() };
        let head = bucket.send(async || bucket.client.head_bucket().bucket(&bucket.name).send().await).await?;
        head.ok_or_else(|| bucket.missing())?;
        Ok(bucket)
    }

    /// Notes the state of each order's receipt. A receipt with a job in the shards' snapshots stays `Pending`; any
    /// other was stored before.
    pub async fn check(&self, slice: &mut Slice, progress: &Progress) -> anyhow::Result<()> {
        for (id, size) in self.sizes(slice, progress).await? {
            if let Some(order) = slice.orders.get_mut(&id) {
                let is_expected = usize::try_from(size) == Ok(order.receipt_length);
                order.receipt = Some(if is_expected { Receipt::Stored } else { Receipt::Different });
            }
        }
        for order in slice.orders.values_mut() {
            order.receipt.get_or_insert(Receipt::Missing);
        }
        Ok(())
    }

    /// Returns the sizes, in bytes, of the receipts that exist.
    async fn sizes(&self, slice: &Slice, progress: &Progress) -> anyhow::Result<Vec<(OrderId, i64)>> {
        // One request detects a bucket that has lost everything.
        if self.list(|list| list.prefix("receipts/").max_keys(1)).await?.contents().is_empty() {
            return Ok(Vec::new());
        }
        let mut users: HashMap<&str, OfUser<'_>> = HashMap::new();
        for (id, order) in slice.orders.iter().filter(|(_, order)| order.receipt.is_none()) {
            let (folder, _) = order.receipt_key.rsplit_once('/').unwrap_or_default();
            users.entry(folder).or_default().insert(&order.receipt_key, *id);
        }
        let total = users.len();
        let answers = stream::iter(users).map(async |(folder, of_user)| self.sizes_of_user(folder, &of_user).await);
        let mut answers = std::pin::pin!(answers.buffer_unordered(IN_FLIGHT).enumerate());
        let mut sizes = Vec::new();
        while let Some((number, answer)) = answers.next().await {
            sizes.extend(answer?);
            progress.print(|| format!("receipts of {number} of {total} users"));
        }
        Ok(sizes)
    }

    async fn sizes_of_user(&self, folder: &str, of_user: &OfUser<'_>) -> anyhow::Result<Vec<(OrderId, i64)>> {
        let (Some((lowest, id)), Some((highest, _))) = (of_user.first_key_value(), of_user.last_key_value()) else {
            return Ok(Vec::new());
        };
        if of_user.len() == 1 {
            let head =
                self.send(async || self.client.head_object().bucket(&self.name).key(*lowest).send().await).await?;
            return Ok(head.map(|head| (*id, head.content_length().unwrap_or_default())).into_iter().collect());
        }
        // Ids are ordered by time: all receipts between the user's first and last of this slice belong to this slice.
        let mut sizes = Vec::new();
        let mut after = just_before(lowest).to_owned();
        loop {
            let page = self.list(|list| list.prefix(format!("{folder}/")).start_after(&after)).await?;
            let objects =
                page.contents().iter().filter_map(|object| Some((object.key()?, object.size().unwrap_or_default())));
            sizes.extend(objects.clone().filter_map(|(key, size)| Some((*of_user.get(key)?, size))));
            match objects.map(|(key, _)| key).max() {
                Some(last) if page.is_truncated() == Some(true) && last < *highest => last.clone_into(&mut after),
                _ => return Ok(sizes),
            }
        }
    }

    async fn list(
        &self,
        what: impl FnOnce(ListObjectsV2FluentBuilder) -> ListObjectsV2FluentBuilder,
    ) -> anyhow::Result<ListObjectsV2Output> {
        let list = what(self.client.list_objects_v2().bucket(&self.name));
        self.send(async || list.clone().send().await).await?.ok_or_else(|| self.missing())
    }

    fn missing(&self) -> anyhow::Error {
        anyhow!("the bucket {} does not exist: run orderflow-provision", self.name)
    }

    /// Sends a request, with retries. `None`: the object or the bucket does not exist (404).
    async fn send<T, E>(&self, request: impl AsyncFn() -> Result<T, SdkError<E>>) -> anyhow::Result<Option<T>>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));
        let mut tries = 1;
        loop {
            match request().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
                    return Ok(None);
                }
                Err(error) if tries == TRIES => {
                    return Err(anyhow!("S3 gave no answer {TRIES} times: {}", s3::explain(&error)));
                }
                Err(_) => backoff.wait().await,
            }
            tries += 1;
        }
    }
}

/// Returns a text that sorts before a receipt's key, with no other key between the two.
fn just_before(key: &str) -> &str {
    key.strip_suffix(".txt").unwrap_or(&key[..key.len().saturating_sub(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_begins_with_the_lowest_receipt_of_the_slice() {
        let keys = [1_u128, 2, 3].map(|id| format!("receipts/alice/{}.txt", OrderId::from_u128(id)));
        let after = just_before(&keys[1]);
        assert!(keys[0].as_str() < after && after < keys[1].as_str(), "{after}");
    }
}
