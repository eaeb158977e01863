//! Tasks that the coordinator computes itself, on a thread of its own that is started when the first one is asked for: where
//! workers differ and votes cannot show who is right, before a run is declared diverged, and as the second vote of an audit
//! where only one identity takes part.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use engine::backend::ComputeDevice;
use engine::data::Split;
use engine::random::ShardKey;
use engine::recipe::Recipe;
use engine::sampler::Sampler;
use engine::shard::ShardResult;
use engine::task::{OpenTask, Replica};
use half::bf16;
use tokio::sync::mpsc::WeakSender;

use crate::input::Input;
use crate::training::{Event, OwnTaskDone, Rounding, SchedulePosition, State, TaskKind, Work};

/// What tasks are computed with.
#[derive(Clone, Debug)]
pub struct Means {
    /// What is trained, and on what.
    pub task: Arc<dyn OpenTask>,
    /// How.
    pub recipe: Recipe,
    /// What workers do to their gradients.
    pub rounding: Rounding,
    /// Computes, without autodiff.
    pub device: ComputeDevice,
    /// Where results go. The driver receives as long as a strong sender exists.
    pub inputs: WeakSender<Input>,
}

/// Computes tasks.
#[derive(Debug)]
pub struct Recomputer {
    means: Means,
    /// Where the thread takes its jobs from, if it is started.
    jobs: Option<Sender<Job>>,
    /// Parameters, and after how many updates: the tasks of a step share one copy.
    params: Option<(u64, Arc<Vec<f32>>)>,
}

#[derive(Debug)]
struct Job {
    work: Work,
    params: Arc<Vec<f32>>,
}

impl Recomputer {
    /// Without a thread.
    pub fn new(means: Means) -> Self {
        Self { means, jobs: None, params: None }
    }

    /// Has a task computed on the parameters of a state.
    ///
    /// # Panics
    /// If the system has no thread to give.
    pub fn compute(&mut self, work: Work, state: &State) {
        let (_, params) = match self.params.take() {
            Some((step, params)) if step == state.step => self.params.insert((step, params)),
            Some(_) | None => self.params.insert((state.step, Arc::new(state.params.clone()))),
        };
        let job = Job { work, params: Arc::clone(params) };
        let jobs = self.jobs.get_or_insert_with(|| {
            let ((jobs, inbox), means) = (channel(), self.means.clone());
            let compute = move || compute_all(means, &inbox);
            // Never joined: when the run is over, its results are not needed.
            std::thread::Builder::new()
                .name("recompute".to_owned())
                .spawn(compute)
                .expect("the system has a thread to give");
            jobs
        });
        jobs.send(job).expect("the thread takes jobs as long as there is a driver");
    }
}

/// Computes jobs until the sender is gone.
fn compute_all(means: Means, jobs: &Receiver<Job>) {
    let replica = Arc::clone(&means.task).replica(means.recipe.seed, &means.device);
    let mut computer = Computer { replica, sampler: None, means };
    while let Ok(Job { work, params }) = jobs.recv() {
        let done = match work {
            Work::Nothing => Vec::new(),
            Work::Shards { step, position, shards } => computer.shards(step, position, &shards, &params),
            Work::Batches { step, batches } => computer.batches(step, &batches, &params),
        };
        for done in done {
            let Some(inputs) = computer.means.inputs.upgrade() else { return };
            if inputs.blocking_send(Input::Happened(Event::OwnTaskDone(done))).is_err() {
                return;
            }
        }
    }
}

struct Computer {
    means: Means,
    replica: Box<dyn Replica>,
    /// The samples of the epoch last worked on.
    sampler: Option<(u32, Sampler)>,
}

impl Computer {
    fn shards(&mut self, step: u64, position: SchedulePosition, shards: &[u32], params: &[f32]) -> Vec<OwnTaskDone> {
        let Self { means: Means { task, recipe, rounding, .. }, replica, sampler } = self;
        if sampler.as_ref().is_none_or(|(epoch, _)| *epoch != position.epoch) {
            *sampler = Some((position.epoch, recipe.sampler(position.epoch, task.n_samples(Split::Train))));
        }
        let sampler = &sampler.as_ref().expect("it was made above").1;
        replica.params_mut().copy_from_slice(params);
        let mut done = Vec::new();
        for &shard in shards {
            let key = ShardKey { epoch: position.epoch, step, shard };
            let samples = sampler.shard(position.step_of_epoch as usize, shard as usize);
            let mut gradient_sum = vec![0.0; params.len()];
            let sums = replica.shard_result(key, samples, &mut gradient_sum);
            if *rounding == Rounding::Bf16 {
                for value in &mut gradient_sum {
                    *value = bf16::from_f32(*value).to_f32();
                }
            }
            let result = ShardResult { gradient_sum, sums };
            done.push(OwnTaskDone { step, kind: TaskKind::Shard, task: shard, result });
        }
        done
    }

    fn batches(&self, step: u64, batches: &[u32], params: &[f32]) -> Vec<OwnTaskDone> {
        let evaluator = Arc::clone(&self.means.task).evaluator(params, &self.means.device);
        let done = |&batch: &u32| {
            let sums = evaluator.evaluate_batch(Split::Valid, batch);
            let result = ShardResult { gradient_sum: Vec::new(), sums };
            OwnTaskDone { step, kind: TaskKind::Batch, task: batch, result }
        };
        batches.iter().map(done).collect()
    }
}
