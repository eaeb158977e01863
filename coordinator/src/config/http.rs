//! Where the page is served, and what keeps others from reading it.

use std::path::PathBuf;

use engine::args::AccessArgs;
use proto::tls::TlsFiles;

use super::address::{ListenAddress, address};
use super::error::ConfigError;
use crate::args::Launch;

/// Where the page is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Http {
    /// Nowhere.
    Off,
    /// At 127.0.0.1:7188, or at a free port if that one is in use.
    Default,
    /// At this address, `HOST:PORT`.
    At(String, HttpReach),
}

/// Who can reach the page, and what keeps others from reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpReach {
    /// This machine; nothing.
    ThisMachine,
    /// Others, with the coordinator's certificate and the token of this file.
    Others(TlsFiles, PathBuf),
    /// Others; nothing, or the token of this file, which can be read on the way.
    OthersInsecurely(Option<PathBuf>),
}

/// Where the page is served: by default on loopback, with local workers.
///
/// # Errors
/// If the text is no address, or others could read there without having to prove anything.
pub fn http(given: Option<String>, launch: Launch, access: &AccessArgs) -> Result<Http, ConfigError> {
    let Some(found) = given else {
        return Ok(if launch == Launch::Local { Http::Default } else { Http::Off });
    };
    if found == "off" {
        return Ok(Http::Off);
    }
    let Some(address @ ListenAddress::Tcp(_)) = address(&found) else { return Err(ConfigError::Http { found }) };
    if !address.is_beyond_this_machine() {
        return Ok(Http::At(found, HttpReach::ThisMachine));
    }
    let AccessArgs { tls_cert, tls_key, tls_ca, token_file, insecure } = access.clone();
    let tls = TlsFiles::of_flags([tls_cert, tls_key, tls_ca])?;
    let reach = match (tls, token_file) {
        (Some(tls), Some(token_file)) => HttpReach::Others(tls, token_file),
        (None, token_file) if insecure => HttpReach::OthersInsecurely(token_file),
        (Some(_) | None, _) => return Err(ConfigError::HttpExposed { found: address.to_string() }),
    };
    Ok(Http::At(found, reach))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, launch: Launch, access: &AccessArgs, expected: Result<Http, ConfigError>) {
        let given = (!given.is_empty()).then(|| given.to_owned());
        assert_eq!(http(given.clone(), launch, access), expected, "{given:?}");
    }

    #[test]
    fn page_is_on_this_machine_by_default_and_off_for_external_workers() {
        let open = AccessArgs::default();
        check("", Launch::Local, &open, Ok(Http::Default));
        check("", Launch::External, &open, Ok(Http::Off));
        check("off", Launch::Local, &open, Ok(Http::Off));
        let address = "localhost:1".to_owned();
        check(&address, Launch::External, &open, Ok(Http::At(address.clone(), HttpReach::ThisMachine)));
        check("7188", Launch::Local, &open, Err(ConfigError::Http { found: "7188".to_owned() }));
        check("unix:a", Launch::Local, &open, Err(ConfigError::Http { found: "unix:a".to_owned() }));
    }

    #[test]
    fn page_beyond_this_machine_needs_tls_and_token_or_insecure() {
        let found = "0.0.0.0:1";
        let exposed = || Err(ConfigError::HttpExposed { found: found.to_owned() });
        let at = |reach| Ok(Http::At(found.to_owned(), reach));
        let (token, insecure) = (Some(PathBuf::from("token")), true);
        let [tls_cert, tls_key, tls_ca] = ["a", "b", "c"].map(|name| Some(PathBuf::from(name)));
        let files = || TlsFiles { certificate: "a".into(), key: "b".into(), ca: "c".into() };
        let tls = AccessArgs { tls_cert, tls_key, tls_ca, ..AccessArgs::default() };
        let launch = Launch::External;
        check(found, launch, &AccessArgs::default(), exposed());
        check(found, launch, &tls, exposed());
        check(found, launch, &AccessArgs { token_file: token.clone(), ..AccessArgs::default() }, exposed());
        let both = AccessArgs { token_file: token.clone(), ..tls };
        check(found, launch, &both, at(HttpReach::Others(files(), "token".into())));
        let open = AccessArgs { insecure, ..AccessArgs::default() };
        check(found, launch, &open, at(HttpReach::OthersInsecurely(None)));
        let with_token = AccessArgs { token_file: token.clone(), ..open };
        check(found, launch, &with_token, at(HttpReach::OthersInsecurely(token)));
    }
}
