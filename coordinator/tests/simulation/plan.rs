//! What a seed stands for: what is trained, on what workers, over what network, and how much goes wrong.

use std::num::NonZeroU32;
use std::time::Duration;

use coordinator::config::{HashSteps, JournalSteps};
use coordinator::training::{AfterStop, AuditSecret, CheckpointEvery, Rounding, Rules, State};
use engine::optimizer::{Adam, Decay, LrSchedule, Optimizer, Rule};
use engine::recipe::Recipe;
use engine::sums::Metric;

use super::network::Network;
use super::sim_rng::SimRng;
use super::worker::{Lie, Lies};

/// One schedule's circumstances.
pub struct Plan {
    pub rules: Rules,
    pub initial: State,
    /// Places for workers: where a process ends, another one comes.
    pub n_slots: usize,
    pub network: Network,
    /// How many things go wrong, and the time between two of them in milliseconds.
    pub n_faults: u64,
    pub fault_gap: (u64, u64),
    /// How long a worker takes for a shard or a batch, in milliseconds.
    pub task_time: (u64, u64),
    /// How long a worker takes to get ready, in milliseconds.
    pub prepare_time: (u64, u64),
    /// How late the first workers come, in milliseconds.
    pub join_time: u64,
    /// How long a worker searches for a coordinator.
    pub search_max: Duration,
    /// How long a checkpoint takes to be on the disk, in milliseconds.
    pub save_time: (u64, u64),
    /// Whether each state is kept as soon as it is there.
    pub journal: JournalSteps,
    /// Whether each step's parameters are named.
    pub hash_steps: HashSteps,
    /// Whether some workers are on the coordinator's machine, where averaged gradients lie in memory.
    pub has_shared_memory: bool,
    /// What liars lie about, if there are any: the first process in each of the first slots.
    pub lies: Option<Lies>,
    pub n_liars: usize,
    /// How long they lie, once nothing else goes wrong any more, in milliseconds.
    pub lying_time: u64,
    /// Compute classes, which all give the same bits here.
    pub classes: &'static [&'static str],
    /// Slots that follow each other whose processes are one identity.
    pub identity_slots: usize,
}

impl Plan {
    pub fn draw(rng: &mut SimRng) -> Self {
        let lies = rng.is_one_in(3).then(|| draw_lies(rng));
        // Wrong bits that look usual are found where all are compared.
        let has_wrong_bits = lies.is_some_and(|lies| matches!(lies.lie, Lie::WrongBits | Lie::Guess));
        let network = draw_network(rng);
        let mut recipe = draw_recipe(rng);
        // By a number of its own, so that it moves nothing else that is drawn.
        let mut own = SimRng::new(!recipe.seed);
        if own.is_one_in(4) {
            recipe.patience = NonZeroU32::new(own.count(1..=2));
            recipe.epochs = NonZeroU32::new(own.count(2..=6)).expect("above 0");
        }
        let rounding = rng.pick(&[Rounding::None, Rounding::None, Rounding::Bf16]);
        let n_params = rng.number(1..=5);
        let initial = (0..n_params).map(|_| rng.pick(&[-1.0, -0.3, 0.0, 0.001, 0.7, 12.5])).collect();
        let rules = Rules {
            n_train: recipe.batch_size.get() * rng.count(1..=8) - rng.count(0..=recipe.batch_size.get() - 1),
            n_valid: rng.count(1..=1501),
            evaluation_batch: 500,
            metrics: const { &[Metric::share_of_parts("rounded_accuracy", 784)] },
            rounding,
            checkpoint_every: match rng.number(0..=5) {
                0 | 1 => CheckpointEvery::Epoch,
                n_steps => CheckpointEvery::Steps(n_steps - 1),
            },
            heartbeat_timeout: rng.time(1_500..=3_000),
            // Each message that is lost may cost as much.
            join_timeout: if network.is_rough() { rng.time(3_000..=8_000) } else { rng.time(3_000..=60_000) },
            audit: if has_wrong_bits { 1.0 } else { rng.pick(&[0.0, 0.0, 0.0, 0.3, 1.0]) },
            audit_secret: AuditSecret::new([u8::try_from(rng.number(0..=255)).expect("it is below 256"); 32]),
            // What a coordinator of another class finds has to be near only.
            own_class: if has_wrong_bits { "one" } else { rng.pick(&["one", "one", "foreign"]) }.to_owned(),
            after_stop: rng.pick(&[AfterStop::ComeBack, AfterStop::End]),
            recipe,
        };
        let n_slots = rng.pick(&[1, 2, 3, 4, 5, 6]);
        let task_ms = rng.pick(&[5, 20, 100, 300]);
        Self {
            initial: State::new(&rules.recipe, rounding, initial),
            n_slots,
            network,
            n_faults: rng.pick(&[0, 10, 30, 100, 300]),
            fault_gap: (0, rng.pick(&[1, 3, 10, 30]) * task_ms),
            task_time: (task_ms, task_ms + rng.pick(&[0, 1, task_ms])),
            prepare_time: (0, rng.pick(&[1, 10, 100, 5_000])),
            join_time: rng.pick(&[0, 10, 100, 20_000]),
            search_max: rng.time(5_000..=60_000),
            save_time: (1, rng.pick(&[2, 50, 500])),
            journal: if rng.is_one_in(4) { JournalSteps::Yes } else { JournalSteps::No },
            hash_steps: if own.is_one_in(4) { HashSteps::Yes } else { HashSteps::No },
            has_shared_memory: rounding == Rounding::None && own.is_one_in(2),
            identity_slots: rng.pick(&[1, 1, 2, 3, 6]),
            // They are of one identity: two that lie alike would be right.
            n_liars: rng.pick(&[1, 2]),
            lying_time: rng.pick(&[100, 2_000, 20_000]),
            classes: if lies.is_none() && rng.is_one_in(8) { &["one", "other"] } else { &["one"] },
            lies,
            rules,
        }
    }
}

