//! Who may look: the names by which the server is called, and the token. Reading is all that there is to allow.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

/// Who may look.
#[derive(Clone, Debug)]
pub struct Access {
    names: Names,
    token: Option<Token>,
}

/// The names by which a browser may call the server. Another name that leads here belongs to an attacker whose page would
/// read this server (DNS rebinding). The port is not checked: a forwarded one differs.
#[derive(Clone, Debug)]
enum Names {
    /// `localhost`, and loopback addresses.
    Loopback,
    /// Those and any other address, which no DNS leads to, and these names.
    Named(Vec<String>),
}

#[derive(Clone)]
struct Token(Arc<str>);

/// Why an access cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A token that is trivial to guess.
    #[error("expected a token for the page, found an empty one")]
    EmptyToken,
}

impl Access {
    /// For a server that listens at a loopback address.
    pub fn loopback() -> Self {
        Self { names: Names::Loopback, token: None }
    }

    /// For a server that others reach by these names, without ports, or by its addresses.
    pub fn named(names: impl IntoIterator<Item = String>) -> Self {
        Self { names: Names::Named(names.into_iter().collect()), token: None }
    }

    /// Asks for a token, as `Authorization: Bearer`, or as the password that a browser asks for, with any user's name. The server
    /// may then be called by any name, such as that of a Kubernetes Service.
    ///
    /// # Errors
    /// If it is empty.
    pub fn with_token(self, token: &str) -> Result<Self, AccessError> {
        if token.is_empty() {
            return Err(AccessError::EmptyToken);
        }
        Ok(Self { token: Some(Token(token.into())), ..self })
    }

    fn check(&self, request: &Request) -> Result<(), RequestRefusal> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(RequestRefusal::Method);
        }
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if length || headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(RequestRefusal::Body);
        }
        // A probe calls a server by its address, has no token, and learns nothing else.
        if matches!(request.uri().path(), "/healthz" | "/readyz") {
            return Ok(());
        }
        let host = single(headers, &header::HOST).ok_or(RequestRefusal::Host)?;
        let is_called_otherwise = request.uri().authority().is_some_and(|called| called.as_str() != host);
        // The token protects where there is one: a page of another name has no password of this one's in the browser.
        if is_called_otherwise || self.token.is_none() && !self.names.allow(host) {
            return Err(RequestRefusal::Host);
        }
        if headers.contains_key(header::ORIGIN)
            && !single(headers, &header::ORIGIN).is_some_and(|origin| is_of(origin, host))
        {
            return Err(RequestRefusal::Origin);
        }
        match &self.token {
            Some(token) if !single(headers, &header::AUTHORIZATION).is_some_and(|given| token.is_in(given)) => {
                Err(RequestRefusal::Token)
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Names {
    fn allow(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if host.contains('@') {
            return false;
        }
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let is_loopback =
            name.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback());
        match self {
            Self::Loopback => is_loopback,
            Self::Named(names) => {
                is_loopback || address.is_some() || names.iter().any(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }
}

impl Token {
    /// Whether an `Authorization` has it.
    fn is_in(&self, given: &str) -> bool {
        let Some((scheme, value)) = given.split_once(' ') else { return false };
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.is(value.as_bytes());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return false;
        }
        let Ok(credentials) = STANDARD.decode(value) else { return false };
        let colon = credentials.iter().position(|&byte| byte == b':');
        colon.is_some_and(|colon| self.is(&credentials[colon + 1..]))
    }

    /// In a time that says nothing of how much of it is right.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(…)")
    }
}

/// The value of a header that is there once, as text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether an origin is that of the server's own pages.
fn is_of(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug)]
enum RequestRefusal {
    Method,
    Body,
    Host,
    Origin,
    Token,
}

impl IntoResponse for RequestRefusal {
    fn into_response(self) -> Response {
        let (status, text, header) = match self {
            Self::Method => {
                let allowed = (header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                (StatusCode::METHOD_NOT_ALLOWED, "This server can only be read: expected GET or HEAD.\n", Some(allowed))
            }
            Self::Body => {
                let close = (header::CONNECTION, HeaderValue::from_static("close"));
                (StatusCode::PAYLOAD_TOO_LARGE, "Expected a request without a body.\n", Some(close))
            }
            Self::Host => {
                let text =
                    "This server is not called by that name: expected one that it was started with, or an address.\n";
                (StatusCode::MISDIRECTED_REQUEST, text, None)
            }
            Self::Origin => (StatusCode::FORBIDDEN, "Pages of other sites may not read this server.\n", None),
            Self::Token => {
                let basic = (header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"telar\""));
                (StatusCode::UNAUTHORIZED, "Expected the token, as a bearer token or as the password.\n", Some(basic))
            }
        };
        (status, header.map(|header| [header]).into_iter().flatten().collect::<HeaderMap>(), text).into_response()
    }
}

/// Headers of every answer: it may load only what is from here, no other site may load it, and no cache may keep it.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Answers only what may be answered.
pub(super) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let mut response = match access.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_to_loopback_are_allowed_with_any_port() {
        for host in ["localhost", "LocalHost:7188", "127.0.0.1:80", "127.3.2.1", "[::1]:7188", "[::1]"] {
            assert!(Names::Loopback.allow(host), "{host}");
        }
        let others = [
            "",
            "evil.example",
            "localhost.evil.example:7188",
            "10.0.0.1:7188",
            "127.0.0.1.evil.example",
            "a@localhost",
            "::1",
        ];
        for host in others {
            assert!(!Names::Loopback.allow(host), "{host}");
        }
    }

    #[test]
    fn configured_names_and_addresses_are_allowed() {
        let names = Names::Named(vec!["train.example".to_owned()]);
        for host in ["train.example:7188", "TRAIN.example", "10.0.0.1:7188", "[fd00::7]:7188", "localhost:1"] {
            assert!(names.allow(host), "{host}");
        }
        for host in ["evil.example", "train.example.evil.example", "x.train.example"] {
            assert!(!names.allow(host), "{host}");
        }
    }

    #[test]
    fn token_is_bearer_or_password_of_anybody() {
        let token = Token("pass:word".into());
        let basic = |credentials: &str| format!("Basic {}", STANDARD.encode(credentials));
        for given in
            ["Bearer pass:word".to_owned(), "bearer  pass:word".to_owned(), basic("me:pass:word"), basic(":pass:word")]
        {
            assert!(token.is_in(&given), "{given}");
        }
        let others =
            ["pass:word", "Bearer pass:wor", "Bearer pass:words", "Basic pass:word", "Digest pass:word", "Bearer", ""];
        for given in others.map(str::to_owned).into_iter().chain([basic("pass:word"), basic("me:pass")]) {
            assert!(!token.is_in(&given), "{given}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert_eq!(Access::loopback().with_token("").err(), Some(AccessError::EmptyToken));
    }
}
