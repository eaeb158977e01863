//! `coordinator certificates`: a CA, and a folder for each program with what it needs, named as in Kubernetes' Secrets. What
//! is there already is never overwritten.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use engine::exit;
use proto::tls::provider;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Folder of the CA below that of all.
const CA: &str = "ca";
/// Folder of the coordinator.
const COORDINATOR: &str = "coordinator";
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TOKEN: &str = "token";
/// How long a CA is good for at least.
const CA_DAYS_MIN: u32 = 3650;
/// How long ago a certificate begins to be valid, for clocks that are behind.
const BEGUN_BEFORE: Duration = Duration::HOUR;
/// Random bytes of a token, written as hexadecimal digits.
const TOKEN_BYTES: usize = 32;
/// Longest name of a worker.
const NAME_BYTES_MAX: usize = 63;

/// What is to be made.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  coordinator certificates --out tls --host 192.168.0.10 --workers 4\n\n\
    makes the folders tls/ca, tls/coordinator and tls/worker-1 to tls/worker-4. Each but the first is for one program: copy it \
    to that program's machine. tls/ca/ca.key makes certificates that everyone here believes: keep it where nothing else \
    runs.\n\nThe same command with another number of workers, and without --host, makes more of them. To renew a certificate, \
    move its folder away and make it again with --host or --worker: the programs read new files without a restart.")]
pub struct CertificatesArgs {
    /// Folder for what is made; it holds private keys
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Name or IP address under which workers reach the coordinator; more than one may be given
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub host: Vec<String>,
    /// How many workers to make certificates for, as worker-1, worker-2 and so on, after those that are there [default: 1, if
    /// neither a host nor a worker is named otherwise]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), conflicts_with = "worker")]
    pub workers: Option<u32>,
    /// Name of a worker to make a certificate for; more than one may be given
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub worker: Vec<String>,
    /// For how many days the certificates of programs are good
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Do nothing, successfully, for a program whose files are there already
    #[arg(long)]
    pub keep_existing: bool,
}

/// Why nothing more was made.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A CA, but nothing that it signs.
    #[error(
        "expected --host with the name or address of the coordinator, found none, and no CA in {}; write for example `--host \
         192.168.0.10`", out.display()
    )]
    NoHost {
        /// The folder.
        out: PathBuf,
    },
    /// Nothing to be made.
    #[error("expected --host, --workers or --worker, found none; write for example `--workers 1` for one more worker")]
    Nothing,
    /// What cannot stand in a certificate, or name a folder.
    #[error("expected {flag} as a name of letters, digits, `.` and `-`{}, found `{found}`", if *flag == "--host" { ", or an IP address" } else { "" })]
    Name {
        /// The flag.
        flag: &'static str,
        /// What was given.
        found: String,
    },
    /// There is one already.
    #[error("{} is there already, and is not overwritten; move it away, name another folder with --out, or write --keep-existing", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A CA that is none.
    #[error("expected the certificate and the key of a CA in {}, found something else: {source}", path.display())]
    Ca {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// What the library refuses.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("cannot make a token: the system gives no random numbers")]
    Random,
}

impl CertificatesError {
    /// What the program's end tells.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoHost { .. } | Self::Nothing | Self::Name { .. } => exit::CONFIGURATION,
            Self::Exists { .. } | Self::File { .. } => exit::CANNOT_WRITE,
            Self::Ca { .. } => exit::DATA,
            Self::Make(_) | Self::Random => exit::INTERNAL,
        }
    }
}

/// What was made, for people.
#[derive(Debug, Default)]
pub struct Made {
    folders: Vec<PathBuf>,
    /// Where the coordinator is, if a host was named.
    host: Option<String>,
}

/// The CA, as it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    token: String,
}

