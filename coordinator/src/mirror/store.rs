//! An object store and a prefix: each request with a deadline, and each failure as one of the few kinds that make a
//! difference here. Retries a request that fails at once; the caller handles a store that stays unreachable.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::report::LINE_BYTES_MAX;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig,
};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use url::Url;

use super::RunFile;
use crate::location::{Location, StoreKind};

/// Bytes of a part: what is larger goes in several, each with a request and a deadline of its own. 5 MiB is the least that
/// S3 takes, so that a slow connection needs no more than 70 KiB/s to keep the deadline; S3's 10,000 parts are 50 GiB.
pub(super) const PART_BYTES: usize = 5 << 20;
/// How long a connection may take.
const CONNECT_DEADLINE: &str = "5 seconds";
/// How long an attempt at a request may take, as the client's option and with all of its retries.
const ATTEMPT_DEADLINE: &str = "75 seconds";
const REQUEST_DEADLINE: Duration = Duration::from_secs(90);
/// Within which a request that has failed is tried again, at once.
const RETRY_DEADLINE: Duration = Duration::from_secs(5);
/// Names looked at below the prefix. A run has a file an epoch, and few others.
const OBJECTS_MAX: usize = 100_000;
/// Characters of a store's answer that are repeated.
const REASON_CHARS_MAX: usize = 400;

/// A mirror's place in an object store.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
}

/// Why a request has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// There is no such bucket or container.
    #[error("{0}")]
    NoBucket(String),
    /// The store knows who asks, or should, and refuses; or there are no credentials.
    #[error("{0}")]
    Denied(String),
    /// What the environment says of the store makes no sense.
    #[error("{0}")]
    Settings(String),
    /// No answer, or one that may be another one later.
    #[error("{0}")]
    Unreachable(String),
    /// The object is larger than it may be.
    #[error("{0}")]
    TooLarge(String),
    /// A file of this machine cannot be read or written.
    #[error("{0}")]
    File(String),
}

