//! What a session's run is, checked from the coordinator's welcome: recipe, layout, fences, and how gradients travel.

use std::sync::Arc;

use engine::params::LayoutFingerprint;
use engine::recipe::{Recipe, RecipeError};
use engine::task::{AnyTask, OpenTask, TaskError, Tasks};
use proto::v1::{Encoding, Fence, Ready, SharedMemory, Welcome};

use crate::link::GradientTransport;

/// The run as the coordinator describes it.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Which worker this is.
    pub worker_id: u64,
    /// What every result belongs to.
    pub fence: Fence,
    /// What is trained.
    pub task: Arc<dyn AnyTask>,
    /// How.
    pub recipe: Recipe,
    /// Values of the parameters.
    pub n_params: usize,
    /// The layout as this program has it, which is the coordinator's too.
    pub layout_fingerprint: LayoutFingerprint,
    /// Which data set.
    pub data_fingerprint: String,
    /// How gradients travel.
    pub encoding: Encoding,
    /// Where they can lie instead.
    pub shared_memory: Option<SharedMemory>,
}

/// All that computing a shard needs besides the parameters.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The run.
    pub terms: Terms,
    /// What is trained, on what.
    pub task: Arc<dyn OpenTask>,
    /// How gradients travel.
    pub transport: GradientTransport,
}

/// A welcome that this program cannot follow.
#[derive(Debug, thiserror::Error)]
pub enum TermsError {
    /// A part that every welcome has is not there.
    #[error("expected a welcome with its {part}, found none; use a coordinator and workers of one version")]
    Missing {
        /// The part.
        part: &'static str,
    },
    /// A recipe whose values do not go together.
    #[error("{0}")]
    Recipe(#[from] RecipeError),
    /// A task that this program does not have, or has otherwise.
    #[error("{0}")]
    Task(#[from] TaskError),
    /// Other parameters.
    #[error("expected the parameter layout {expected} of {task}, found {found}; {SAME_VERSION}")]
    Layout {
        /// The task.
        task: &'static str,
        /// This program's.
        expected: LayoutFingerprint,
        /// The coordinator's.
        found: LayoutFingerprint,
    },
    /// Not a data set's fingerprint.
    #[error("expected the data set's blake3 as 64 hexadecimal digits, found `{found}`; {SAME_VERSION}")]
    DataFingerprint {
        /// The text found.
        found: String,
    },
    /// Gradients that travel in another way.
    #[error("expected gradients as f32 or bf16, found the encoding number {found}; {SAME_VERSION}")]
    Encoding {
        /// The number found.
        found: i32,
    },
}

const SAME_VERSION: &str = "use a coordinator and workers of one version";

impl Terms {
    /// What a welcome says, for a program that has these tasks.
    ///
    /// # Errors
    /// If it cannot be followed.
    pub fn new(welcome: Welcome, tasks: &Tasks) -> Result<Self, TermsError> {
        let missing = |part| TermsError::Missing { part };
        if welcome.recipe.is_empty() {
            return Err(missing("recipe"));
        }
        let recipe = Recipe::from_json(&welcome.recipe)?;
        let task = tasks.build(&recipe.task, &recipe.settings)?;
        let layout = Arc::clone(&task.spec().layout);
        let (expected, found) = (layout.fingerprint(), LayoutFingerprint(welcome.layout_fingerprint));
        if found != expected {
            return Err(TermsError::Layout { task: task.spec().name, expected, found });
        }
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let found = welcome.data_fingerprint;
        if found.len() != 64 || !found.bytes().all(is_digit) {
            return Err(TermsError::DataFingerprint { found });
        }
        Ok(Self {
            worker_id: welcome.worker_id,
            fence: welcome.fence.ok_or(missing("fence"))?,
            task,
            recipe,
            n_params: layout.n_params(),
            layout_fingerprint: expected,
            data_fingerprint: found,
            encoding: encoding(welcome.encoding)?,
            shared_memory: welcome.shared_memory,
        })
    }
}

impl Terms {
    /// With the data set, all there is to know.
    pub(crate) fn plan(&self, task: Arc<dyn OpenTask>) -> Plan {
        let transport = GradientTransport::open(self.encoding, self.shared_memory.as_ref(), self.n_params);
        Plan { terms: self.clone(), task, transport }
    }
}

impl Plan {
    /// The message to the coordinator when the data set is open.
    pub fn ready(&self) -> Ready {
        let Terms { fence, layout_fingerprint, data_fingerprint, .. } = &self.terms;
        Ready {
            fence: Some(fence.clone()),
            layout_fingerprint: layout_fingerprint.0,
            data_fingerprint: data_fingerprint.clone(),
            shared_memory: self.transport.is_shared(),
        }
    }
}

fn encoding(found: i32) -> Result<Encoding, TermsError> {
    match Encoding::try_from(found) {
        Ok(encoding @ (Encoding::F32 | Encoding::Bf16)) => Ok(encoding),
        Ok(Encoding::Unspecified) | Err(_) => Err(TermsError::Encoding { found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Welcome), part: &str) {
        let mut welcome =
            peers::welcome(Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }, "0".repeat(64));
        change(&mut welcome);
        match Terms::new(welcome, &model::task::tasks()) {
            Ok(terms) => assert!(part.is_empty(), "expected `{part}`, found {terms:?}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!part.is_empty() && text.contains(part), "`{text}` does not say `{part}`");
            }
        }
    }

    #[test]
    fn invalid_welcome_is_refused_with_reason() {
        check(|_| {}, "");
        check(|welcome| welcome.fence = None, "expected a welcome with its fence");
        check(|welcome| welcome.recipe.clear(), "expected a welcome with its recipe");
        check(|welcome| welcome.recipe = "{}".into(), "expected a recipe as JSON, found missing field");
        let unknown = r#"{"task":"words","settings":{},"epochs":1,"batch_size":8,"shards":2,"optimizer":{"learning_rate":1,"momentum":0,"nesterov":false},"shuffle":true,"seed":1,"max_steps":null,"init_from":null}"#;
        check(
            |welcome| welcome.recipe = unknown.into(),
            "expected the task conv, recurrent or denoising, which this program knows, found the task `words`",
        );
        check(|welcome| welcome.layout_fingerprint = 7, "of denoising, found 0000000000000007; use a coordinator and");
        check(|welcome| welcome.data_fingerprint = "../..".to_owned(), "64 hexadecimal digits, found `../..`");
        check(|welcome| welcome.encoding = 0, "found the encoding number 0");
        check(|welcome| welcome.encoding = 99, "found the encoding number 99");
    }
}
