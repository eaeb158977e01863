//! Before a run begins: where it is mirrored, whether that place is free or its own, and whether the run has to be
//! downloaded first. After that a run from a mirror is a run in a folder like any other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use engine::files::create_folder;
use engine::report::RunFolder;
use tracing::warn;

use super::{MirrorError, Survey, check_apart, download, survey};
use crate::config::{Config, RunChoice};
use crate::location::Location;
use crate::start::{can_begin_again, existing_run, has_state, lock, unreadable};

/// Where a run is mirrored, and what is known of that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorPlan {
    /// Where.
    pub location: Location,
    /// Greater than that of any process of the run that has mirrored there.
    pub incarnation_min: u32,
    /// A run that came to no checkpoint, whose description may be overwritten.
    pub replaces: Option<String>,
    /// Steps of what has the name of a checkpoint there, and could not be used.
    pub unusable_steps: BTreeSet<u64>,
}

/// Downloads the run to resume where that is due, so that `config` names a folder from then on, and makes sure that the run
/// may be mirrored where it is to be. A mirror that does not answer is no obstacle to a run that is new or in a folder here.
///
/// # Errors
/// If there is no such run, it cannot be downloaded, or the mirror refuses or belongs to another run.
pub fn prepare(config: &mut Config) -> anyhow::Result<Option<MirrorPlan>> {
    if let Some(from) = config.download.take() {
        let found = survey(&from)?;
        let (run_id, unusable_steps) = download_run(config, &from, &found)?;
        let location = config.mirror.get_or_insert_with(|| from.clone()).clone();
        if location != from {
            let found = survey_if_reachable(&location)?;
            return Ok(Some(MirrorPlan::for_run(location, found, &run_id)?));
        }
        return Ok(Some(MirrorPlan { unusable_steps, ..MirrorPlan::for_run(location, Some(found), &run_id)? }));
    }
    let Some(location) = config.mirror.clone() else { return Ok(None) };
    if let RunChoice::New(Some(folder)) | RunChoice::Resume(Some(folder)) | RunChoice::ResumeOrNew(Some(folder)) =
        &config.run
    {
        check_apart(&location, folder)?;
    }
    let local = existing_run(config).filter(|folder| has_state(folder, config.n_checkpoints_kept));
    let plan = match (&config.run, local) {
        (RunChoice::Resume(_) | RunChoice::ResumeOrNew(_), Some(folder)) => {
            let found = survey_if_reachable(&location)?;
            match RunFolder::read_description(&folder).and_then(|run| Some(run["run_id"].as_str()?.to_owned())) {
                Some(run_id) => MirrorPlan::for_run(location, found, &run_id)?,
                // The uploads find out.
                None => MirrorPlan::new(location),
            }
        }
        (RunChoice::ResumeOrNew(_), None) => {
            // Without an answer it is unknown whether there is a run, which a new one must not replace.
            let found = survey(&location)?;
            if found.newest_step().is_some() {
                let (run_id, unusable_steps) = download_run(config, &location, &found)?;
                MirrorPlan { unusable_steps, ..MirrorPlan::for_run(location, Some(found), &run_id)? }
            } else {
                MirrorPlan { replaces: found.owner.map(|owner| owner.run_id), ..MirrorPlan::new(location) }
            }
        }
        (RunChoice::New(folder), _) => {
            let found = survey_if_reachable(&location)?.unwrap_or_default();
            let replaces = found.owner.as_ref().map(|owner| owner.run_id.clone()).filter(|run_id| {
                let begun = folder.as_ref().filter(|folder| can_begin_again(folder, config.n_checkpoints_kept));
                let description = begun.and_then(|folder| RunFolder::read_description(folder));
                found.newest_step().is_none() && description.is_some_and(|description| description["run_id"] == *run_id)
            });
            if replaces.is_none() {
                found.check_free(&location)?;
            }
            MirrorPlan { replaces, ..MirrorPlan::new(location) }
        }
        // It ends with an error of its own.
        (RunChoice::Resume(_), None) => MirrorPlan::new(location),
    };
    Ok(Some(plan))
}

impl MirrorPlan {
    fn new(location: Location) -> Self {
        Self { location, incarnation_min: 1, replaces: None, unusable_steps: BTreeSet::new() }
    }

    /// For a run that was begun earlier.
    fn for_run(location: Location, found: Option<Survey>, run_id: &str) -> Result<Self, MirrorError> {
        let Some(found) = found else { return Ok(Self::new(location)) };
        found.check_owner(&location, run_id)?;
        let incarnation_min = found.owner.map_or(1, |owner| owner.incarnation.saturating_add(1));
        Ok(Self { incarnation_min, ..Self::new(location) })
    }
}

fn survey_if_reachable(location: &Location) -> Result<Option<Survey>, MirrorError> {
    match survey(location) {
        Err(error @ MirrorError::Unreachable { .. }) => {
            warn!("{error}; the run goes on, and is mirrored when the store answers");
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Downloads a run into the folder that was named, or a new one; gives the run, and the steps that [`download`] gives.
fn download_run(config: &mut Config, from: &Location, found: &Survey) -> anyhow::Result<(String, BTreeSet<u64>)> {
    let no_run = |what: &str| MirrorError::NoRun { url: from.to_string(), found: what.to_owned() };
    let owner = found.owner.as_ref().ok_or_else(|| no_run("no run.json"))?;
    let recipe = owner.recipe.as_ref().ok_or_else(|| no_run("run.json of an unknown program"))?;
    let (RunChoice::New(folder) | RunChoice::Resume(folder) | RunChoice::ResumeOrNew(folder)) = &config.run;
    let (folder, is_new) = match folder {
        Some(folder) => (folder.clone(), !folder.exists()),
        None => (RunFolder::reserve(&recipe.task)?, true),
    };
    let downloaded = download_into(&folder, config, from, found, &owner.run_id);
    if downloaded.is_err() && is_new {
        // Fails where something is in it by now, which is not to be lost.
        let _ = std::fs::remove_file(folder.join(".lock")).and_then(|()| std::fs::remove_dir(&folder));
    }
    let unusable_steps = downloaded?;
    config.run = RunChoice::Resume(Some(folder));
    Ok((owner.run_id.clone(), unusable_steps))
}

fn download_into(
    folder: &Path,
    config: &Config,
    from: &Location,
    found: &Survey,
    run_id: &str,
) -> anyhow::Result<BTreeSet<u64>> {
    create_folder(folder)?;
    let _lock = lock(folder)?;
    // A process that was killed while it moved downloaded files has left some of them, and no checkpoint.
    let is_this_run = RunFolder::read_description(folder).is_some_and(|description| description["run_id"] == run_id);
    if has_state(folder, config.n_checkpoints_kept) || (RunFolder::holds_run(folder) && !is_this_run) {
        return Err(MirrorError::LocalRun { url: from.to_string(), folder: PathBuf::from(folder) }.into());
    }
    Ok(download(from, found, folder, |checkpoint| unreadable(config, checkpoint))?)
}
