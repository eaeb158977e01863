//! `--show`: the page of runs that are over, or that another process trains, by their folders.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use engine::args::AccessArgs;
use engine::report::check_output;
use engine::say;
use observe::folder::FolderReader;
use observe::server::Runs;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio_util::sync::CancellationToken;

use crate::args::Launch;
use crate::config::{ConfigError, http};
use crate::http::HttpPort;

/// How often to look whether Ctrl-C was pressed.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Serves the page until Ctrl-C.
///
/// # Errors
/// If a folder holds no run, or the address cannot be listened at.
pub fn show(folders: &[PathBuf], address: Option<String>, access: &AccessArgs, json: bool) -> anyhow::Result<ExitCode> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&is_over))?;
    }
    let http = http(address, Launch::Local, access)?;
    let (mut runs, shutdown) = (Runs::default(), CancellationToken::new());
    let mut followed = Vec::new();
    for folder in folders {
        let reader = FolderReader::open(folder)?;
        followed.push((runs.add(reader.name(), Some(reader.path())), reader));
    }
    let Some(port) = HttpPort::open(&http)? else { return Err(ConfigError::ShowWithoutHttp.into()) };
    let url = port.url.clone();
    for (run, reader) in followed {
        let shutdown = shutdown.clone();
        std::thread::Builder::new().name("folder".to_owned()).spawn(move || run.follow(reader, &shutdown))?;
    }
    let server = port.start(runs, None)?;
    if json {
        say!("{}", json!({ "event": "show", "http": url }));
    } else {
        say!("look at {url}; Ctrl-C ends this");
    }
    check_output()?;
    while !is_over.load(Ordering::Relaxed) {
        sleep(LOOK_PAUSE);
    }
    shutdown.cancel();
    server.finish();
    Ok(ExitCode::SUCCESS)
}