fn draw_lies(rng: &mut SimRng) -> Lies {
    let lie = rng.pick(&[
        Lie::NotFinite,
        Lie::WrongLength,
        Lie::WrongCount,
        Lie::Stray,
        Lie::WrongBits,
        Lie::WrongBits,
        Lie::Nonsense,
        Lie::Undealt,
        Lie::Guess,
        Lie::Silent,
        Lie::Flood,
    ]);
    Lies { lie, n_true: rng.pick(&[0, 1, 3, 10]), is_once: rng.is_one_in(2), n_told: 0 }
}

/// A network on which no more happens to messages than that they take their time.
fn draw_orderly(rng: &mut SimRng) -> Network {
    Network { delay: (0, rng.pick(&[1, 10, 100, 400])), n_lost: 0, n_doubled: 0, n_overtaking: 0 }
}

fn draw_network(rng: &mut SimRng) -> Network {
    let orderly = draw_orderly(rng);
    if !rng.is_one_in(4) {
        return orderly;
    }
    Network {
        n_lost: rng.pick(&[0, 0, 5, 30]),
        n_doubled: rng.pick(&[0, 10, 50]),
        n_overtaking: rng.pick(&[0, 10, 50]),
        ..orderly
    }
}

/// How gradients change parameters. Drawn by a number of its own, so that it moves nothing else that is drawn.
fn draw_optimizer(sgd: Optimizer, seed: u64) -> (Optimizer, LrSchedule, Option<f64>) {
    let mut rng = SimRng::new(seed);
    let (adam, decay) = (Adam::default(), Decay::Step { factor: 0.5, epochs: 1 });
    let of = |rule| Optimizer { learning_rate: 0.01, weight_decay: 0.1, rule };
    let optimizer = rng.pick(&[sgd, sgd, of(Rule::Adam(adam)), of(Rule::AdamW(adam))]);
    let decay = rng.pick(&[Decay::Constant, Decay::Constant, Decay::Linear, Decay::Cosine, decay]);
    let schedule = LrSchedule { decay, warmup_steps: rng.pick(&[0, 0, 3]) };
    (optimizer, schedule, rng.pick(&[None, None, Some(0.5)]))
}

fn draw_recipe(rng: &mut SimRng) -> Recipe {
    let shards = rng.count(1..=8);
    let momentum = rng.pick(&[0.0, 0.9]);
    let epochs = rng.count(1..=3).try_into().expect("above 0");
    let batch_size = (shards + rng.count(0..=6)).try_into().expect("above 0");
    let sgd = Optimizer::sgd(0.01, momentum, momentum > 0.0 && rng.is_one_in(2));
    let shuffle = rng.is_one_in(2);
    let seed = rng.number(0..=u64::MAX - 1);
    let (optimizer, lr_schedule, clip_norm) = draw_optimizer(sgd, seed);
    Recipe {
        task: "denoising".to_owned(),
        settings: serde_json::Value::Null,
        epochs,
        batch_size,
        shards: shards.try_into().expect("above 0"),
        optimizer,
        lr_schedule,
        clip_norm,
        shuffle,
        seed,
        max_steps: rng.is_one_in(4).then(|| rng.number(1..=20)),
        patience: None,
        init_from: None,
        init_partial: false,
        init_map: Vec::new(),
    }
}