impl Store {
    /// Opens a store; asks it nothing yet.
    ///
    /// # Errors
    /// If its settings in the environment make no sense.
    pub fn open(location: &Location) -> Result<Self, StoreError> {
        check_environment(std::env::vars_os())?;
        // Fails if a provider is installed already, which is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: Duration::from_millis(100), ..BackoffConfig::default() },
            max_retries: 3,
            retry_timeout: RETRY_DEADLINE,
        };
        let deadlines =
            [(ClientConfigKey::ConnectTimeout, CONNECT_DEADLINE), (ClientConfigKey::Timeout, ATTEMPT_DEADLINE)];
        let url = location.url();
        let objects: object_store::Result<Arc<dyn ObjectStore>> = match location.kind() {
            StoreKind::S3 => {
                let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retry);
                let builder = deadlines
                    .into_iter()
                    .fold(builder, |builder, (key, value)| builder.with_config(AmazonS3ConfigKey::Client(key), value));
                builder.build().map(|store| Arc::new(store) as _)
            }
            StoreKind::Gcs => {
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry);
                let builder = deadlines
                    .into_iter()
                    .fold(builder, |builder, (key, value)| builder.with_config(GoogleConfigKey::Client(key), value));
                builder.build().map(|store| Arc::new(store) as _)
            }
            StoreKind::Azure => {
                let builder = MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry);
                let builder = deadlines
                    .into_iter()
                    .fold(builder, |builder, (key, value)| builder.with_config(AzureConfigKey::Client(key), value));
                builder.build().map(|store| Arc::new(store) as _)
            }
            StoreKind::Folder => Ok(Arc::new(LocalFileSystem::new().with_fsync(true)) as _),
        };
        let objects = objects.map_err(|error| StoreError::Settings(reason(&error)))?;
        Ok(Self { objects, prefix: location.prefix().clone() })
    }

    /// The run's files below the prefix, with their sizes. Others are passed over.
    ///
    /// # Errors
    /// If the store does not list them.
    pub async fn list(&self) -> Result<BTreeMap<RunFile, u64>, StoreError> {
        let mut listed = self.objects.list(Some(&self.prefix));
        let mut files = BTreeMap::new();
        let mut n_objects = 0;
        while let Some(meta) = within(REQUEST_DEADLINE, async { listed.next().await.transpose() }).await? {
            let path: Option<String> = meta
                .location
                .prefix_match(&self.prefix)
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
            if let Some(file) = path.as_deref().and_then(RunFile::parse) {
                files.insert(file, meta.size);
            }
            n_objects += 1;
            if n_objects > OBJECTS_MAX {
                return Err(StoreError::TooLarge(format!("more than {OBJECTS_MAX} objects")));
            }
        }
        Ok(files)
    }

    /// A small object.
    ///
    /// # Errors
    /// If it is not there or too large.
    pub async fn read(&self, file: RunFile, n_bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path(file);
        let read = async {
            let found = self.objects.get(&path).await?;
            read_bounded(found, n_bytes_max).await
        };
        let bytes = within(REQUEST_DEADLINE, read).await?;
        let n_bytes = bytes.len() as u64;
        if n_bytes > n_bytes_max { Err(too_large(file, n_bytes, n_bytes_max)) } else { Ok(bytes) }
    }

    /// Makes sure that objects can be written and removed here.
    ///
    /// # Errors
    /// If they cannot.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let path = self.prefix.clone().join(".telar-probe");
        within(REQUEST_DEADLINE, self.objects.put(&path, PutPayload::from_static(b"telar"))).await?;
        within(REQUEST_DEADLINE, self.objects.delete(&path)).await
    }

    /// Uploads an open file as it is at the moment, up to its last whole line if lines are added to it. `progress` is called
    /// with the number of each part that has arrived, counted from 1. The object is whole or not there, or as it was before.
    ///
    /// # Errors
    /// If the file cannot be read, or the object not be written.
    pub async fn upload(
        &self,
        file: RunFile,
        mut content: File,
        mut progress: impl FnMut(u64),
    ) -> Result<(), StoreError> {
        let at = |error: std::io::Error| StoreError::File(format!("{}: {error}", file.path()));
        let n_bytes = if file.has_lines() { whole_lines(&mut content) } else { content.metadata().map(|m| m.len()) };
        let n_bytes = n_bytes.map_err(at)?;
        content.rewind().map_err(at)?;
        let n_parts = n_bytes.div_ceil(PART_BYTES as u64);
        let mut n_left = n_bytes;
        let mut next_part = || {
            let mut part = vec![0; usize::try_from(n_left).unwrap_or(usize::MAX).min(PART_BYTES)];
            content.read_exact(&mut part).map_err(at)?;
            n_left -= part.len() as u64;
            Ok::<_, StoreError>(PutPayload::from(part))
        };
        let path = self.path(file);
        if n_parts <= 1 {
            within(REQUEST_DEADLINE, self.objects.put(&path, next_part()?)).await?;
            return Ok(());
        }
        let mut object = within(REQUEST_DEADLINE, self.objects.put_multipart(&path)).await?;
        let uploaded = async {
            for part in 1..=n_parts {
                within(REQUEST_DEADLINE, object.put_part(next_part()?)).await?;
                progress(part);
            }
            within(REQUEST_DEADLINE, object.complete()).await
        };
        if let Err(error) = uploaded.await {
            // What is left of the parts costs money until the bucket's own rules remove it.
            let _ = within(RETRY_DEADLINE, object.abort()).await;
            return Err(error);
        }
        Ok(())
    }

    /// Downloads an object of at most so many bytes in parts, and brings the file to the disk.
    ///
    /// # Errors
    /// If it is not there, too large, changes meanwhile, or cannot be written.
    pub async fn download(&self, file: RunFile, to: &Path, n_bytes_max: u64) -> Result<(), StoreError> {
        let path = self.path(file);
        let at = |error: std::io::Error| StoreError::File(format!("{}: {error}", to.display()));
        let meta = within(REQUEST_DEADLINE, self.objects.head(&path)).await?;
        if meta.size > n_bytes_max {
            return Err(too_large(file, meta.size, n_bytes_max));
        }
        let mut content = File::create(to).map_err(at)?;
        let mut n_read = 0;
        while n_read < meta.size {
            let range = n_read..meta.size.min(n_read + PART_BYTES as u64);
            let expected = range.end - range.start;
            // The same object as before, or an error: parts of two never end up in one file.
            let options = GetOptions {
                range: Some(GetRange::Bounded(range)),
                if_match: meta.e_tag.clone(),
                ..GetOptions::default()
            };
            let part = async { read_bounded(self.objects.get_opts(&path, options).await?, expected).await };
            let part = within(REQUEST_DEADLINE, part).await?;
            if part.len() as u64 != expected {
                let found = part.len();
                return Err(StoreError::Unreachable(format!(
                    "{found} bytes of {path} where {expected} were asked for"
                )));
            }
            content.write_all(&part).map_err(at)?;
            n_read += expected;
        }
        content.sync_all().map_err(at)
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub async fn remove(&self, file: RunFile) -> Result<(), StoreError> {
        match within(REQUEST_DEADLINE, self.objects.delete(&self.path(file))).await {
            Err(StoreError::NotFound(_)) => Ok(()),
            removed => removed,
        }
    }

    fn path(&self, file: RunFile) -> ObjectPath {
        file.path().split('/').fold(self.prefix.clone(), ObjectPath::join)
    }
}

