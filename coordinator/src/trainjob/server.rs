//! One request to Kubeflow Trainer: where it goes, what it carries, and what its answer means.
//!
//! Trainer sets the variables in every container of a `TrainJob`. The paths are those of a projected service-account token,
//! which Kubernetes replaces before it expires, and of the certificate authority that has signed the server's certificate,
//! which is replaced too. So both files are read for each request.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::subscriber::{NoSubscriber, with_default};
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::TrainerStatus;

/// Where to post: `https://…/namespaces/NAMESPACE/trainjobs/NAME/status`.
const URL: &str = "KUBEFLOW_TRAINER_SERVER_URL";
/// Path of the certificate authority's certificate, as PEM.
const CA_CERT: &str = "KUBEFLOW_TRAINER_SERVER_CA_CERT";
/// Path of the token.
const TOKEN: &str = "KUBEFLOW_TRAINER_SERVER_TOKEN";

/// How long a request may take, from the name look-up to the end of the answer.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of a file is read: tokens and certificates have some kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How much of an answer is read.
const ANSWER_BYTES_MAX: u64 = 1 << 14;
/// How much of an answer's message is logged.
const MESSAGE_CHARACTERS_MAX: usize = 300;

/// A server, and what it takes to be heard by it.
#[derive(Debug, PartialEq, Eq)]
pub struct Server {
    url: String,
    ca_cert: PathBuf,
    token: PathBuf,
}

/// A variable of the environment that is not as it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingError {
    /// A variable lacks.
    #[error("expected {name} beside {URL} in the environment, found none")]
    Missing {
        /// The variable.
        name: &'static str,
    },
    /// The URL cannot be used. Over plain HTTP any host on the way could read the token; there is no exception for tests,
    /// which have a certificate authority of their own.
    #[error("expected an https:// URL in {URL}, found `{found}`")]
    Url {
        /// What is there.
        found: String,
    },
}

/// Why a post did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// A file cannot be read.
    #[error("cannot read {}, which {name} names: {source}", path.display())]
    Read {
        /// The variable.
        name: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no token in the file.
    #[error("expected a token in {}, found {found}", path.display())]
    Token {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// There is no certificate in the file.
    #[error("expected a certificate as PEM in {}, found none", path.display())]
    Certificate {
        /// The path.
        path: PathBuf,
    },
    /// There was no answer.
    #[error("expected an answer within {} s, found none: {source}", REQUEST_TIMEOUT.as_secs())]
    NoAnswer {
        /// What came instead.
        source: Box<ureq::Error>,
    },
    /// The answer is no.
    #[error("expected status 200, found {status}: {message}")]
    Refused {
        /// The HTTP status. A redirection is not followed: the token is for this server.
        status: u16,
        /// What the server says.
        message: String,
    },
}

impl Server {
    /// The server that the environment names; None if it names none.
    ///
    /// # Errors
    /// If it names one that cannot be used, or the token or the certificate authority is missing.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, SettingError> {
        // An empty variable is how a container's description takes one away.
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let path = |name| variable(name).map(PathBuf::from).ok_or(SettingError::Missing { name });
        let Some(url) = variable(URL) else { return Ok(None) };
        let url = url.to_string_lossy().into_owned();
        let uri: Option<Uri> = url.parse().ok();
        if !uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()))
        {
            return Err(SettingError::Url { found: url });
        }
        Ok(Some(Self { url, ca_cert: path(CA_CERT)?, token: path(TOKEN)? }))
    }

    /// Where it posts to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Posts a status.
    ///
    /// # Errors
    /// If it did not arrive, or was refused.
    pub fn post(&self, status: &TrainerStatus) -> Result<(), PostError> {
        let authorization = format!("Bearer {}", self.read_token()?);
        let request = self.agent()?.post(&self.url);
        let request = request.header("Authorization", authorization).content_type("application/json");
        let body = json!({ "trainerStatus": status }).to_string();
        // At level `trace` the client logs the bytes that it sends, which hold the token.
        let sent = with_default(NoSubscriber::default(), || request.send(body));
        let mut answer = sent.map_err(|source| PostError::NoAnswer { source: Box::new(source) })?;
        if answer.status().is_success() {
            return Ok(());
        }
        let mut body = Vec::new();
        // A body that is cut short says less, and the status is known.
        let _ = answer.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut body);
        Err(PostError::Refused { status: answer.status().as_u16(), message: message(&body) })
    }

    fn agent(&self) -> Result<Agent, PostError> {
        let tls = TlsConfig::builder().root_certs(self.read_roots()?).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            // The server is a service of the cluster, where a proxy to the world outside does not lead.
            .proxy(None)
            // Made for one request: a connection that is idle for seconds may be closed by the time it is used.
            .max_idle_connections(0)
            .user_agent(concat!("telar/", env!("CARGO_PKG_VERSION")));
        Ok(config.build().new_agent())
    }

    fn read_token(&self) -> Result<String, PostError> {
        let unusable = |found| PostError::Token { path: self.token.clone(), found };
        let text = String::from_utf8(read(TOKEN, &self.token)?).map_err(|_| unusable("bytes that are no text"))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(unusable("nothing"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable("characters that a header cannot have"));
        }
        Ok(token.to_owned())
    }

    fn read_roots(&self) -> Result<RootCerts, PostError> {
        let pem = read(CA_CERT, &self.ca_cert)?;
        // Up to the first part that is damaged.
        let items = parse_pem(&pem).map_while(Result::ok);
        let certificates = items.filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(PostError::Certificate { path: self.ca_cert.clone() });
        }
        Ok(certificates.into())
    }
}

