//! The core as a whole: what happens, written as words, and what the core then wishes, written as words.

mod stragglers;
mod votes;

use std::time::Duration;

use engine::optimizer::{LrSchedule, Optimizer};
use engine::recipe::Recipe;
use engine::shard::ShardResult;
use engine::sums::{Metric, Sums, counts};

use super::*;

/// A recipe of so many epochs, batch size and shards, found as the numbers of a text in the order epochs, images, batch
/// size, shards.
pub(crate) fn recipe(text: &str) -> Recipe {
    let numbers: Vec<u32> = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let [epochs, _n_images, batch_size, shards] = numbers[..] else { panic!("expected four numbers in `{text}`") };
    let count = |value: u32| value.try_into().expect("above 0");
    Recipe {
        task: "denoising".to_owned(),
        settings: serde_json::json!({ "noise": "none" }),
        epochs: count(epochs),
        batch_size: count(batch_size),
        shards: count(shards),
        optimizer: Optimizer::sgd(0.5, 0.0, false),
        lr_schedule: LrSchedule::default(),
        clip_norm: None,
        shuffle: false,
        seed: 1,
        max_steps: None,
        patience: None,
        init_from: None,
        init_partial: false,
        init_map: Vec::new(),
    }
}

/// A core under a script. Its parameters are one number, its gradients are 1 for each image, so that each step takes 0.5
/// off the parameter.
struct Run {
    training: Training,
    now: Duration,
}

const SILENCE_MAX: Duration = Duration::from_secs(2);

impl Run {
    /// A run of 10 images for training and 501 for validation.
    fn new(text: &str) -> Self {
        Self::with(recipe(text), |_| {})
    }

    fn with(recipe: Recipe, change: impl FnOnce(&mut Rules)) -> Self {
        let state = State::new(&recipe, Rounding::None, vec![8.0]);
        let mut rules = Rules {
            recipe,
            n_train: 10,
            n_valid: 501,
            evaluation_batch: 500,
            metrics: const { &[Metric::share_of_parts("rounded_accuracy", 784)] },
            rounding: Rounding::None,
            checkpoint_every: CheckpointEvery::Epoch,
            heartbeat_timeout: SILENCE_MAX,
            join_timeout: Duration::from_mins(1),
            audit: 0.0,
            audit_secret: AuditSecret::new([1; 32]),
            own_class: "one".to_owned(),
            after_stop: AfterStop::ComeBack,
        };
        change(&mut rules);
        let mut run = Self { training: Training::new(rules, state, Duration::ZERO), now: Duration::ZERO };
        assert_eq!(run.drain(), "checkpoint", "there is something to resume from before anything has happened");
        run
    }

    /// Lets the words happen, separated by commas, and gives the wishes.
    fn play(&mut self, script: &str) -> String {
        let mut wishes = Vec::new();
        for words in script.split(',').map(str::trim).filter(|words| !words.is_empty()) {
            self.happen(words);
            wishes.push(self.drain());
        }
        wishes.retain(|words| !words.is_empty());
        wishes.join("; ")
    }

    /// What is wished for now.
    fn drain(&mut self) -> String {
        let actions = std::iter::from_fn(|| self.training.poll_action(self.now));
        actions.map(|action| describe(&action)).filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ")
    }