/// Makes what is asked for.
///
/// # Errors
/// If it is there already, makes no sense, or cannot be written. What was made before stays.
pub fn make(args: &CertificatesArgs) -> Result<Made, CertificatesError> {
    for (flag, names) in [("--host", &args.host), ("--worker", &args.worker)] {
        let is_good = |name: &&String| match flag {
            "--host" => is_name(name) || name.parse::<IpAddr>().is_ok(),
            _ => is_name(name) && ![CA, COORDINATOR].contains(&name.as_str()),
        };
        if let Some(found) = names.iter().find(|name| !is_good(name)) {
            return Err(CertificatesError::Name { flag, found: found.clone() });
        }
    }
    let mut made = Made { folders: vec![], host: args.host.first().cloned() };
    let ca = args.out.join(CA);
    let is_new = !ca.join(CA_KEY).exists();
    if is_new && args.host.is_empty() {
        return Err(CertificatesError::NoHost { out: args.out.clone() });
    }
    let workers = worker_names(args, is_new);
    if args.host.is_empty() && workers.is_empty() {
        return Err(CertificatesError::Nothing);
    }
    // Before anything is made, so that a refusal changes nothing.
    let programs = (!args.host.is_empty()).then(|| COORDINATOR.to_owned()).into_iter().chain(workers);
    let mut wanted = Vec::new();
    for name in programs {
        match [CERTIFICATE, KEY, CA_CERTIFICATE, TOKEN]
            .map(|file| args.out.join(&name).join(file))
            .into_iter()
            .find(|path| path.exists())
        {
            None => wanted.push(name),
            Some(_) if args.keep_existing => {}
            Some(path) => return Err(CertificatesError::Exists { path }),
        }
    }
    let authority = if is_new { create_ca(&args.out, &ca, args.days, &mut made)? } else { open_ca(&ca)? };
    for name in wanted {
        let folder = args.out.join(&name);
        create_folder(&folder)?;
        let (hosts, usage) = if name == COORDINATOR {
            (args.host.clone(), ExtendedKeyUsagePurpose::ServerAuth)
        } else {
            (vec![name.clone()], ExtendedKeyUsagePurpose::ClientAuth)
        };
        let key = KeyPair::generate()?;
        let certificate = program_params(&name, hosts, usage, args.days)?.signed_by(&key, &authority.issuer)?;
        write(&folder.join(KEY), &key.serialize_pem())?;
        write(&folder.join(CERTIFICATE), &certificate.pem())?;
        write(&folder.join(CA_CERTIFICATE), &authority.pem)?;
        write(&folder.join(TOKEN), &authority.token)?;
        made.folders.push(folder);
    }
    Ok(made)
}

/// The workers to make certificates for.
fn worker_names(args: &CertificatesArgs, is_new: bool) -> Vec<String> {
    if !args.worker.is_empty() {
        return args.worker.clone();
    }
    let n_workers = args.workers.unwrap_or(u32::from(is_new));
    let numbered = (1..).map(|number| format!("worker-{number}"));
    let is_wanted = |name: &String| args.keep_existing || !args.out.join(name).exists();
    numbered.filter(is_wanted).take(n_workers as usize).collect()
}

fn create_ca(out: &Path, folder: &Path, days: u32, made: &mut Made) -> Result<Authority, CertificatesError> {
    create_folder(out)?;
    create_folder(folder)?;
    let mut params = params("telar CA", vec![], days.max(CA_DAYS_MIN))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    let token = random_token()?;
    // The key last: with it the CA counts as made.
    write(&folder.join(CA_CERTIFICATE), &pem)?;
    write(&folder.join(TOKEN), &token)?;
    write(&folder.join(CA_KEY), &key.serialize_pem())?;
    made.folders.push(folder.to_owned());
    Ok(Authority { pem, issuer: Issuer::new(params, key), token })
}

fn open_ca(folder: &Path) -> Result<Authority, CertificatesError> {
    let [pem, key, token] = [CA_CERTIFICATE, CA_KEY, TOKEN].map(|name| read(&folder.join(name)));
    let (pem, token) = (pem?, token?);
    let issuer = KeyPair::from_pem(&key?).and_then(|key| Issuer::from_ca_cert_pem(&pem, key));
    let issuer = issuer.map_err(|source| CertificatesError::Ca { path: folder.to_owned(), source })?;
    Ok(Authority { pem, issuer, token })
}

fn params(name: &str, hosts: Vec<String>, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?; // IP addresses are recognised
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BEGUN_BEFORE;
    params.not_after = now + Duration::days(days.into());
    Ok(params)
}

fn program_params(
    name: &str,
    hosts: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    days: u32,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(name, hosts, days)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // With one of the two a worker's certificate cannot stand for a coordinator.
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Whether a text can be a host's name and a folder's.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(is_part)
}

fn random_token() -> Result<String, CertificatesError> {
    let mut bytes = [0; TOKEN_BYTES];
    provider().secure_random.fill(&mut bytes).map_err(|_| CertificatesError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Creates a folder that only its owner can access. An existing one stays as it is.
fn create_folder(path: &Path) -> Result<(), CertificatesError> {
    let error = |source| CertificatesError::File { what: "make the folder", path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error)
}

/// Creates a file that only its owner can read.
fn write(path: &Path, content: &str) -> Result<(), CertificatesError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
    written.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CertificatesError::Exists { path: path.to_owned() },
        _ => CertificatesError::File { what: "write", path: path.to_owned(), source },
    })
}

fn read(path: &Path) -> Result<String, CertificatesError> {
    let error = |source| CertificatesError::File { what: "read", path: path.to_owned(), source };
    std::fs::read_to_string(path).map_err(error)
}