fn read(name: &'static str, path: &Path) -> Result<Vec<u8>, PostError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| PostError::Read { name, path: path.to_owned(), source })?;
    Ok(bytes)
}

/// What an answer says: the message of a Kubernetes `Status`, or the text itself; on one line, and not long.
fn message(body: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    let text = match status.as_ref().and_then(|status| status["message"].as_str()) {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    };
    if text.is_empty() {
        return "without a message".to_owned();
    }
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(MESSAGE_CHARACTERS_MAX).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "https://trainer.kubeflow:8082/status";

    fn from(variables: &[(&str, &str)]) -> Result<Option<Server>, SettingError> {
        Server::from_environment(|name| {
            variables.iter().find(|(found, _)| *found == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn server_settings_come_from_three_variables() {
        let server = Server { url: ADDRESS.to_owned(), ca_cert: "ca.crt".into(), token: "token".into() };
        assert_eq!(from(&[(URL, ADDRESS), (CA_CERT, "ca.crt"), (TOKEN, "token")]), Ok(Some(server)));
        assert_eq!(from(&[]), Ok(None));
        assert_eq!(from(&[(CA_CERT, "ca.crt"), (TOKEN, "token")]), Ok(None));
        assert_eq!(from(&[(URL, ""), (TOKEN, "token")]), Ok(None));
    }

    #[test]
    fn missing_variable_is_named_in_error() {
        assert_eq!(from(&[(URL, ADDRESS), (TOKEN, "token")]), Err(SettingError::Missing { name: CA_CERT }));
        assert_eq!(from(&[(URL, ADDRESS), (CA_CERT, "a"), (TOKEN, "")]), Err(SettingError::Missing { name: TOKEN }));
    }

    #[test]
    fn url_without_https_is_refused() {
        for url in ["http://trainer:8082/status", "http://127.0.0.1/", "trainer:8082", "https://", "/status", "ftp://x"]
        {
            let found = url.to_owned();
            assert_eq!(from(&[(URL, url), (CA_CERT, "a"), (TOKEN, "b")]), Err(SettingError::Url { found }));
        }
    }

    #[test]
    fn token_is_trimmed_and_unusable_token_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("token");
        let server = Server { url: ADDRESS.to_owned(), ca_cert: "none".into(), token: path.clone() };
        let check = |content: &[u8], expected: Result<&str, &str>| {
            std::fs::write(&path, content).expect("a file");
            let found = server.read_token();
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                _ => panic!("expected {expected:?}, found {found:?}"),
            }
        };
        check(b"abc.def-_\n", Ok("abc.def-_"));
        check(b" \n", Err("found nothing"));
        check(b"abc\ndef", Err("characters that a header cannot have"));
        check(b"\xff\xfe", Err("no text"));
    }

    #[test]
    fn error_message_is_status_message_or_body_text() {
        let check = |body: &str, expected: &str| assert_eq!(message(body.as_bytes()), expected);
        check(r#"{"kind":"Status","status":"Failure","message":"no such TrainJob","code":404}"#, "no such TrainJob");
        check("bad\ngateway\u{1b}[31m", "bad gateway [31m");
        check(r#"{"status":"Failure"}"#, r#"{"status":"Failure"}"#);
        check("", "without a message");
        assert_eq!(message(&[b'a'; 10_000]).len(), 300);
    }
}
