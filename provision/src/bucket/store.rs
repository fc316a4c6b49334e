//! Requests about the bucket, and the meaning of the answers on AWS and on servers with a part of its API.

use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::head_bucket::HeadBucketError,
    types::{BucketLocationConstraint, CreateBucketConfiguration, PublicAccessBlockConfiguration, Tag, Tagging},
};

use super::{CREATED_TAG, Error, OWNER_TAG};

pub(super) struct Store<'a> {
    pub client: &'a Client,
    pub name: &'a str,
}

/// The answer of a part of the API that not every server supports.
pub(super) enum Support<T> {
    Supported(T),
    /// The server does not support the request.
    Unsupported,
}

pub(super) enum Created {
    ByUs,
    Before,
    ByAnother,
}

pub(super) enum Privacy {
    Private,
    MaybePublic,
}

pub(super) struct Tags(Vec<Tag>);

impl Store<'_> {
    pub(super) async fn exists(&self) -> Result<bool, Error> {
        match self.client.head_bucket().bucket(self.name).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(HeadBucketError::is_not_found) => Ok(false),
            Err(error) => Err(self.head_error(&error)),
        }
    }

    /// Converts the error of a HEAD request. Its answer has no body, so only status and headers explain it.
    fn head_error(&self, error: &SdkError<HeadBucketError>) -> Error {
        let Some(response) = error.raw_response() else { return Error::from_sdk("read the bucket", error) };
        let expected = self.client.config().region().map(ToString::to_string).unwrap_or_default();
        let found = response.headers().get("x-amz-bucket-region").map(ToOwned::to_owned);
        match response.status().as_u16() {
            403 => Error::OwnedByAnother { owner: None },
            301 | 307 => Error::OtherRegion { found, expected },
            400 if found.as_ref().is_some_and(|found| *found != expected) => Error::OtherRegion { found, expected },
            400 => Error::Refused {
                what: "read the bucket",
                reason: format!("HTTP 400 without a reason; is it in region {expected}?"),
            },
            _ => Error::from_sdk("read the bucket", error),
        }
    }

    pub(super) async fn create(&self, region: &str) -> Result<Created, Error> {
        // AWS accepts any region except this one, which is the default.
        let place = (region != "us-east-1").then(|| {
            CreateBucketConfiguration::builder().location_constraint(BucketLocationConstraint::from(region)).build()
        });
        let request = self.client.create_bucket().bucket(self.name).set_create_bucket_configuration(place);
        match request.send().await {
            Ok(_) => Ok(Created::ByUs),
            Err(error) => match error.code() {
                Some("BucketAlreadyOwnedByYou") => Ok(Created::Before),
                Some("BucketAlreadyExists") => Ok(Created::ByAnother),
                _ => Err(Error::from_sdk("create the bucket", &error)),
            },
        }
    }

    /// Deletes the bucket. Returns false if it holds objects.
    pub(super) async fn delete(&self) -> Result<bool, Error> {
        match self.client.delete_bucket().bucket(self.name).send().await {
            Ok(_) => Ok(true),
            Err(error) => match error.code() {
                Some("BucketNotEmpty") => Ok(false),
                // Another run deleted it in between.
                Some("NoSuchBucket") => Ok(true),
                _ => Err(Error::from_sdk("delete the bucket", &error)),
            },
        }
    }

    pub(super) async fn tags(&self) -> Result<Support<Tags>, Error> {
        match self.client.get_bucket_tagging().bucket(self.name).send().await {
            Ok(tags) => Ok(Support::Supported(Tags(tags.tag_set))),
            Err(error) if error.code() == Some("NoSuchTagSet") => Ok(Support::Supported(Tags(Vec::new()))),
            Err(error) => unsupported_or("read the bucket's tags", &error),
        }
    }

    pub(super) async fn put_tags(&self, tags: Tags) -> Result<Support<()>, Error> {
        if tags.0.is_empty() {
            return match self.client.delete_bucket_tagging().bucket(self.name).send().await {
                Ok(_) => Ok(Support::Supported(())),
                Err(error) => unsupported_or("untag the bucket", &error),
            };
        }
        let tagging = Tagging::builder().set_tag_set(Some(tags.0)).build().expect("a set of tags is set");
        match self.client.put_bucket_tagging().bucket(self.name).tagging(tagging).send().await {
            Ok(_) => Ok(Support::Supported(())),
            Err(error) => unsupported_or("tag the bucket", &error),
        }
    }

    pub(super) async fn privacy(&self) -> Result<Support<Privacy>, Error> {
        match self.client.get_public_access_block().bucket(self.name).send().await {
            Ok(answer) if answer.public_access_block_configuration == Some(block_everything()) => {
                Ok(Support::Supported(Privacy::Private))
            }
            Ok(_) => Ok(Support::Supported(Privacy::MaybePublic)),
            Err(error) if error.code() == Some("NoSuchPublicAccessBlockConfiguration") => {
                Ok(Support::Supported(Privacy::MaybePublic))
            }
            Err(error) => unsupported_or("read the bucket's public access block", &error),
        }
    }

    pub(super) async fn block_public_access(&self) -> Result<Support<()>, Error> {
        let request = self.client.put_public_access_block().bucket(self.name);
        match request.public_access_block_configuration(block_everything()).send().await {
            Ok(_) => Ok(Support::Supported(())),
            Err(error) => unsupported_or("block public access to the bucket", &error),
        }
    }
}

