//! What S3 is asked about the bucket, and what its answers mean, on AWS and on servers that know only part of its API.

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

/// Of a part of the API that not every server has.
pub(super) enum Answer<T> {
    Known(T),
    /// The server does not know what it was asked about.
    Unknown,
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
            Err(error) => Err(self.cannot_look(&error)),
        }
    }

    /// A HEAD's answer has no body, so only its status and headers tell what is wrong.
    fn cannot_look(&self, error: &SdkError<HeadBucketError>) -> Error {
        let Some(response) = error.raw_response() else { return Error::of("look at the bucket", error) };
        let expected = self.client.config().region().map(ToString::to_string).unwrap_or_default();
        let found = response.headers().get("x-amz-bucket-region").map(ToOwned::to_owned);
        match response.status().as_u16() {
            403 => Error::OwnedByAnother { owner: None },
            301 | 307 => Error::OtherRegion { found, expected },
            400 if found.as_ref().is_some_and(|found| *found != expected) => Error::OtherRegion { found, expected },
            400 => Error::Refused {
                what: "look at the bucket",
                reason: format!("HTTP 400 and no reason; is it in region {expected}?"),
            },
            _ => Error::of("look at the bucket", error),
        }
    }

    pub(super) async fn create(&self, region: &str) -> Result<Created, Error> {
        // AWS takes any region but this one, which is what no constraint means.
        let place = (region != "us-east-1").then(|| {
            CreateBucketConfiguration::builder().location_constraint(BucketLocationConstraint::from(region)).build()
        });
        let request = self.client.create_bucket().bucket(self.name).set_create_bucket_configuration(place);
        match request.send().await {
            Ok(_) => Ok(Created::ByUs),
            Err(error) => match error.code() {
                Some("BucketAlreadyOwnedByYou") => Ok(Created::Before),
                Some("BucketAlreadyExists") => Ok(Created::ByAnother),
                _ => Err(Error::of("create the bucket", &error)),
            },
        }
    }

    /// False: objects are in it.
    pub(super) async fn delete(&self) -> Result<bool, Error> {
        match self.client.delete_bucket().bucket(self.name).send().await {
            Ok(_) => Ok(true),
            Err(error) => match error.code() {
                Some("BucketNotEmpty") => Ok(false),
                // By another run, in between.
                Some("NoSuchBucket") => Ok(true),
                _ => Err(Error::of("delete the bucket", &error)),
            },
        }
    }

    pub(super) async fn tags(&self) -> Result<Answer<Tags>, Error> {
        match self.client.get_bucket_tagging().bucket(self.name).send().await {
            Ok(tags) => Ok(Answer::Known(Tags(tags.tag_set))),
            Err(error) if error.code() == Some("NoSuchTagSet") => Ok(Answer::Known(Tags(Vec::new()))),
            Err(error) => unknown_or("read the bucket's tags", &error),
        }
    }

    pub(super) async fn put_tags(&self, tags: Tags) -> Result<Answer<()>, Error> {
        if tags.0.is_empty() {
            return match self.client.delete_bucket_tagging().bucket(self.name).send().await {
                Ok(_) => Ok(Answer::Known(())),
                Err(error) => unknown_or("untag the bucket", &error),
            };
        }
        let tagging = Tagging::builder().set_tag_set(Some(tags.0)).build().expect("a set of tags is set");
        match self.client.put_bucket_tagging().bucket(self.name).tagging(tagging).send().await {
            Ok(_) => Ok(Answer::Known(())),
            Err(error) => unknown_or("tag the bucket", &error),
        }
    }

    pub(super) async fn privacy(&self) -> Result<Answer<Privacy>, Error> {
        match self.client.get_public_access_block().bucket(self.name).send().await {
            Ok(answer) if answer.public_access_block_configuration == Some(block_everything()) => {
                Ok(Answer::Known(Privacy::Private))
            }
            Ok(_) => Ok(Answer::Known(Privacy::MaybePublic)),
            Err(error) if error.code() == Some("NoSuchPublicAccessBlockConfiguration") => {
                Ok(Answer::Known(Privacy::MaybePublic))
            }
            Err(error) => unknown_or("read the bucket's public access block", &error),
        }
    }

    pub(super) async fn block_public_access(&self) -> Result<Answer<()>, Error> {
        let request = self.client.put_public_access_block().bucket(self.name);
        match request.public_access_block_configuration(block_everything()).send().await {
            Ok(_) => Ok(Answer::Known(())),
            Err(error) => unknown_or("block public access to the bucket", &error),
        }
    }
}

impl Tags {
    pub(super) fn owner(&self) -> Option<&str> {
        self.0.iter().find(|tag| tag.key == OWNER_TAG).map(|tag| tag.value.as_str())
    }

    /// Whether an OrderFlow created the bucket.
    pub(super) fn created(&self) -> bool {
        self.0.iter().any(|tag| tag.key == CREATED_TAG)
    }

    /// A put replaces all tags, so those of others go along.
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

pub(super) fn unknown_or<T, E>(what: &'static str, error: &SdkError<E>) -> Result<Answer<T>, Error>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    match (status, error.code()) {
        // The last one: the server took the request for the making of a bucket.
        (Some(405 | 501), _) | (_, Some("NotImplemented" | "MethodNotAllowed" | "BucketAlreadyOwnedByYou")) => {
            Ok(Answer::Unknown)
        }
        _ => Err(Error::of(what, error)),
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
