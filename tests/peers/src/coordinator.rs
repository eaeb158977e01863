//! What a coordinator played by hand says to a worker.

use engine::recipe::{Recipe, RecipeArgs};
use model::arch::Architecture;
use model::task::book_task;
use proto::v1::{Encoding, Fence, Welcome};

/// The first process of a run's coordinator.
pub fn fence() -> Fence {
    Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }
}

/// The welcome to a run of two shards of four images.
pub fn welcome(fence: Fence, data_fingerprint: String) -> Welcome {
    let args = RecipeArgs {
        batch_size: Some(8),
        learning_rate: Some(0.5),
        momentum: Some(0.9),
        seed: Some(7),
        ..RecipeArgs::default()
    };
    let task = book_task(Architecture::Denoising);
    let recipe = Recipe::new(args, task.spec(), 2).expect("the book's recipe with a small batch");
    Welcome {
        worker_id: 3,
        fence: Some(fence),
        recipe: recipe.to_json().into(),
        data_fingerprint,
        layout_fingerprint: task.spec().layout.fingerprint().0,
        encoding: Encoding::F32.into(),
        shared_memory: None,
    }
}