/// Checks what the clients take from the environment and would end the program for.
fn check_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<(), StoreError> {
    let settings = |name: &str, what: &str| Err(StoreError::Settings(format!("{name} {what}")));
    for (name, value) in variables {
        let name = name.to_string_lossy();
        if !["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let Some(value) = value.to_str().filter(|value| !value.contains(char::is_control)) else {
            return settings(&name, "holds a line break or another control character");
        };
        let is_endpoint = name.contains("ENDPOINT");
        let is_host = || value.parse::<Url>().is_ok_and(|url| url.scheme().starts_with("http") && url.has_host());
        if is_endpoint && !is_host() {
            return settings(&name, "is no URL such as https://storage.example:9000; leave it out, or name one");
        }
    }
    Ok(())
}

/// The content of an object, but not much more than so many bytes of it, whatever length the store says that it has.
async fn read_bounded(found: GetResult, n_bytes_max: u64) -> object_store::Result<Vec<u8>> {
    let mut pieces = found.into_stream();
    let mut bytes = Vec::new();
    // Ends with the content, or soon after the bound.
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > n_bytes_max {
            break;
        }
    }
    Ok(bytes)
}

/// Bytes up to the end of the last whole line. A reader of the file would drop a line that is cut.
fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let n_bytes = file.metadata()?.len();
    let begin = n_bytes.saturating_sub(LINE_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut end = Vec::new();
    file.take(n_bytes - begin).read_to_end(&mut end)?;
    Ok(end.iter().rposition(|&byte| byte == b'\n').map_or(begin, |place| begin + place as u64 + 1))
}

async fn within<T>(
    deadline: Duration,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    match timeout(deadline, request).await {
        Ok(answer) => answer.map_err(|error| kind_of(&error)),
        Err(_) => Err(StoreError::Unreachable(format!("no answer within {} seconds", deadline.as_secs()))),
    }
}

fn too_large(file: RunFile, n_bytes: u64, n_bytes_max: u64) -> StoreError {
    StoreError::TooLarge(format!("{} has {n_bytes} bytes, and at most {n_bytes_max} are expected", file.path()))
}

fn kind_of(error: &object_store::Error) -> StoreError {
    let reason = reason(error);
    let says = |parts: &[&str]| parts.iter().any(|part| reason.contains(part));
    // A store answers 404 for an object that is not there as for a bucket; only the text tells.
    if says(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
        return StoreError::NoBucket(reason);
    }
    match error {
        object_store::Error::NotFound { .. } => StoreError::NotFound(reason),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StoreError::Denied(reason)
        }
        // Where the environment has no credentials, those of a virtual machine in the cloud are asked for.
        _ if says(&["169.254.169.254", "metadata.google.internal", "Permission denied"]) => StoreError::Denied(reason),
        _ if says(&["URL scheme is not allowed"]) => StoreError::Settings(reason),
        // It would fail again: the names below the prefix are read together.
        object_store::Error::InvalidPath { .. } => {
            StoreError::Settings(format!("an object there has a name that cannot be read: {reason}"))
        }
        _ => StoreError::Unreachable(reason),
    }
}