    fn happen(&mut self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let number =
            |position: usize| words[position].parse::<u64>().unwrap_or_else(|_| panic!("a number in {words:?}"));
        let worker = |position: usize| WorkerId(number(position));
        let event = match words[0] {
            "join" => Event::Joined(worker(1), profile(number(1), "one")),
            // alien WORKER: of another compute class
            "alien" => Event::Joined(worker(1), profile(number(1), "another")),
            // twin WORKER of IDENTITY
            "twin" => Event::Joined(worker(1), Profile { process: 0, ..profile(number(3), "one") }),
            "ready" => Event::Ready(worker(1)),
            "enter" => {
                self.happen(&format!("join {}", words[1]));
                return self.happen(&format!("ready {}", words[1]));
            }
            // shard NUMBER of STEP by WORKER
            "shard" => Event::ShardDone(worker(5), self.shard(number(3), number(1), 0)),
            "stray" => Event::ShardDone(worker(5), self.shard(number(3), number(1), 1)),
            "nan" => {
                let computed = Computed::NotFinite("gradient");
                Event::ShardDone(worker(5), ShardDone { computed, ..self.shard(number(3), number(1), 0) })
            }
            "long" => {
                let computed = Computed::WrongLength { expected: 4, found: 8 };
                Event::ShardDone(worker(5), ShardDone { computed, ..self.shard(number(3), number(1), 0) })
            }
            // A gradient that is finite and wrong.
            "lie" => {
                let mut done = self.shard(number(3), number(1), 0);
                let Computed::Finite(result) = &mut done.computed else { unreachable!("it is made finite") };
                result.gradient_sum[0] += 0.5;
                Event::ShardDone(worker(5), done)
            }
            "huge" => {
                let mut done = self.shard(number(3), number(1), 0);
                let Computed::Finite(result) = &mut done.computed else { unreachable!("it is made finite") };
                (result.gradient_sum[0], done.gradient_norm) = (3e38, 3e38);
                Event::ShardDone(worker(5), done)
            }
            // own TASK of STEP: what the coordinator makes of it
            "own" => Event::OwnTaskDone(self.own_task(number(3), number(1))),
            "ownnan" => {
                let mut done = self.own_task(number(3), number(1));
                done.result.gradient_sum[0] = f32::NAN;
                Event::OwnTaskDone(done)
            }
            "vague" => {
                let mut done = self.batch(number(3), number(1), 0);
                done.sums.loss_sum = f64::NAN;
                Event::BatchDone(worker(5), done)
            }
            "short" => {
                let mut done = self.shard(number(3), number(1), 0);
                let Computed::Finite(result) = &mut done.computed else { unreachable!("it is made finite") };
                result.sums.n_samples -= 1;
                Event::ShardDone(worker(5), done)
            }
            "batch" => Event::BatchDone(worker(5), self.batch(number(3), number(1), 0)),
            "strayed" => Event::BatchDone(worker(5), self.batch(number(3), number(1), 1)),
            "lagging" => Event::Lagging(worker(1), "it lost count".to_owned()),
            "leaving" => Event::Leaving(worker(1), "a signal".to_owned()),
            "heard" => Event::Heartbeat(worker(1), 0),
            // caught WORKER up to STEP
            "caught" => Event::Heartbeat(worker(1), number(4)),
            "lost" => Event::Lost(worker(1), "connection closed".to_owned()),
            "stop" => Event::Stop,
            // at SECONDS
            "at" => {
                self.now = Duration::from_secs(number(1));
                return self.training.handle_deadline(self.now);
            }
            // after MILLISECONDS
            "after" => {
                self.now += Duration::from_millis(number(1));
                return self.training.handle_deadline(self.now);
            }
            other => panic!("`{other}` is no event"),
        };
        self.training.handle_event(self.now, event);
    }

    fn shard(&self, step: u64, shard: u64, wrong: u64) -> ShardDone {
        let shard = u32::try_from(shard).expect("a small number");
        let n_samples = if shard < 2 { self.training.schedule.shard_samples(step, shard) } else { 0 };
        let count = u8::try_from(n_samples).expect("a small number");
        let sums = Sums { loss_sum: count.into(), counts: counts(&[784 * n_samples]), n_samples };
        let params_fingerprint = self.training.fingerprint() + wrong;
        let computed = Computed::Finite(ShardResult { gradient_sum: vec![count.into()], sums });
        let (gradient_norm, compute) = (count.into(), Duration::from_millis(1));
        ShardDone { step, shard, computed, gradient_norm, params_fingerprint, compute }
    }

