//! A repository behind gateways as an object store.
//!
//! Translates the verbs of [`ObjectStore`] to requests of the [`link`](crate::link), and a gateway's
//! statuses to the errors that `failure` reads. Like every other store it neither retries nor
//! overwrites.

use crate::link::LinkError;
use crate::link::client::Link;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions,
};
use std::fmt;
use std::ops::Range;
use tidegate_protocol::wire::Status;

const STORE: &str = "gateway";

/// A repository behind gateways.
pub(super) struct Gateway {
    link: Link,
}

impl Gateway {
    pub(super) const fn new(link: Link) -> Self {
        Self { link }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STORE)
    }
}

#[async_trait]
impl ObjectStore for Gateway {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return Err(not_supported("overwriting an object"));
        }
        let length = payload.content_length() as u64;
        let sent = self.link.put(location.as_ref(), length, payload).await;
        sent.map_err(|error| explain(location, error))?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(not_supported("uploading in parts"))
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let (start, end) = match options.range {
            None => (0, None),
            Some(GetRange::Bounded(range)) => (range.start, Some(range.end)),
            Some(GetRange::Offset(start)) => (start, None),
            Some(GetRange::Suffix(_)) => return Err(not_supported("reading an object's end")),
        };
        let key = location.as_ref();
        if options.head {
            let size = self.link.size(key).await;
            let size = size.map_err(|error| explain(location, error))?;
            return Ok(GetResult {
                payload: GetResultPayload::Stream(futures::stream::empty().boxed()),
                meta: meta(location.clone(), size),
                range: 0..size,
                attributes: Default::default(),
                extensions: Default::default(),
            });
        }
        let got = self.link.get(key, start, end).await;
        let got = got.map_err(|error| explain(location, error))?;
        let path = location.clone();
        let body = got
            .body
            .map(move |part| part.map_err(|error| explain(&path, error)));
        Ok(GetResult {
            payload: GetResultPayload::Stream(body.boxed()),
            meta: meta(location.clone(), got.answer.size),
            range: got.answer.start..got.answer.end,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let options = GetOptions::new().with_range(Some(range.clone()));
            parts.push(self.get_opts(location, options).await?.bytes().await?);
        }
        Ok(parts)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listed(prefix, String::new())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listed(prefix, offset.to_string())
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let link = self.link.clone();
        locations
            .then(move |location| {
                let link = link.clone();
                async move {
                    let location = location?;
                    let deleted = link.delete(location.as_ref()).await;
                    deleted.map_err(|error| explain(&location, error))?;
                    Ok(location)
                }
            })
            .boxed()
    }

    async fn list_with_delimiter(
        &self,
        _prefix: Option<&Path>,
    ) -> object_store::Result<ListResult> {
        Err(not_supported("listing with a delimiter"))
    }

    async fn copy_opts(
        &self,
        _from: &Path,
        _to: &Path,
        _options: CopyOptions,
    ) -> object_store::Result<()> {
        Err(not_supported("copying"))
    }

    async fn rename_opts(
        &self,
        _from: &Path,
        _to: &Path,
        _options: RenameOptions,
    ) -> object_store::Result<()> {
        Err(not_supported("renaming"))
    }
}

impl Gateway {
    fn listed(
        &self,
        prefix: Option<&Path>,
        after: String,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let folder = prefix.map(ToString::to_string).unwrap_or_default();
        let asked = prefix.cloned().unwrap_or_default();
        self.link
            .list(folder, after)
            .map(move |entry| {
                let entry = entry.map_err(|error| explain(&asked, error))?;
                let path = Path::parse(&entry.key).map_err(StoreError::from)?;
                Ok(meta(path, entry.size))
            })
            .boxed()
    }
}

/// The wire tells no times, and nothing here asks for them.
fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta {
        location,
        last_modified: Default::default(),
        size,
        e_tag: None,
        version: None,
    }
}

/// A link's error as a store's.
pub(super) fn explain(path: &Path, error: LinkError) -> StoreError {
    let path = path.to_string();
    let status = match &error {
        LinkError::Answered { status, .. } => Some(*status),
        _ => None,
    };
    match (status, &error) {
        (Some(Status::Exists), _) => StoreError::AlreadyExists {
            path,
            source: error.into(),
        },
        (Some(Status::Missing), _) => StoreError::NotFound {
            path,
            source: error.into(),
        },
        (Some(Status::Denied | Status::Revoked), _) | (_, LinkError::Denied(_)) => {
            StoreError::PermissionDenied {
                path,
                source: error.into(),
            }
        }
        _ => StoreError::Generic {
            store: STORE,
            source: error.into(),
        },
    }
}

fn not_supported(what: &str) -> StoreError {
    StoreError::NotSupported {
        source: format!("a gateway does not offer {what}").into(),
    }
}
