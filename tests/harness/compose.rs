//! The containers of deploy/compose.yaml on a real Docker engine, in a project of the test's own that goes with it: image,
//! containers, networks and volumes. Whatever a test that was killed has left goes with the next one.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::is_alive;

/// What the names of these tests' projects begin with; then comes the test's process.
const PREFIX: &str = "telar-test-";

/// A project of containers, gone with it.
pub struct Compose {
    project: String,
    /// Variables that deploy/compose.yaml reads.
    settings: Vec<(String, String)>,
    /// Where a `docker` that can build with `BuildKit` comes first.
    path: OsString,
}

impl Compose {
    /// A project with these settings. None, with a message, where there is no Docker engine.
    pub fn if_any(settings: &[(&str, &str)]) -> Option<Self> {
        let info = Command::new("docker").args(["info", "--format", "{{.ServerVersion}}"]).output();
        if !info.is_ok_and(|info| info.status.success()) {
            // Said also where the test passes: the test runner keeps back only what goes through the print macros.
            let _ = writeln!(std::io::stderr(), "skipped: no Docker engine");
            return None;
        }
        let project = format!("{PREFIX}{}", std::process::id());
        let own = [("IMAGE", project.as_str()), ("BINARIES", "prebuilt"), ("RUNTIME", "telar-base")];
        let settings = own.iter().chain(settings).map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let compose = Self { project, settings, path: path_with_buildkit() };
        compose.sweep();
        run(&mut Command::new(source("../.ci/image")));
        Some(compose)
    }

    /// Runs docker-compose with arguments separated by spaces.
    pub fn run(&self, arguments: &str) -> String {
        run(&mut self.command(arguments))
    }

    /// The containers of a service, in no order.
    pub fn containers(&self, service: &str) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let found = docker(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service]);
        found.split_whitespace().map(str::to_owned).collect()
    }

    /// A network's full name.
    pub fn network(&self, name: &str) -> String {
        format!("{}_{name}", self.project)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = compose_program();
        // What the caller has set for its own programs is not meant for these.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
            command.env_remove(name);
        }
        command
            .args(["-f".into(), source("../deploy/compose.yaml"), "-p".into(), PathBuf::from(&self.project)])
            .args(arguments.split_whitespace())
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            // The last three are for docker-compose 1.29 and its older `docker`.
            .env("DOCKER_BUILDKIT", "1")
            .env("COMPOSE_DOCKER_CLI_BUILD", "1")
            .env("PATH", &self.path);
        command
    }

    /// Removes the projects of processes that are no more.
    fn sweep(&self) {
        let label = "{{.Label \"com.docker.compose.project\"}}";
        let found = docker(&["ps", "--all", "--format", label]);
        for project in found.lines() {
            let process = project.strip_prefix(PREFIX).and_then(|process| process.parse().ok());
            if process.is_some_and(|process| !is_alive(process)) {
                Self { project: project.to_owned(), settings: self.settings.clone(), path: self.path.clone() };
            }
        }
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        // The engine may be gone; a test that fails already has said why.
        let _ = self.command("down --volumes --remove-orphans --timeout 0").output();
        let _ = Command::new("docker").args(["rmi", "--force", &self.project]).output();
    }
}

/// Runs docker to a good end, and gives what it printed.
pub fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

/// A field of a container, such as `.State.Pid`.
pub fn inspect(container: &str, field: &str) -> String {
    docker(&["inspect", "--format", &format!("{{{{{field}}}}}"), container])
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(status.success(), "{shown} ended with {status}:\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).trim().to_owned()
}

/// `docker compose`, or the older `docker-compose`.
fn compose_program() -> Command {
    let is_plugin = Command::new("docker").args(["compose", "version"]).output();
    if is_plugin.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("docker");
        command.arg("compose");
        return command;
    }
    Command::new("docker-compose")
}

/// $PATH, with the folder first whose `docker` has `BuildKit`: a newer client without its plug-in has not, and may hide an older
/// one that has.
fn path_with_buildkit() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let can_build = |folder: &&PathBuf| {
        let asked = Command::new(folder.join("docker")).args(["build", "--help"]).env("DOCKER_BUILDKIT", "1").output();
        asked.is_ok_and(|output| output.status.success())
    };
    let found = folders.iter().find(can_build).cloned();
    std::env::join_paths(found.into_iter().chain(folders)).expect("folders that were a path before")
}

/// A file of the project.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
