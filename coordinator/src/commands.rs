//! What to type to start a worker, and to go on with a run that was stopped.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use proto::tls::TlsFiles;

use crate::args::{KEEP_DEFAULT, Wire};
use crate::config::{Access, Config, Http, HttpReach, JournalSteps, ListenAddress, Reach, Workers};

/// What starts a worker for the coordinator at an address, in a folder with the files that the worker has as `certificates` names them.
pub fn worker_command(config: &Config, address: &str) -> String {
    let mut flags = Flags(Vec::new());
    flags.add("--coordinator", address);
    if let Workers::External { access, .. } = &config.workers {
        if access.tls.is_some() {
            flags.add("--tls-cert", "tls.crt");
            flags.add("--tls-key", "tls.key");
            flags.add("--tls-ca", "ca.crt");
        }
        if access.token_file.is_some() {
            flags.add("--token-file", "token");
        }
    }
    config.invocation.of_worker().command(flags.0)
}

/// What goes on with a run that was stopped, in its folder, with workers that find the coordinator at `address`: what is trained
/// comes from the checkpoint, and the rest is as it was.
pub fn resume_command(config: &Config, address: &str, folder: &Path) -> String {
    let mut flags = Flags(Vec::new());
    flags.add("--workers", config.n_workers.to_string());
    flags.add("--resume", folder);
    let access = match &config.workers {
        Workers::Local { .. } => None,
        Workers::External { listen, access } => Some((listen, access)),
    };
    if let Some((listen, access)) = access {
        flags.add("--launch", "external");
        flags.add("--listen", listened(listen, address));
        flags.add_access(access, &config.http);
    }
    if !config.data.data.is_auto() {
        flags.add("--data", config.data.data.as_str());
    }
    if config.audit > 0.0 {
        flags.add("--audit", config.audit.to_string());
    }
    flags.add_if(config.journal == JournalSteps::Yes, "--journal");
    if config.n_checkpoints_kept != KEEP_DEFAULT as usize {
        flags.add("--keep", config.n_checkpoints_kept.to_string());
    }
    if config.wire == Some(Wire::Grpc) {
        flags.add("--wire", "grpc");
    }
    if let Some(location) = &config.mirror {
        flags.add("--mirror", location.to_string());
    }
    flags.add_if(config.tensorboard, "--tensorboard");
    match &config.http {
        Http::At(address, _) => flags.add("--http", address),
        Http::Off if access.is_none() => flags.add("--http", "off"),
        Http::Off | Http::Default => {}
    }
    config.invocation.command(flags.0)
}

/// Where it waited for workers: the port may have been free to choose.
fn listened(listen: &ListenAddress, address: &str) -> String {
    match (listen, address.rsplit_once(':')) {
        (ListenAddress::Tcp(place), Some((_, port))) => {
            let host = place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host);
            format!("{host}:{port}")
        }
        _ => listen.to_string(),
    }
}

struct Flags(Vec<OsString>);

impl Flags {
    fn add(&mut self, flag: &str, value: impl AsRef<OsStr>) {
        self.0.extend([flag.into(), value.as_ref().to_owned()]);
    }

    fn add_if(&mut self, is_given: bool, flag: &str) {
        self.0.extend(is_given.then(|| flag.into()));
    }

    /// The flags that ask for the same proofs again.
    fn add_access(&mut self, access: &Access, http: &Http) {
        if let Some(TlsFiles { certificate, key, ca }) = &access.tls {
            self.add("--tls-cert", certificate);
            self.add("--tls-key", key);
            self.add("--tls-ca", ca);
        }
        if let Some(path) = &access.token_file {
            self.add("--token-file", path);
        }
        let is_page_open = matches!(http, Http::At(_, HttpReach::OthersInsecurely(_)));
        self.add_if(access.reach == Reach::OthersInsecurely || is_page_open, "--insecure");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    #[test]
    fn worker_command_has_files_that_coordinator_asks_for() {
        let check = |flags: &str, address: &str, expected: &str| {
            let config = config(&format!("--launch external --workers 1 {flags}")).expect(flags);
            assert_eq!(worker_command(&config, address), format!("worker --coordinator {address}{expected}"));
        };
        check("", "http://127.0.0.1:7187", "");
        check("--token-file d", "http://127.0.0.1:7187", " --token-file token");
        let files = " --tls-cert tls.crt --tls-key tls.key --tls-ca ca.crt";
        let tls = "--listen 0.0.0.0:1 --tls-cert a --tls-key b --tls-ca c";
        check(tls, "https://HOST:1", files);
        check(&format!("{tls} --token-file d"), "https://HOST:1", &format!("{files} --token-file token"));
    }

    #[test]
    fn resume_command_has_flags_that_are_not_in_checkpoint() {
        let check = |flags: &str, folder: &str, expected: &str| {
            let config = config(flags).expect(flags);
            let found = resume_command(&config, "http://127.0.0.1:7187", Path::new(folder));
            assert_eq!(found, format!("coordinator {expected}"));
        };
        check("--workers 2", "my run", "--workers 2 --resume 'my run'");
        check("--workers 2 --http off", "run", "--workers 2 --resume run --http off");
        let flags = "--workers 3 --audit 0.5 --journal --wire grpc --tensorboard --data DIR --http localhost:1";
        let expected =
            "--workers 3 --resume run --data DIR --audit 0.5 --journal --wire grpc --tensorboard --http localhost:1";
        check(flags, "run", expected);
        let external = "--launch external --workers 1";
        let expected = "--workers 1 --resume run --launch external --listen 127.0.0.1:7187";
        check(external, "run", expected);
        let open = "--workers 1 --resume run --launch external --listen 0.0.0.0:7187";
        check(&format!("{external} --listen 0.0.0.0:0 --insecure"), "run", &format!("{open} --insecure"));
        check(&format!("{external} --listen unix:a/b"), "run", &expected.replace("127.0.0.1:7187", "unix:a/b"));
        let page = "--http 0.0.0.0:2 --insecure";
        check(&format!("{external} {page}"), "run", &format!("{expected} --insecure --http 0.0.0.0:2"));
        let proofs = "--tls-cert a --tls-key b --tls-ca c --token-file d";
        check(&format!("{external} --listen 0.0.0.0:1 {proofs}"), "run", &format!("{open} {proofs}"));
        check("--workers 2 --keep 3", "run", "--workers 2 --resume run");
        check("--workers 2 --keep 10", "run", "--workers 2 --resume run --keep 10");
    }
}