impl fmt::Display for Made {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.folders.is_empty() {
            return out.write_str("all is there already; nothing was made");
        }
        for folder in &self.folders {
            let what = match folder.file_name().and_then(|name| name.to_str()) {
                Some(CA) => {
                    "the CA; its key makes certificates that everyone believes, and belongs on no other machine"
                }
                Some(COORDINATOR) => "for the coordinator",
                _ => "for a worker; copy it to its machine",
            };
            writeln!(out, "{}: {what}", folder.display())?;
        }
        for folder in self.folders.iter().filter(|folder| !folder.ends_with(CA)) {
            let host = self.host.as_deref().unwrap_or("HOST");
            let host = if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
            let program = if folder.ends_with(COORDINATOR) {
                "coordinator --launch external --listen 0.0.0.0:7187".to_owned()
            } else {
                format!("worker --coordinator https://{host}:7187")
            };
            let folder = folder.display();
            write!(
                out,
                "\n{program} --tls-cert {folder}/{CERTIFICATE} --tls-key {folder}/{KEY} --tls-ca {folder}/{CA_CERTIFICATE} \
                 --token-file {folder}/{TOKEN}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proto::tls::TlsFiles;
    use proto::token::Token;
    use tempfile::TempDir;

    use super::*;

    fn args(out: &Path) -> CertificatesArgs {
        CertificatesArgs {
            out: out.to_owned(),
            host: vec![],
            workers: None,
            worker: vec![],
            days: 365,
            keep_existing: false,
        }
    }

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn files(folder: &Path) -> TlsFiles {
        let [certificate, key, ca] = [CERTIFICATE, KEY, CA_CERTIFICATE].map(|name| folder.join(name));
        TlsFiles { certificate, key, ca }
    }

    fn hosts() -> Vec<String> {
        ["coordinator.example", "127.0.0.1", "::1"].map(str::to_owned).to_vec()
    }

    #[test]
    fn created_certificates_load_and_are_owner_only() {
        let folder = folder();
        let out = folder.path().join("tls");
        let made = make(&CertificatesArgs { host: hosts(), workers: Some(2), ..args(&out) }).expect("certificates");
        let text = made.to_string();
        assert!(text.contains("worker --coordinator https://coordinator.example:7187 --tls-cert"), "{text}");
        for (name, certificate) in
            [("coordinator", "coordinator.example"), ("worker-1", "worker-1"), ("worker-2", "worker-2")]
        {
            let read = files(&out.join(name)).read().expect("good files");
            assert_eq!(read.name.as_deref(), Some(certificate));
            assert!(read.is_valid_now);
            Token::read(&out.join(name).join(TOKEN)).expect("a token");
        }
        for entry in [
            out.clone(),
            out.join("ca"),
            out.join("ca/ca.key"),
            out.join("worker-1/tls.key"),
            out.join("worker-1/token"),
        ] {
            let mode = std::fs::metadata(&entry).expect("it was made").permissions().mode() & 0o777;
            assert_eq!(mode, if entry.is_dir() { 0o700 } else { 0o600 }, "{}", entry.display());
        }
    }

    #[test]
    fn second_call_adds_workers_without_overwriting() {
        let folder = folder();
        let out = folder.path();
        let text = make(&CertificatesArgs { workers: Some(1), ..args(out) }).expect_err("no host").to_string();
        assert!(text.contains("expected --host") && !out.join("ca").exists(), "{text}");
        make(&CertificatesArgs { host: hosts(), ..args(out) }).expect("certificates");
        make(&CertificatesArgs { workers: Some(2), ..args(out) }).expect("two more");
        make(&CertificatesArgs { worker: vec!["gpu-1".to_owned()], ..args(out) }).expect("one more");
        let ca = |name: &str| std::fs::read(out.join(name).join(CA_CERTIFICATE)).expect("a file");
        for name in ["worker-1", "worker-2", "worker-3", "gpu-1"] {
            assert!(ca(name) == ca("coordinator"), "{name}");
        }
        let key = || std::fs::read(out.join("worker-1/tls.key")).expect("a file");
        let before = key();
        let again = CertificatesArgs { worker: vec!["new".to_owned(), "worker-1".to_owned()], ..args(out) };
        let text = make(&again).expect_err("it is there").to_string();
        assert!(text.contains("worker-1/tls.crt is there already") && !out.join("new").exists(), "{text}");
        let made = make(&CertificatesArgs { keep_existing: true, ..again }).expect("one more");
        assert!(key() == before && out.join("new/tls.crt").exists());
        assert_eq!(made.folders, [out.join("new")]);
        make(&args(out)).expect_err("nothing to be made");
    }

    #[test]
    fn invalid_host_and_worker_names_are_refused() {
        let folder = folder();
        for (host, worker) in [
            ("https://host", "a"),
            ("host", "../a"),
            ("", "a"),
            ("host", "a b"),
            ("host", "ca"),
            ("host", "coordinator"),
        ] {
            let args = CertificatesArgs {
                host: vec![host.to_owned()],
                worker: vec![worker.to_owned()],
                ..args(folder.path())
            };
            let text = make(&args).expect_err("a name that is none").to_string();
            assert!(text.contains("as a name of letters"), "{text}");
        }
        assert!(std::fs::read_dir(folder.path()).expect("a folder").next().is_none());
    }
}
