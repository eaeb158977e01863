//! The end that connects: its settings, and why a connection was refused.

use std::error::Error;
use std::fmt;

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::{Credentials, TlsError, TlsFiles, day, provider};

/// What a client has to prove itself with.
#[derive(Clone, Debug)]
pub struct Client {
    /// The settings of its connections.
    pub config: ClientTlsConfig,
    /// The day on which its certificate expires.
    pub last_day: String,
}

impl Client {
    /// Settings of these credentials. An own certificate that is out of date is the other side's to refuse.
    ///
    /// # Errors
    /// None, by now.
    pub fn new(_: &TlsFiles, credentials: Credentials) -> Result<Self, TlsError> {
        // tonic takes the process' provider. One that is installed already stays: the versions are the other side's choice too.
        let _ = provider().install_default();
        let Credentials { last_day, pem: [chain, key, ca], .. } = credentials;
        let config =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).identity(Identity::from_pem(chain, key));
        Ok(Self { config, last_day })
    }
}

/// Why a connection came to nothing that another attempt would not get either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsRefusal {
    /// The other side does not accept this one's certificate.
    OwnCertificate(OwnFault),
    /// The other side's certificate is not accepted, and why.
    OtherCertificate(String),
    /// The other side does not speak TLS.
    NoTls,
}

/// What the other side has against a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFault {
    /// It has expired.
    Expired,
    /// It is of another CA.
    UnknownCa,
    /// Something else.
    Other(AlertDescription),
}

/// Alerts about the certificate of the end that receives them (RFC 8446, section 6.2).
const CERTIFICATE_ALERTS: [AlertDescription; 9] = [
    AlertDescription::CertificateExpired,
    AlertDescription::UnknownCA,
    AlertDescription::CertificateRequired,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::AccessDenied,
    AlertDescription::DecryptError,
];

impl TlsRefusal {
    /// The refusal among the causes of an error, if there is one.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(refusal) = Self::of_cause(error) {
                return Some(refusal);
            }
            cause = error.source();
        }
        None
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        // An error of the system's kind does not give what is in it as its source.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref()).or_else(|| cause.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => Self::of_alert(*alert),
            Some(rustls::Error::InvalidCertificate(error)) => Some(Self::OtherCertificate(reason(error))),
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Some(Self::NoTls),
            Some(_) => None,
            // With TLS 1.3 a client learns that it is refused when its handshake is over, and HTTP/2 keeps only the text of that.
            None => {
                let text = inner?.to_string();
                let is_in_text = |alert: &AlertDescription| text == rustls::Error::AlertReceived(*alert).to_string();
                CERTIFICATE_ALERTS.into_iter().find(is_in_text).and_then(Self::of_alert)
            }
        }
    }

    fn of_alert(alert: AlertDescription) -> Option<Self> {
        let fault = match alert {
            AlertDescription::CertificateExpired => OwnFault::Expired,
            // A CA of the same name with another key is another one.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => OwnFault::UnknownCa,
            other if CERTIFICATE_ALERTS.contains(&other) => OwnFault::Other(other),
            _ => return None,
        };
        Some(Self::OwnCertificate(fault))
    }
}

impl OwnFault {
    /// What it means for a certificate that expires on a day.
    pub fn describe(self, last_day: &str) -> String {
        match self {
            Self::Expired => format!("it expired on {last_day}, or the coordinator's clock is wrong"),
            Self::UnknownCa => "it is of none of the CAs that the coordinator accepts".to_owned(),
            Self::Other(alert) => format!("the coordinator says {alert:?}"),
        }
    }
}

impl fmt::Display for TlsRefusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnCertificate(fault) => write!(out, "a refusal of the certificate: {fault:?}"),
            Self::OtherCertificate(reason) => write!(out, "a certificate that is not accepted: {reason}"),
            Self::NoTls => out.write_str("a peer without TLS"),
        }
    }
}

fn reason(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("it expired on {}", day(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX)))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is of none of the CAs in --tls-ca".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            format!("expected one for {expected}, found one for {}; make one with `--host {expected}`", list(presented))
        }
        other => other.to_string(),
    }
}

/// Names as rustls shows them, such as `DnsName("localhost")`, without what is around them.
fn list(presented: &[String]) -> String {
    let plain = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name));
    plain.collect::<Vec<_>>().join(" and ")
}
