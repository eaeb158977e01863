//! What a program proves itself with, and what it accepts from the other side: a certificate, its key and CAs, in files that
//! are read anew when they change.

mod client;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::token::warn_if_readable_by_others;

pub use client::{Client, Connector, OwnFault, TlsRefusal};

/// HTTP/2 over TLS (RFC 9113, section 3.3).
pub const ALPN: &[u8] = b"h2";
/// Bytes that are read from a socket at a time. rustls asks for 4 KiB, which would take 160 calls of the system for a gradient.
pub const READ_BYTES: usize = 64 << 10;
/// Bytes that are encrypted and handed to a socket at a time. rustls takes 64 KiB, and would have the peer woken for each.
pub const SEND_BYTES: usize = 1 << 20;

/// Bytes of the largest file: hundreds of certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of a name, and of a host's (RFC 1035, section 3.1).
const NAME_CHARACTERS_MAX: usize = 253;

/// The cryptography of all TLS here: ring's, and nothing but TLS 1.3, with the fastest of its ciphers first.
pub fn provider() -> CryptoProvider {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

/// The three files of a program, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, and the chain from there to a CA.
    pub certificate: PathBuf,
    /// The key of its certificate.
    pub key: PathBuf,
    /// The CAs that the other side's certificate may come from.
    pub ca: PathBuf,
}

/// What the three files hold.
#[derive(Debug)]
pub struct Credentials {
    /// The certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The CAs.
    pub roots: Arc<RootCertStore>,
    /// The certificate's name, if it has one.
    pub name: Option<String>,
    /// The day on which it expires, such as `2027-03-01`.
    pub last_day: String,
    /// Whether that day is over, or the first one has not come.
    pub is_valid_now: bool,
}

