//! What a session's run is, checked from the coordinator's welcome: recipe, layout, fences, and how gradients travel.

use std::sync::Arc;

use model::arch::Architecture;
use model::data::Dataset;
use model::layers::{Noise, NoiseError};
use model::params::{LayoutFingerprint, ParamLayout};
use model::recipe::{Recipe, RecipeArgs, RecipeError};
use proto::v1::{self, Encoding, Fence, Ready, SharedMemory, Welcome};

use crate::link::GradientPath;

/// The run as the coordinator describes it.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Which worker this is.
    pub worker_id: u64,
    /// What every result belongs to.
    pub fence: Fence,
    /// What is trained; where the run ends is the coordinator's to know.
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
    /// Its data set.
    pub data: Arc<Dataset>,
    /// How gradients travel.
    pub path: GradientPath,
}

/// A welcome that this program cannot follow.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TermsError {
    /// A part that every welcome has is not there.
    #[error("expected a welcome with its {part}, found none; use a coordinator and workers of one version")]
    Missing {
        /// The part.
        part: &'static str,
    },
    /// A network that is not known.
    #[error("expected the network conv, recurrent or denoising, found `{found}`; {SAME_VERSION}")]
    Architecture {
        /// The word found.
        found: String,
    },
    /// A noise that is not known.
    #[error("{0}; {SAME_VERSION}")]
    Noise(#[from] NoiseError),
    /// A recipe whose values do not go together.
    #[error("{0}")]
    Recipe(#[from] RecipeError),
    /// Other parameters.
    #[error("expected the parameter layout {expected} of {architecture}, found {found}; {SAME_VERSION}")]
    Layout {
        /// The network.
        architecture: Architecture,
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

impl TryFrom<Welcome> for Terms {
    type Error = TermsError;

    fn try_from(welcome: Welcome) -> Result<Self, TermsError> {
        let missing = |part| TermsError::Missing { part };
        let recipe = recipe(welcome.recipe.ok_or(missing("recipe"))?)?;
        let layout = ParamLayout::of(recipe.architecture);
        let (expected, found) = (layout.fingerprint(), LayoutFingerprint(welcome.layout_fingerprint));
        if found != expected {
            return Err(TermsError::Layout { architecture: recipe.architecture, expected, found });
        }
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let found = welcome.data_fingerprint;
        if found.len() != 64 || !found.bytes().all(is_digit) {
            return Err(TermsError::DataFingerprint { found });
        }
        Ok(Self {
            worker_id: welcome.worker_id,
            fence: welcome.fence.ok_or(missing("fence"))?,
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
    pub(crate) fn plan(&self, data: Arc<Dataset>) -> Plan {
        let path = GradientPath::open(self.encoding, self.shared_memory.as_ref(), self.n_params);
        Plan { terms: self.clone(), data, path }
    }
}

impl Plan {
    /// What the coordinator is told when the data set is open.
    pub fn ready(&self) -> Ready {
        let Terms { fence, layout_fingerprint, data_fingerprint, .. } = &self.terms;
        Ready {
            fence: Some(fence.clone()),
            layout_fingerprint: layout_fingerprint.0,
            data_fingerprint: data_fingerprint.clone(),
            shared_memory: self.path.is_shared(),
        }
    }
}

fn encoding(found: i32) -> Result<Encoding, TermsError> {
    match Encoding::try_from(found) {
        Ok(encoding @ (Encoding::F32 | Encoding::Bf16)) => Ok(encoding),
        Ok(Encoding::Unspecified) | Err(_) => Err(TermsError::Encoding { found }),
    }
}

/// The recipe of one epoch, whose number of epochs is never asked for here.
fn recipe(recipe: v1::Recipe) -> Result<Recipe, TermsError> {
    let named = Architecture::ALL.into_iter().find(|architecture| architecture.name() == recipe.architecture);
    let args = RecipeArgs {
        arch: Some(named.ok_or(TermsError::Architecture { found: recipe.architecture })?),
        epochs: Some(1),
        batch_size: Some(recipe.batch_size),
        learning_rate: Some(recipe.learning_rate),
        momentum: Some(recipe.momentum),
        nesterov: recipe.nesterov,
        noise: Some(noise(&recipe.noise, recipe.noise_strength)?),
        no_shuffle: !recipe.shuffle,
        seed: Some(recipe.seed),
        max_steps: None,
        init_from: None,
    };
    Ok(Recipe::new(args, recipe.shards)?)
}

fn noise(kind: &str, strength: f32) -> Result<Noise, NoiseError> {
    // As the command line has it, where its range is checked.
    if kind == "none" { Ok(Noise::None) } else { format!("{kind}:{strength}").parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Welcome), part: &str) {
        let mut welcome =
            peers::welcome(Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }, "0".repeat(64));
        change(&mut welcome);
        match Terms::try_from(welcome) {
            Ok(terms) => assert!(part.is_empty(), "expected `{part}`, found {terms:?}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!part.is_empty() && text.contains(part), "`{text}` does not say `{part}`");
            }
        }
    }

    fn check_recipe(change: impl FnOnce(&mut v1::Recipe), part: &str) {
        check(|welcome| change(welcome.recipe.as_mut().expect("a recipe")), part);
    }

    #[test]
    fn a_welcome_that_cannot_be_followed_says_why() {
        check(|_| {}, "");
        check(|welcome| welcome.fence = None, "expected a welcome with its fence");
        check(|welcome| welcome.recipe = None, "expected a welcome with its recipe");
        check(|welcome| welcome.layout_fingerprint = 7, "of denoising, found 0000000000000007; use a coordinator and");
        check(|welcome| welcome.data_fingerprint = "../..".to_owned(), "64 hexadecimal digits, found `../..`");
        check(|welcome| welcome.encoding = 0, "found the encoding number 0");
        check(|welcome| welcome.encoding = 99, "found the encoding number 99");
    }

    #[test]
    fn a_recipe_is_checked_as_if_it_had_been_typed() {
        check_recipe(|recipe| recipe.architecture = "konv".to_owned(), "found `konv`");
        check_recipe(|recipe| recipe.batch_size = 0, "--batch-size");
        check_recipe(|recipe| recipe.shards = 0, "--shards");
        check_recipe(|recipe| recipe.shards = 9, "found --shards 9 with --batch-size 8");
        check_recipe(|recipe| recipe.learning_rate = f32::NAN, "found NaN");
        check_recipe(|recipe| recipe.momentum = 1.0, "--momentum from 0 to below 1");
        check_recipe(|recipe| recipe.noise = "salt".to_owned(), "found `salt:0.2`");
        check_recipe(|recipe| recipe.noise_strength = -1.0, "found `gaussian:-1`");
    }

    #[test]
    fn a_recipe_means_what_its_words_say() {
        let wire = v1::Recipe {
            architecture: "conv".to_owned(),
            batch_size: 12,
            shards: 3,
            learning_rate: 0.1,
            momentum: 0.5,
            nesterov: true,
            noise: "dropout".to_owned(),
            noise_strength: 0.3,
            shuffle: false,
            seed: u64::MAX,
        };
        let found = recipe(wire).expect("a recipe");
        assert_eq!((found.architecture, found.seed, found.shuffle), (Architecture::Conv, u64::MAX, false));
        assert_eq!((found.batch_size.get(), found.shards.get()), (12, 3));
        assert_eq!(found.noise, Noise::Dropout { rate: 0.3 });
        assert_eq!((found.sgd.learning_rate, found.sgd.momentum, found.sgd.nesterov), (0.1, 0.5, true));
        assert_eq!((found.max_steps, found.init_from), (None, None));
    }
}
