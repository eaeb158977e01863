//! What a coordinator played by hand says to a worker.

use model::arch::Architecture;
use model::params::ParamLayout;
use proto::v1::{Encoding, Fence, Recipe, Welcome};

/// The first process of a run's coordinator.
pub fn fence() -> Fence {
    Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }
}

/// The welcome to a run of two shards of four images.
pub fn welcome(fence: Fence, data_fingerprint: String) -> Welcome {
    let recipe = Recipe {
        architecture: "denoising".to_owned(),
        batch_size: 8,
        shards: 2,
        learning_rate: 0.5,
        momentum: 0.9,
        nesterov: false,
        noise: "gaussian".to_owned(),
        noise_strength: 0.2,
        shuffle: true,
        seed: 7,
    };
    Welcome {
        worker_id: 3,
        fence: Some(fence),
        recipe: Some(recipe),
        data_fingerprint,
        layout_fingerprint: ParamLayout::of(Architecture::Denoising).fingerprint().0,
        encoding: Encoding::F32.into(),
        shared_memory: None,
    }
}