/// Flags that name one or two of the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected --tls-cert, --tls-key and --tls-ca, or none of them, found only {}; `coordinator certificates --out tls --host \
     HOST` makes all three for each program", found.join(" and ")
)]
pub struct IncompleteFlags {
    /// The flags that were given.
    found: Vec<&'static str>,
}

/// Files that prove nothing.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("cannot read {}: {source}; name another file with {flag}", path.display())]
    Read {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// One holds something else.
    #[error("expected {expected} as PEM in {}, found {found}; name another file with {flag}", path.display())]
    Content {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is.
        found: String,
    },
    /// The key is another certificate's.
    #[error(
        "expected the key of the certificate in {}, found another one in {}; name the files that belong together with \
         --tls-cert and --tls-key", certificate.display(), key.display()
    )]
    OtherKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// The certificate is out of date.
    #[error(
        "expected a certificate that is valid now in {}, found one that {}; make a new one with `coordinator certificates`",
        path.display(), reason
    )]
    NotValid {
        /// The file.
        path: PathBuf,
        /// Until when it was.
        reason: String,
    },
    /// What is made of them is refused.
    #[error("cannot use {} for TLS: {source}", path.display())]
    Refused {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
}

const FLAGS: [&str; 3] = ["--tls-cert", "--tls-key", "--tls-ca"];

impl TlsFiles {
    /// The files that three flags name; none if no flag is given.
    ///
    /// # Errors
    /// If only some of them are given.
    pub fn of_flags(flags: [Option<PathBuf>; 3]) -> Result<Option<Self>, IncompleteFlags> {
        match flags {
            [Some(certificate), Some(key), Some(ca)] => Ok(Some(Self { certificate, key, ca })),
            [None, None, None] => Ok(None),
            some => {
                let given = FLAGS.into_iter().zip(some).filter(|(_, path)| path.is_some());
                Err(IncompleteFlags { found: given.map(|(flag, _)| flag).collect() })
            }
        }
    }

    /// Reads all three.
    ///
    /// # Errors
    /// If one cannot be read or holds something else, or the key is not that of the certificate.
    pub fn read(&self) -> Result<Credentials, TlsError> {
        let pem =
            [read_file(FLAGS[0], &self.certificate)?, read_file(FLAGS[1], &self.key)?, read_file(FLAGS[2], &self.ca)?];
        let chain = certificates(FLAGS[0], &self.certificate, &pem[0])?;
        let key = PrivateKeyDer::from_pem_slice(&pem[1])
            .map_err(|error| content(FLAGS[1], &self.key, "a private key", error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for ca in certificates(FLAGS[2], &self.ca, &pem[2])? {
            roots.add(ca).map_err(|error| content(FLAGS[2], &self.ca, "certificates", error.to_string()))?;
        }
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::OtherKey { certificate: self.certificate.clone(), key: self.key.clone() }
            }
            source => TlsError::Refused { path: self.certificate.clone(), source },
        })?;
        let certificate = parse(&chain[0])
            .ok_or_else(|| content(FLAGS[0], &self.certificate, "a certificate", "something else".to_owned()))?;
        let name = name_of_parsed(&certificate);
        let last_day = day(certificate.validity().not_after.timestamp());
        let is_valid_now = certificate.validity().is_valid();
        Ok(Credentials { roots: Arc::new(roots), name, last_day, is_valid_now, key, chain })
    }

    fn stamps(&self) -> [Option<Stamp>; 3] {
        [&self.certificate, &self.key, &self.ca].map(|path| Stamp::of(path))
    }
}

/// The name of a certificate: the first name of a host that it is for, or else its common name. A certificate without
/// either has none.
pub fn name(certificate: &CertificateDer<'_>) -> Option<String> {
    name_of_parsed(&parse(certificate)?)
}

/// A moment in seconds since 1970 as a day, such as `2027-03-01`.
pub fn day(seconds: i64) -> String {
    let time = x509_parser::time::ASN1Time::from_timestamp(seconds).map(|time| time.to_datetime().date().to_string());
    time.unwrap_or_else(|_| format!("{seconds} s after 1970"))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate)
}

fn name_of_parsed(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let host = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(host) => Some(*host),
            _ => None,
        })
    });
    let name = host.or_else(|| certificate.subject().iter_common_name().next()?.as_str().ok())?;
    let is_plain = !name.is_empty() && !name.contains(char::is_control) && name.len() <= NAME_CHARACTERS_MAX;
    is_plain.then(|| name.to_owned())
}

fn read_file(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        if flag == FLAGS[1] {
            warn_if_readable_by_others(path, &file)?;
        }
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)
    });
    read.map_err(|source| TlsError::Read { flag, path: path.to_owned(), source })?;
    Ok(bytes)
}

fn certificates(flag: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| content(flag, path, "certificates", error.to_string()))?;
    if found.is_empty() { Err(content(flag, path, "certificates", "none".to_owned())) } else { Ok(found) }
}

fn content(flag: &'static str, path: &Path, expected: &'static str, found: String) -> TlsError {
    TlsError::Content { flag, path: path.to_owned(), expected, found }
}

/// What tells that a file is another one than before, or was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    n_bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let file = (metadata.dev(), metadata.ino());
        Some(Self { file, n_bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// What is made of three files, and is made anew when one of them has changed. New files that are incomplete or
/// invalid are logged and change nothing.
#[derive(Debug)]
pub struct Reloaded<T> {
    files: TlsFiles,
    make: fn(&TlsFiles, Credentials) -> Result<T, TlsError>,
    loaded: Mutex<Loaded<T>>,
}

#[derive(Debug)]
struct Loaded<T> {
    /// Of the files that were read last, whatever came of it.
    stamps: [Option<Stamp>; 3],
    made: Arc<T>,
}

impl<T> Reloaded<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// As [`TlsFiles::read`], and if `make` refuses what is in them.
    pub fn open(files: TlsFiles, make: fn(&TlsFiles, Credentials) -> Result<T, TlsError>) -> Result<Self, TlsError> {
        let stamps = files.stamps();
        let made = Arc::new(make(&files, files.read()?)?);
        Ok(Self { files, make, loaded: Mutex::new(Loaded { stamps, made }) })
    }

    /// What is made of the files as they are now.
    pub fn current(&self) -> Arc<T> {
        let stamps = self.files.stamps();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps != loaded.stamps {
            self.read_into(&mut loaded, stamps);
        }
        Arc::clone(&loaded.made)
    }

    /// Reads the files, also if they seem to be the same.
    pub fn read_again(&self) {
        let stamps = self.files.stamps();
        self.read_into(&mut self.loaded.lock().unwrap_or_else(PoisonError::into_inner), stamps);
    }

    fn read_into(&self, loaded: &mut Loaded<T>, stamps: [Option<Stamp>; 3]) {
        // Also after an error, which is then logged once per change.
        loaded.stamps = stamps;
        let read = self.files.read().and_then(|credentials| {
            let (name, last_day) = (credentials.name.clone(), credentials.last_day.clone());
            Ok(((self.make)(&self.files, credentials)?, name, last_day))
        });
        match read {
            Ok((made, name, last_day)) => {
                info!(name = name.unwrap_or_default(), last_day, "certificate read anew");
                loaded.made = Arc::new(made);
            }
            Err(error) => warn!(%error, "new certificate not used; the one before it stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, DnType, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// A certificate that is its own CA, with its key.
    fn certificate(hosts: &[&str], common_name: Option<&str>) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names of hosts");
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    fn files(folder: &TempDir) -> TlsFiles {
        let [certificate, key, ca] = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.path().join(name));
        TlsFiles { certificate, key, ca }
    }

    fn write(files: &TlsFiles, (certificate, key): &(String, String)) {
        fs::write(&files.certificate, certificate).expect("a file");
        fs::write(&files.key, key).expect("a file");
        fs::write(&files.ca, certificate).expect("a file");
    }

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn tls_flags_need_all_three_files_or_none() {
        let path = |name: &str| Some(PathBuf::from(name));
        assert!(TlsFiles::of_flags([path("a"), path("b"), path("c")]).expect("all").is_some());
        assert!(TlsFiles::of_flags([None, None, None]).expect("none").is_none());
        let text = TlsFiles::of_flags([path("a"), None, path("c")]).expect_err("two").to_string();
        assert!(text.contains("found only --tls-cert and --tls-ca; `coordinator certificates"), "{text}");
    }

    #[test]
    fn invalid_tls_files_are_refused_with_reason() {
        let folder = folder();
        let files = files(&folder);
        let good = certificate(&["worker-1"], None);
        let check = |parts: &[&str]| {
            let text = files.read().expect_err("files that do not fit").to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        check(&["cannot read", "tls.crt", "--tls-cert"]);
        write(&files, &good);
        assert_eq!(files.read().expect("good files").name.as_deref(), Some("worker-1"));
        fs::write(&files.certificate, "no PEM").expect("a file");
        check(&["expected certificates as PEM", "tls.crt", "found none"]);
        fs::write(&files.certificate, &good.0[..good.0.len() / 2]).expect("a file");
        check(&["expected certificates as PEM", "tls.crt"]);
        write(&files, &good);
        fs::write(&files.key, certificate(&["worker-1"], None).1).expect("a file");
        check(&["expected the key of the certificate", "tls.key"]);
        fs::write(&files.key, &good.0).expect("a file");
        check(&["expected a private key as PEM", "--tls-key"]);
    }

    #[test]
    fn certificate_name_is_first_host_or_common_name() {
        let check = |hosts: &[&str], common_name, expected: Option<&str>| {
            let (certificate, _) = certificate(hosts, common_name);
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
            assert_eq!(name(&certificate).as_deref(), expected);
        };
        check(&["worker-1", "worker-2"], Some("other"), Some("worker-1"));
        check(&["192.168.0.1"], Some("worker-3"), Some("worker-3"));
        check(&["192.168.0.1"], None, None);
        check(&[], Some("line\nbreak"), None);
    }

    #[test]
    fn changed_tls_files_are_reloaded_only_when_valid() {
        let folder = folder();
        let files = files(&folder);
        let [first, second] = ["first", "second"].map(|name| certificate(&[name], None));
        write(&files, &first);
        let reloaded = Reloaded::open(files.clone(), |_, credentials| Ok(credentials.name)).expect("good files");
        let name = || reloaded.current().as_deref().map(str::to_owned);
        assert_eq!(name().as_deref(), Some("first"));
        // The new certificate is there, its key is not yet.
        fs::write(&files.certificate, &second.0[..100]).expect("a file");
        assert_eq!(name().as_deref(), Some("first"));
        fs::write(&files.certificate, &second.0).expect("a file");
        assert_eq!(name().as_deref(), Some("first"));
        fs::write(&files.key, &second.1).expect("a file");
        assert_eq!(name().as_deref(), Some("second"));
        fs::remove_file(&files.ca).expect("a file");
        assert_eq!(name().as_deref(), Some("second"));
        reloaded.read_again();
        assert_eq!(name().as_deref(), Some("second"));
    }
}