    fn own_task(&self, step: u64, task: u64) -> OwnTaskDone {
        let kind = self.training.phase.round().map_or(TaskKind::Shard, Round::task_kind);
        let result = match kind {
            TaskKind::Shard => match self.shard(step, task, 0).computed {
                Computed::Finite(result) => result,
                Computed::NotFinite(_) | Computed::WrongLength { .. } => unreachable!("it is made finite"),
            },
            TaskKind::Batch => ShardResult { gradient_sum: Vec::new(), sums: self.batch(step, task, 0).sums },
        };
        OwnTaskDone { step, kind, task: u32::try_from(task).expect("a small number"), result }
    }

    fn batch(&self, step: u64, batch: u64, wrong: u64) -> BatchDone {
        let batch = u32::try_from(batch).expect("a small number");
        let n_samples = self.training.schedule.batch_samples(batch);
        let count = u16::try_from(n_samples).expect("a small number");
        let sums = Sums { loss_sum: f64::from(count) / 4.0, counts: counts(&[]), n_samples };
        BatchDone { step, batch, sums, params_fingerprint: self.training.fingerprint() + wrong }
    }
}

fn profile(process: u64, compute_class: &str) -> Profile {
    let process = u32::try_from(process).expect("a small number");
    let (identity, compute_class) = (Identity::new(process.to_string()), compute_class.to_owned());
    Profile { identity, process, compute_class, ..Profile::default() }
}

fn describe(action: &Action) -> String {
    let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join("+");
    let work = |work: &Work| match work {
        Work::Nothing => "nothing".to_owned(),
        Work::Shards { step, shards, position } => {
            assert_eq!(position.epoch * 3 + position.step_of_epoch, u32::try_from(*step).expect("a small number"));
            format!("shards {} of {step}", list(shards))
        }
        Work::Batches { step, batches } => format!("batches {} of {step}", list(batches)),
    };
    match action {
        Action::Welcome(worker_id) => format!("welcome {worker_id}"),
        Action::SendState(worker_id, next) => format!("state {worker_id}: {}", work(next)),
        Action::SendUpdate { gradient, work: all } => {
            let all: Vec<String> =
                all.iter().map(|(worker_id, next)| format!(" {worker_id}: {}", work(next))).collect();
            format!("update {}{}", gradient[0], all.concat())
        }
        Action::SendWork(worker_id, next) => format!("work {worker_id}: {}", work(next)),
        Action::Refuse(worker_id, refusal) => format!("refuse {worker_id}: {refusal}"),
        Action::Close(worker_id, CloseReason::End, reason) => format!("end {worker_id}: {reason}"),
        Action::Close(worker_id, CloseReason::Refused, reason) => format!("refuse {worker_id} for good: {reason}"),
        Action::Close(worker_id, CloseReason::Evicted, reason) => format!("evict {worker_id}: {reason}"),
        Action::Close(worker_id, CloseReason::ComeBack, reason) => format!("close {worker_id}: {reason}"),
        Action::ComputeTask(task) => format!("compute {}", work(task)),
        Action::Checkpoint => "checkpoint".to_owned(),
        Action::Finish(Outcome::Diverged { step, epoch, what }) => {
            format!("diverged: {what}, step {step}, epoch {epoch}")
        }
        Action::Finish(outcome) => outcome.to_string(),
        Action::Report(report) => match report {
            Report::Event(event) => describe_event(event),
            Report::Epoch(report) => format!("epoch {} at {}: {}", report.epoch, report.step, report.validation.loss()),
            Report::Step(report) => {
                let workers: Vec<String> = report.workers.iter().map(ToString::to_string).collect();
                format!("step {} by {}", report.step, workers.join("+"))
            }
        },
    }
}

fn describe_event(event: &RunEvent) -> String {
    match event {
        RunEvent::Waiting => "waiting".to_owned(),
        RunEvent::Continuing => "going on".to_owned(),
        RunEvent::WorkerLeft { worker, n_reassigned, .. } => format!("left {worker}, {n_reassigned} reassigned"),
        RunEvent::ReplicaResent { worker, .. } => format!("lagging {worker}"),
        RunEvent::TaskLate { task, worker, helper, .. } => format!("late {task} of {worker} for {helper} too"),
        _ => String::new(),
    }
}

