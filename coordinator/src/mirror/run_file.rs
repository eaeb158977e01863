//! The files of a run that are mirrored, each with its path in the run folder, which is also its path below the mirror's
//! prefix. A closed list: a path from an object store that is not on it is never used as a path on this machine.

use std::cmp::Reverse;

use events::PictureFile;

use crate::checkpoints;

/// A file of a run. Files are ordered as they are uploaded: what a checkpoint needs comes before the checkpoint, of the
/// checkpoints the newest comes first, and last what none needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunFile {
    /// `run.json`.
    Description,
    /// A picture of an epoch.
    Picture(PictureFile),
    /// `model.safetensors`.
    Weights,
    /// `best.safetensors`.
    BestWeights,
    /// `history.jsonl`.
    History,
    /// `steps.jsonl`.
    Steps,
    /// The checkpoint of a step.
    Checkpoint(Reverse<u64>),
    /// `events.jsonl`, which no checkpoint needs.
    Events,
}

impl RunFile {
    /// Those of which a run has one.
    pub const SINGLE: [Self; 6] =
        [Self::Description, Self::Weights, Self::BestWeights, Self::History, Self::Steps, Self::Events];

    /// The checkpoint of a step.
    pub fn checkpoint(step: u64) -> Self {
        Self::Checkpoint(Reverse(step))
    }

    /// The step of a checkpoint.
    pub fn checkpoint_step(self) -> Option<u64> {
        match self {
            Self::Checkpoint(Reverse(step)) => Some(step),
            _ => None,
        }
    }

    /// The path in the run folder.
    pub fn path(self) -> String {
        match self {
            Self::Description => "run.json".to_owned(),
            Self::Picture(file) => file.path(),
            Self::Weights => "model.safetensors".to_owned(),
            Self::BestWeights => "best.safetensors".to_owned(),
            Self::History => "history.jsonl".to_owned(),
            Self::Steps => "steps.jsonl".to_owned(),
            Self::Events => "events.jsonl".to_owned(),
            Self::Checkpoint(Reverse(step)) => format!("checkpoints/{}", checkpoints::file_name(step)),
        }
    }

    /// The file of a path in the run folder; None if it is not mirrored.
    pub fn parse(path: &str) -> Option<Self> {
        let file = match path.split_once('/') {
            None => Self::SINGLE.into_iter().find(|file| file.path() == path),
            Some(("checkpoints", name)) => checkpoints::step_of(name).map(Self::checkpoint),
            Some((folder, name)) => PictureFile::of(folder, name).map(Self::Picture),
        };
        // A number can be written in several ways, and a file has one path.
        file.filter(|file| file.path() == path)
    }

    /// Whether lines are added to it while it is read.
    pub fn has_lines(self) -> bool {
        matches!(self, Self::History | Self::Steps | Self::Events)
    }
}

#[cfg(test)]
mod tests {
    use events::PictureName;

    use super::*;

    fn picture(name: &str, epoch: u32) -> RunFile {
        RunFile::Picture(PictureFile { name: PictureName::of_folder(name).expect("a name"), epoch })
    }

    #[test]
    fn run_file_path_round_trips() {
        let files = [
            (RunFile::Description, "run.json"),
            (picture("reconstructions", 7), "reconstructions/epoch-07.png"),
            (picture("reconstructions", 107), "reconstructions/epoch-107.png"),
            (picture("attention-2", 7), "attention-2/epoch-07.png"),
            (picture("codes", 7), "codes/epoch-07.png"),
            (RunFile::Weights, "model.safetensors"),
            (RunFile::BestWeights, "best.safetensors"),
            (RunFile::History, "history.jsonl"),
            (RunFile::Steps, "steps.jsonl"),
            (RunFile::Events, "events.jsonl"),
            (RunFile::checkpoint(12), "checkpoints/step-00000012.safetensors"),
        ];
        for (file, path) in files {
            assert_eq!(file.path(), path);
            assert_eq!(RunFile::parse(path), Some(file));
        }
    }

    #[test]
    fn unknown_paths_are_not_run_files() {
        let paths = [
            "",
            "run.json/",
            "../run.json",
            "checkpoints/../run.json",
            "checkpoints/step-12.safetensors",
            "checkpoints/step-+0000012.safetensors",
            "checkpoints/.telar-step-00000012.safetensors",
            "checkpoints/a/step-00000012.safetensors",
            "reconstructions/epoch-7.png",
            "reconstructions/a/epoch-07.png",
            "codes/epoch-07.svg",
            "Maps/epoch-07.png",
            "../maps/epoch-07.png",
            "maps/../epoch-07.png",
            "journal/epoch-07.png",
            "tensorboard/epoch-07.png",
            "checkpoints/epoch-07.png",
            "journal/a.safetensors",
            ".lock",
        ];
        for path in paths {
            assert_eq!(RunFile::parse(path), None, "{path}");
        }
    }

    #[test]
    fn upload_order_is_lines_then_newest_checkpoint() {
        let ordered = [
            RunFile::Description,
            picture("codes", 2),
            picture("reconstructions", 1),
            picture("reconstructions", 2),
            RunFile::Weights,
            RunFile::BestWeights,
            RunFile::History,
            RunFile::Steps,
            RunFile::checkpoint(20),
            RunFile::checkpoint(10),
            RunFile::Events,
        ];
        assert!(ordered.is_sorted(), "{ordered:?}");
    }
}
