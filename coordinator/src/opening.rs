//! What the coordinator says to people at the beginning of a run: what is trained, by whom, where it goes, and where to look.

use engine::data::Split;
use engine::report::Screen;
use engine::task::OpenTask;
use serde_json::json;

use crate::args::Wire;
use crate::commands::worker_command;
use crate::config::{Config, Output, Workers};
use crate::endpoint::Endpoint;
use crate::http::HttpServer;
use crate::start::Start;

/// A screen on which that stands. The page is served by `http`, if it is.
pub fn begin_screen(
    config: &Config,
    start: &Start,
    is_shared: bool,
    task: &dyn OpenTask,
    endpoint: &Endpoint,
    http: Option<&HttpServer>,
) -> Screen {
    let url = http.map(|http| http.url.as_str());
    let recipe = &start.recipe;
    let (n_samples, samples) = (task.n_samples(Split::Train), task.spec().samples);
    let n_steps = recipe.n_steps(n_samples.into());
    let mut screen = Screen::new(samples, n_steps, recipe.epochs.get(), config.output == Output::Json);
    let mut lines = vec![recipe.describe(n_samples, samples, task.data_name())];
    lines.extend(start.initial_text.clone());
    let wire = match start.wire {
        Wire::GrpcBf16 => "gradients as bf16",
        Wire::Auto if is_shared => "gradients as f32, through shared memory on this machine",
        Wire::Auto | Wire::Grpc => "gradients as f32",
    };
    let n_workers = config.n_workers;
    lines.push(match &config.workers {
        Workers::Local { backend, .. } => {
            format!("{n_workers} local workers x {} threads, {wire}", backend.threads.unwrap_or(1))
        }
        Workers::External { .. } => format!("{n_workers} workers expected, {wire}"),
    });
    lines.push(format!(
        "run folder: {}, a checkpoint each {}, {} kept",
        start.folder.path().display(),
        config.checkpoint_every,
        config.n_checkpoints_kept
    ));
    if let Some(mirror) = &config.mirror {
        lines.push(format!("mirror: {mirror}, uploaded to behind the training"));
    }
    if let Some(from) = &start.resumed_from {
        lines.push(format!("resumed at step {} from {}", start.state.step, from.display()));
        screen.set_position(start.state.step);
    }
    lines.extend(url.map(|url| format!("page: {url}")));
    screen.begin(&lines);
    if matches!(config.workers, Workers::External { .. }) {
        screen.command_row("start each with", &worker_command(config, &endpoint.display_address));
    }
    screen.json_line(&json!({
        "event": "begin", "run_dir": start.folder.path().display().to_string(), "address": endpoint.display_address,
        "step": start.state.step, "n_steps": n_steps, "http": url,
    }));
    screen
}