/// Steps of a run of one epoch of 10 images in batches of 4 (4 + 4 + 2), 2 shards; what happens, and what is wished.
fn check(lines: &[(&str, &str)]) {
    check_run(Run::new("1 epochs of 10 images in batches of 4, 2 shards"), lines);
}

fn check_run(mut run: Run, lines: &[(&str, &str)]) {
    for (happens, wishes) in lines {
        assert_eq!(run.play(happens), *wishes, "after `{happens}`");
    }
}

#[test]
fn run_proceeds_through_steps_validation_and_end() {
    check(&[
        ("join 1", "welcome 1"),
        ("ready 1", "state 1: shards 0+1 of 0"),
        ("shard 0 of 0 by 1", ""),
        ("shard 1 of 0 by 1", "update 1 1: shards 0+1 of 1; step 1 by 1+1"),
        ("shard 1 of 1 by 1, shard 0 of 1 by 1", "update 1 1: shards 0+1 of 2; step 2 by 1+1"),
        ("shard 0 of 2 by 1, shard 1 of 2 by 1", "update 1 1: batches 0+1 of 3; step 3 by 1+1"),
        (
            "batch 1 of 3 by 1, batch 0 of 3 by 1",
            "epoch 0 at 3: 0.25; checkpoint; end 1: the run is complete; completed",
        ),
    ]);
}

#[test]
fn shards_are_split_among_workers_and_extras_stand_by() {
    check(&[
        ("enter 1", "welcome 1; state 1: shards 0+1 of 0"),
        ("enter 2, enter 3", "welcome 2; state 2: nothing; welcome 3; state 3: nothing"),
        (
            "shard 0 of 0 by 1, shard 1 of 0 by 1",
            "update 1 1: shards 0 of 1 2: shards 1 of 1 3: nothing; step 1 by 1+1",
        ),
        ("shard 1 of 1 by 2, lost 1", "left 1, 1 reassigned; work 2: shards 0 of 1"),
        ("shard 0 of 1 by 2", "update 1 2: shards 0 of 2 3: shards 1 of 2; step 2 by 2+2"),
    ]);
}

