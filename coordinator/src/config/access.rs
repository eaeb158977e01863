//! What workers have to prove that others start, and what proves it with `--check`.

use std::path::PathBuf;

use engine::args::AccessArgs;
use proto::tls::TlsFiles;

use super::address::{ListenAddress, check_address};
use super::error::ConfigError;

/// What workers have to prove that others start.
#[derive(Clone, Debug)]
pub struct Access {
    /// The files for TLS, with which each has to have a certificate.
    pub tls: Option<TlsFiles>,
    /// The file with the token that each has to send.
    pub token_file: Option<PathBuf>,
    /// Whether the address can be reached from other machines.
    pub reach: Reach,
    /// Whether gRPC reflection is on.
    pub reflection: bool,
}

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From this machine.
    ThisMachine,
    /// From others, with TLS.
    Others,
    /// From others, and what goes there can be read and changed on the way.
    OthersInsecurely,
}

/// What workers have to prove at an address, if it is enough.
pub(super) fn access(listen: &ListenAddress, args: AccessArgs, reflection: bool) -> Result<Access, ConfigError> {
    let AccessArgs { tls_cert, tls_key, tls_ca, token_file, insecure } = args;
    let tls = TlsFiles::of_flags([tls_cert, tls_key, tls_ca])?;
    let reach = match (listen.is_beyond_this_machine(), &tls, insecure) {
        (_, Some(_), true) => return Err(ConfigError::InsecureWithTls),
        (true, None, false) => return Err(ConfigError::Exposed { found: listen.to_string() }),
        (true, None, true) => Reach::OthersInsecurely,
        (true, Some(_), false) => Reach::Others,
        (false, _, _) => Reach::ThisMachine,
    };
    if tls.is_some() && matches!(listen, ListenAddress::Unix(_)) {
        return Err(ConfigError::TlsOnSocket { found: listen.to_string() });
    }
    Ok(Access { tls, token_file, reach, reflection: reflection || reach == Reach::ThisMachine })
}

/// Local workers are identified by their user, in a folder that only this user can access.
pub(super) fn check_no_access(args: &AccessArgs) -> Result<(), ConfigError> {
    let AccessArgs { tls_cert, tls_key, tls_ca, token_file, insecure } = args;
    let flags = [
        ("--tls-cert", tls_cert.is_some()),
        ("--tls-key", tls_key.is_some()),
        ("--tls-ca", tls_ca.is_some()),
        ("--token-file", token_file.is_some()),
        ("--insecure", *insecure),
    ];
    let given = flags.into_iter().find(|(_, is_given)| *is_given);
    given.map_or(Ok(()), |(flag, _)| Err(ConfigError::AccessLocally { flag }))
}

/// The address to check, and the files for TLS, if it is asked for.
///
/// # Errors
/// If the text is no address, or files are missing.
pub fn check_target(text: &str, access: AccessArgs) -> Result<(ListenAddress, Option<TlsFiles>), ConfigError> {
    let Some(place) = text.strip_prefix("https://") else { return Ok((check_address(text)?, None)) };
    let files = TlsFiles::of_flags([access.tls_cert, access.tls_key, access.tls_ca])?;
    let files = files.ok_or_else(|| ConfigError::CheckWithoutTls { found: text.to_owned() })?;
    Ok((check_address(place)?, Some(files)))
}

#[cfg(test)]
mod tests {
    use super::super::Workers;
    use super::super::tests::config;
    use super::*;

    #[test]
    fn non_local_listen_address_needs_tls_or_insecure() {
        let tls = "--tls-cert a --tls-key b --tls-ca c";
        let reach = |flags: &str| {
            config(&format!("--launch external {flags}")).map(|config| match config.workers {
                Workers::External { access, .. } => (access.reach, access.reflection),
                Workers::Local { .. } => panic!("{flags} asks for external workers"),
            })
        };
        for listen in
            ["", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "unix:socket"]
        {
            let flags = if listen.is_empty() { String::new() } else { format!("--listen {listen}") };
            assert_eq!(reach(&flags), Ok((Reach::ThisMachine, true)), "{listen}");
            assert_eq!(reach(&format!("{flags} --insecure")), Ok((Reach::ThisMachine, true)), "{listen}");
        }
        for listen in
            ["0.0.0.0:1", "192.168.0.10:1", "[::]:1", "[::ffff:10.0.0.1]:1", "coordinator:1", "localhost.example:1"]
        {
            let flags = format!("--listen {listen}");
            let error = reach(&flags).expect_err(listen).to_string();
            for way_out in
                [&format!("`--listen {listen}`"), "--tls-cert, --tls-key and --tls-ca", "or write --insecure"]
            {
                assert!(error.contains(way_out), "{error}");
            }
            assert_eq!(reach(&format!("{flags} --insecure")), Ok((Reach::OthersInsecurely, false)), "{listen}");
            assert_eq!(reach(&format!("{flags} {tls}")), Ok((Reach::Others, false)), "{listen}");
            assert_eq!(reach(&format!("{flags} {tls} --reflection")), Ok((Reach::Others, true)), "{listen}");
            assert_eq!(reach(&format!("{flags} {tls} --insecure")), Err(ConfigError::InsecureWithTls), "{listen}");
        }
    }
}