/// What an error says, with its causes where they say more, in one line.
fn reason(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(found) = cause {
        let words = found.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = found.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store in a folder, and a run folder.
    fn folders() -> (tempfile::TempDir, Store, std::path::PathBuf, std::path::PathBuf) {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (mirror, run) = (root.path().join("mirror"), root.path().join("run"));
        std::fs::create_dir(&run).expect("a folder");
        let location = Location::parse("--mirror", &format!("file://{}", mirror.display())).expect("a URL");
        (root, Store::open(&location).expect("a folder needs no settings"), run, mirror)
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn multipart_upload_round_trips() {
        let (_root, store, run, mirror) = folders();
        let content: Vec<u8> = (0..=250).cycle().take(2 * PART_BYTES + 77).collect();
        std::fs::write(run.join("model.safetensors"), &content).expect("a file");
        let mut parts = Vec::new();
        let content_of = File::open(run.join("model.safetensors")).expect("a file");
        wait(store.upload(RunFile::Weights, content_of, |part| parts.push(part))).expect("it can be written");
        assert_eq!(parts, [1, 2, 3]);
        assert!(std::fs::read(mirror.join("model.safetensors")).expect("an object") == content);
        let back = run.join("back");
        wait(store.download(RunFile::Weights, &back, u64::MAX)).expect("it is there");
        assert!(std::fs::read(&back).expect("a file") == content);
        let error = wait(store.download(RunFile::Weights, &back, 1_000)).expect_err("it is larger");
        assert!(error.to_string().contains("at most 1000 are expected"), "{error}");
    }

    #[test]
    fn line_file_upload_drops_torn_last_line() {
        let (_root, store, run, mirror) = folders();
        let check = |content: &[u8], expected: &[u8]| {
            std::fs::write(run.join("steps.jsonl"), content).expect("a file");
            let lines = File::open(run.join("steps.jsonl")).expect("a file");
            wait(store.upload(RunFile::Steps, lines, |_| {})).expect("it can be written");
            assert!(std::fs::read(mirror.join("steps.jsonl")).expect("an object") == expected);
        };
        check(b"", b"");
        check(b"{\"step\":1}\n", b"{\"step\":1}\n");
        check(b"{\"step\":1}\n{\"st", b"{\"step\":1}\n");
        check(b"{\"st", b"");
        let long = [b"{}\n".repeat(1 << 20), b"{\"st".to_vec()].concat();
        check(&long, &long[..3 << 20]);
    }

    #[test]
    fn missing_object_is_named_in_error() {
        let (_root, store, _run, _mirror) = folders();
        assert_eq!(wait(store.list()), Ok(BTreeMap::new()));
        assert_eq!(wait(store.remove(RunFile::checkpoint(1))), Ok(()));
        let error = wait(store.read(RunFile::Description, 1)).expect_err("it is not there");
        assert!(matches!(&error, StoreError::NotFound(reason) if reason.contains("run.json")), "{error:?}");
    }

    #[test]
    fn invalid_environment_variable_is_named_in_error() {
        let check = |name: &str, value: &str| check_environment([(name.into(), value.into())].into_iter());
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "AKIA\n"),
            ("AWS_REGION", "eu-central-1\r"),
            ("AWS_ENDPOINT_URL", ""),
            ("AWS_ENDPOINT_URL", "garbage"),
            ("AWS_ENDPOINT_URL", "http://"),
            ("AWS_ENDPOINT_URL", "http://[::1"),
        ] {
            let error = check(name, value).expect_err(value);
            assert!(matches!(&error, StoreError::Settings(reason) if reason.starts_with(name)), "{error:?}");
            assert!(!error.to_string().contains("AKIA"), "{error}");
        }
        assert_eq!(check("AWS_ENDPOINT_URL", "http://127.0.0.1:5000"), Ok(()));
        assert_eq!(check("AWS_SECRET_ACCESS_KEY", "a/b+c="), Ok(()));
        assert_eq!(check("LINES", "a\nb"), Ok(()));
    }

    #[test]
    fn listing_contains_only_run_files() {
        let (_root, store, run, mirror) = folders();
        wait(store.probe()).expect("it can be written");
        std::fs::create_dir_all(mirror.join("checkpoints")).expect("a folder");
        for name in ["notes.txt", "checkpoints/notes.txt", "checkpoints/step-00000003.safetensors"] {
            std::fs::write(mirror.join(name), b"12345").expect("a file");
        }
        std::fs::write(run.join("run.json"), b"{}").expect("a file");
        let description = File::open(run.join("run.json")).expect("a file");
        wait(store.upload(RunFile::Description, description, |_| {})).expect("it can be written");
        let expected = BTreeMap::from([(RunFile::Description, 2), (RunFile::checkpoint(3), 5)]);
        assert_eq!(wait(store.list()), Ok(expected));
    }
}
