//! The URL of a mirror: a store and a prefix in it. Credentials and endpoints come from the environment, never from here.

use std::fmt;
use std::path::PathBuf;

use object_store::ObjectStoreScheme;
use object_store::path::Path as ObjectPath;
use url::Url;

/// Where a mirror is: `s3://bucket/prefix`, `gs://…`, `az://…`, `abfs://…` or `file:///folder`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    url: Url,
    kind: StoreKind,
    prefix: ObjectPath,
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// Amazon S3, and whatever speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// A folder.
    Folder,
}

impl StoreKind {
    /// The settings in the environment that say who asks.
    pub fn credentials(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
            Self::Gcs => "GOOGLE_APPLICATION_CREDENTIALS",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            Self::Folder => "the folder's permissions",
        }
    }

    /// The settings in the environment that say where the store is, and how it is spoken to.
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ENDPOINT_URL, with AWS_ALLOW_HTTP=true for http, and SSL_CERT_FILE",
            Self::Gcs => "GOOGLE_SERVICE_ACCOUNT and SSL_CERT_FILE",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and SSL_CERT_FILE",
            Self::Folder => "the folder",
        }
    }
}

/// A text that names no mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the URL of an object store as {flag}, found `{found}`{reason}; write for example `{flag} s3://BUCKET/PREFIX`"
)]
pub struct LocationError {
    /// The flag.
    pub flag: &'static str,
    /// What was given, without a password.
    pub found: String,
    /// What is wrong with it, after a comma.
    pub reason: &'static str,
}

impl Location {
    /// Whether a text is meant to be a URL rather than a path.
    pub fn is_url(text: &str) -> bool {
        text.contains("://")
    }

    /// The mirror of a URL that was given with a flag.
    ///
    /// # Errors
    /// If it is no URL of an object store, or holds what belongs in the environment.
    pub fn parse(flag: &'static str, text: &str) -> Result<Self, LocationError> {
        let error = |found: &str, reason| {
            // What stands behind these characters may be a secret, also where it does not parse.
            let is_shown = !found.contains(['@', '?', '#']);
            let found = if is_shown { found } else { found.split_once("://").map_or("…", |(scheme, _)| scheme) };
            let found = if is_shown { found.to_owned() } else { format!("{found}://…") };
            LocationError { flag, found, reason }
        };
        let url: Url = text.parse().map_err(|_| error(text, ""))?;
        // `abfs://container@account…` names a container, not a user.
        let is_container = matches!(url.scheme(), "abfs" | "abfss") && url.password().is_none();
        if !is_container && (!url.username().is_empty() || url.password().is_some()) {
            let found = format!("{}://…", url.scheme());
            return Err(error(&found, ", which holds a user or a password: these belong in the environment"));
        }
        let (scheme, prefix) = match url.scheme() {
            "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" | "file" => ObjectStoreScheme::parse(&url),
            _ => return Err(error(text, ", which is none of s3, gs, az, abfs and file")),
        }
        .map_err(|_| {
            error(text, if url.scheme() == "file" { ", which needs three slashes" } else { ", which has no bucket" })
        })?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(error(text, ", which has more than a bucket and a prefix"));
        }
        if url.port().is_some() {
            return Err(error(
                text,
                ", which has a port: an endpoint belongs in the environment, such as AWS_ENDPOINT_URL",
            ));
        }
        let kind = match scheme {
            ObjectStoreScheme::AmazonS3 => StoreKind::S3,
            ObjectStoreScheme::GoogleCloudStorage => StoreKind::Gcs,
            ObjectStoreScheme::MicrosoftAzure => StoreKind::Azure,
            _ => StoreKind::Folder,
        };
        Ok(Self { url, kind, prefix })
    }

    /// The kind of store.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// The URL, as the builders of stores read it.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The path below which the run's files are.
    pub fn prefix(&self) -> &ObjectPath {
        &self.prefix
    }

    /// The folder, if it is one.
    pub fn folder(&self) -> Option<PathBuf> {
        if self.kind == StoreKind::Folder { self.url.to_file_path().ok() } else { None }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_parses_to_store_kind_and_prefix() {
        let check = |text: &str, kind, prefix: &str| {
            let location = Location::parse("--mirror", text).expect(text);
            assert_eq!((location.kind(), location.prefix().as_ref()), (kind, prefix), "{text}");
            assert_eq!(location.to_string(), text);
        };
        check("s3://bucket", StoreKind::S3, "");
        check("s3://bucket/", StoreKind::S3, "");
        check("s3://bucket/runs/conv-001", StoreKind::S3, "runs/conv-001");
        check("s3a://bucket/a/b/", StoreKind::S3, "a/b");
        check("gs://bucket/a", StoreKind::Gcs, "a");
        check("az://container/a", StoreKind::Azure, "a");
        check("abfs://container/a", StoreKind::Azure, "a");
        check("abfss://container@account.dfs.core.windows.net/a", StoreKind::Azure, "a");
        check("file:///var/mirror", StoreKind::Folder, "var/mirror");
        check("file:///var/my%20mirror", StoreKind::Folder, "var/my mirror");
    }

    #[test]
    fn invalid_url_is_refused_with_example() {
        let check = |text: &str, part: &str| {
            let error = Location::parse("--mirror", text).expect_err(text).to_string();
            assert!(error.contains(part), "`{error}` does not contain `{part}`");
            assert!(error.ends_with("write for example `--mirror s3://BUCKET/PREFIX`"), "{error}");
        };
        check("", "found ``");
        check("bucket/prefix", "found `bucket/prefix`");
        check("http://localhost:9000/bucket", "none of s3, gs, az, abfs and file");
        check("memory:///a", "none of s3, gs, az, abfs and file");
        check("s3:///prefix", "no bucket");
        check("file://folder/a", "three slashes");
        check("s3://bucket:9000/a", "AWS_ENDPOINT_URL");
        check("s3://bucket/a?versionId=1", "more than a bucket and a prefix");
        check("s3://key:secret@bucket/a", "belong in the environment");
    }

    #[test]
    fn url_credentials_are_not_in_error_message() {
        let error = Location::parse("--mirror", "s3://key:hunter2@bucket/a").expect_err("a password").to_string();
        assert!(!error.contains("hunter2") && !error.contains("key"), "{error}");
    }

    #[test]
    fn path_is_not_taken_for_url() {
        assert!(!Location::is_url("runs/conv-001") && !Location::is_url("auto") && Location::is_url("s3://bucket"));
    }
}