#[test]
fn run_without_workers_waits_and_continues_on_join() {
    check(&[
        ("enter 1, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        ("lost 1", "left 1, 1 reassigned; waiting"),
        ("at 3600", ""),
        ("join 2", "welcome 2"),
        ("ready 2", "going on; state 2: shards 1 of 0"),
        ("shard 1 of 0 by 2", "update 1 2: shards 0+1 of 1; step 1 by 1+2"),
    ]);
}

#[test]
fn leaving_worker_finishes_its_tasks_and_gets_no_new_ones() {
    check(&[
        ("enter 1, enter 2, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("leaving 1", ""),
        (
            "shard 1 of 0 by 1",
            "close 1: it wanted to leave; left 1, 0 reassigned; update 1 2: shards 0+1 of 1; step 1 by 1+1",
        ),
        ("join 3, leaving 3", "welcome 3; close 3: it wanted to leave"),
    ]);
}

#[test]
fn stale_duplicate_or_unknown_result_is_refused() {
    check(&[
        ("enter 1, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        ("shard 0 of 0 by 1", "refuse 1: expected one result for task 0 of step 0, found a second one"),
        ("shard 7 of 0 by 1", "refuse 1: expected a task of step 0, found task 7, which there is none"),
        ("shard 1 of 2 by 1", "refuse 1: expected results of step 0, found one of step 2"),
        ("batch 0 of 0 by 1", "refuse 1: expected results of step 0, found one of step 0"),
        ("shard 1 of 0 by 9", ""),
        ("shard 1 of 0 by 1", "update 1 1: shards 0+1 of 1; step 1 by 1+1"),
        ("shard 0 of 0 by 1", "refuse 1: expected results of step 1, found one of step 0"),
    ]);
}

#[test]
fn worker_with_64_unused_results_in_a_row_is_refused() {
    let mut run = Run::new("1 epochs of 10 images in batches of 4, 2 shards");
    run.play("enter 1");
    for _ in 0..63 {
        assert!(run.play("shard 7 of 0 by 1").starts_with("refuse 1: "));
    }
    // One that is of use wipes the slate clean.
    run.play("shard 0 of 0 by 1");
    for _ in 0..63 {
        assert!(run.play("shard 7 of 0 by 1").starts_with("refuse 1: "));
    }
    let last = run.play("shard 7 of 0 by 1");
    assert!(last.starts_with("refuse 1 for good: 64 results in a row were not used"), "{last}");
}

#[test]
fn buffers_of_unused_results_are_kept_up_to_bound() {
    let mut run = Run::new("1 epochs of 10 images in batches of 4, 2 shards");
    run.play("enter 1, enter 2, enter 3");
    let mut n_spent = Vec::new();
    for worker_id in 1..=3 {
        (0..30).for_each(|_| drop(run.play(&format!("shard 7 of 0 by {worker_id}"))));
        n_spent.push(run.training.spent.len());
    }
    assert_eq!(n_spent, [30, 60, 64]);
    assert_eq!((run.training.take_spent().len(), run.training.take_spent().len()), (64, 0));
}

#[test]
fn strayed_replica_gets_state_and_is_closed_second_time() {
    check(&[
        ("enter 1, shard 1 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        ("stray 0 of 0 by 1", "lagging 1; state 1: shards 0 of 0"),
        ("lagging 1", "close 1: it lost count; left 1, 1 reassigned; waiting"),
    ]);
}

#[test]
fn strayed_replica_does_not_validate() {
    let recipe = Recipe { max_steps: Some(1), ..recipe("1 epochs of 10 images in batches of 4, 2 shards") };
    let to_validation = "update 1 1: batches 0+1 of 1; step 1 by 1+1";
    check_run(
        Run::with(recipe, |_| {}),
        &[
            ("enter 1, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
            ("shard 1 of 0 by 1", to_validation),
            ("strayed 0 of 1 by 1", "lagging 1; state 1: batches 0+1 of 1"),
        ],
    );
}

#[test]
fn results_before_ready_are_refused() {
    check(&[
        ("enter 1, join 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2"),
        ("shard 0 of 0 by 2", "refuse 2 for good: expected it to say that it is ready, found results"),
        ("shard 0 of 0 by 1, shard 1 of 0 by 1", "update 1 1: shards 0+1 of 1; step 1 by 1+1"),
    ]);
}

#[test]
fn wrong_sample_count_evicts_worker_and_reassigns_shards() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        (
            "short 0 of 0 by 1",
            "evict 1: expected 2 samples in shard 0, found 1; left 1, 2 reassigned; work 2: shards 0+1 of 0",
        ),
    ]);
}

#[test]
fn confirmed_non_finite_gradient_ends_run_unapplied() {
    let mut run = Run::new("1 epochs of 10 images in batches of 4, 2 shards");
    assert!(run.play("enter 1, shard 0 of 0 by 1, nan 1 of 0 by 1").ends_with("compute shards 1 of 0"));
    let wishes = run.play("ownnan 1 of 0");
    assert!(wishes.ends_with("diverged: gradient of shard 1, step 1, epoch 0"), "{wishes}");
    assert!(!wishes.contains("checkpoint"), "{wishes}");
    assert_eq!(run.training.state().params, [8.0]);
}

#[test]
fn silent_worker_is_closed_after_heartbeat_timeout() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        (
            "at 1, heard 2, at 2",
            "late 0 of 1 for 2 too; work 2: shards 0 of 0; \
             close 1: silent for 2000 ms; left 1, 2 reassigned; work 2: shards 1 of 0",
        ),
        ("shard 0 of 0 by 1", ""),
    ]);
}