impl Tags {
    pub(super) fn owner(&self) -> Option<&str> {
        self.0.iter().find(|tag| tag.key == OWNER_TAG).map(|tag| tag.value.as_str())
    }

    /// Returns true if an OrderFlow created the bucket.
    pub(super) fn created(&self) -> bool {
        self.0.iter().any(|tag| tag.key == CREATED_TAG)
    }

    /// Adds the owner to the tags. A put replaces all tags, so foreign ones are kept.
    pub(super) fn with_owner(self, owner: &str) -> Self {
        self.with(OWNER_TAG, owner)
    }

    pub(super) fn with_created(self) -> Self {
        self.with(CREATED_TAG, "true")
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.0.retain(|tag| tag.key != key);
        self.0.push(Tag::builder().key(key).value(value).build().expect("key and value are set"));
        self
    }

    pub(super) fn without_owner(mut self) -> Self {
        self.0.retain(|tag| ![OWNER_TAG, CREATED_TAG].contains(&tag.key.as_str()));
        self
    }
}

fn block_everything() -> PublicAccessBlockConfiguration {
    PublicAccessBlockConfiguration::builder()
        .block_public_acls(true)
        .ignore_public_acls(true)
        .block_public_policy(true)
        .restrict_public_buckets(true)
        .build()
}

pub(super) fn unsupported_or<T, E>(what: &'static str, error: &SdkError<E>) -> Result<Support<T>, Error>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    match (status, error.code()) {
        // The last code: the server took the request for the creation of a bucket.
        (Some(405 | 501), _) | (_, Some("NotImplemented" | "MethodNotAllowed" | "BucketAlreadyOwnedByYou")) => {
            Ok(Support::Unsupported)
        }
        _ => Err(Error::from_sdk(what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag::builder().key(key).value(value).build().unwrap()
    }

    #[test]
    fn claiming_and_releasing_keep_the_tags_of_others() {
        let tags = Tags(vec![tag(OWNER_TAG, "shop/old"), tag("cost-center", "7")]).with_owner("shop/main");
        assert_eq!(tags.owner(), Some("shop/main"));
        assert_eq!(tags.0, [tag("cost-center", "7"), tag(OWNER_TAG, "shop/main")]);
        assert!(!tags.created());
        let tags = tags.with_created();
        assert!(tags.created());
        assert_eq!(tags.without_owner().0, [tag("cost-center", "7")]);
    }
}