#[test]
fn first_join_times_out_unless_worker_is_joining() {
    check(&[("at 59", ""), ("at 60", "nobody came"), ("join 1", "end 1: the run has ended")]);
    check(&[("at 59, join 1", "welcome 1"), ("at 60, heard 1, at 61", ""), ("lost 1, at 61", "nobody came")]);
    let signs: Vec<String> = (1..60).map(|second| format!("at {second}, heard 1")).collect();
    check(&[("join 1", "welcome 1"), (&signs.join(","), ""), ("at 60", "close 1: not ready for 60 s; nobody came")]);
}

#[test]
fn stop_saves_checkpoint_and_closes_workers() {
    check(&[
        ("enter 1, shard 0 of 0 by 1, shard 1 of 0 by 1, shard 0 of 1 by 1", START_OF_STEP_1),
        ("stop", "checkpoint; close 1: the coordinator is stopped; the run may be resumed; stopped"),
        ("stop", ""),
        ("shard 1 of 1 by 1", ""),
    ]);
}

const START_OF_STEP_1: &str = "welcome 1; state 1: shards 0+1 of 0; update 1 1: shards 0+1 of 1; step 1 by 1+1";

#[test]
fn checkpoint_interval_in_steps_is_respected() {
    let recipe = Recipe { max_steps: Some(2), ..recipe("1 epochs of 10 images in batches of 4, 2 shards") };
    let run = Run::with(recipe, |rules| rules.checkpoint_every = CheckpointEvery::Steps(1));
    check_run(
        run,
        &[
            (
                "enter 1, shard 0 of 0 by 1, shard 1 of 0 by 1",
                "welcome 1; state 1: shards 0+1 of 0; update 1 1: shards 0+1 of 1; step 1 by 1+1; checkpoint",
            ),
            // The last one is kept once with the sums that wait for their validation, and once without.
            ("shard 0 of 1 by 1, shard 1 of 1 by 1", "update 1 1: batches 0+1 of 2; step 2 by 1+1; checkpoint"),
            (
                "batch 0 of 2 by 1, batch 1 of 2 by 1",
                "epoch 0 at 2: 0.25; checkpoint; end 1: the run is complete; completed",
            ),
        ],
    );
}

#[test]
fn run_resumes_from_every_state_to_same_result() {
    let recipe = recipe("2 epochs of 10 images in batches of 4, 2 shards");
    let mut whole = Run::with(recipe.clone(), |_| {});
    whole.play("enter 1");
    let rules = whole.training.rules.clone();
    let mut n_states = 0;
    while !matches!(whole.training.phase, Phase::Finished) {
        // A run resumed from here, with another worker, goes to the same end.
        let mut resumed = Run {
            training: Training::new(rules.clone(), whole.training.state().clone(), Duration::ZERO),
            now: Duration::ZERO,
        };
        resumed.drain();
        resumed.play("enter 5, enter 6");
        finish(&mut resumed);
        assert_eq!((resumed.training.state().step, &resumed.training.state().params), (6, &vec![5.0]));
        n_states += 1;
        advance(&mut whole);
    }
    assert_eq!(n_states, 8); // six steps and two validations
    let ended = Training::new(rules, whole.training.state().clone(), Duration::ZERO);
    assert!(matches!(ended.phase, Phase::Finished), "a run that is complete has nothing to wait for");
}

/// Lets the round at hand be computed, each task by who was dealt it.
fn advance(run: &mut Run) {
    let step = run.training.state().step;
    let kind = run.training.phase.round().expect("a round is at hand").task_kind();
    let word = if kind == TaskKind::Shard { "shard" } else { "batch" };
    while let Some(round) = run.training.phase.round()
        && (run.training.state().step, round.task_kind()) == (step, kind)
    {
        let worker_id = round.tasks.awaited().next().expect("somebody computes what is missing");
        let task = round.tasks.of(worker_id).next().expect("it has a task");
        run.play(&format!("{word} {task} of {step} by {worker_id}"));
    }
}

fn finish(run: &mut Run) {
    while !matches!(run.training.phase, Phase::Finished) {
        advance(run);
    }
}
