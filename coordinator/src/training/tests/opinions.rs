//! Workers whose results are not believed at once.

use super::*;

#[test]
fn one_whose_numbers_are_not_finite_is_evicted_if_another_one_has_some() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        (
            "shard 1 of 0 by 2",
            "evict 1: its gradient of shard 1 of step 1 is not finite, unlike that of worker 2; left 1, 1 handed on; \
             work 2: shards 0 of 0",
        ),
        ("shard 0 of 0 by 2", "update 1 2: shards 0+1 of 1; step 1 by 2+2"),
    ]);
}

#[test]
fn what_is_not_finite_for_two_is_a_divergence() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        (
            "nan 1 of 0 by 2",
            "end 1: the run has failed; end 2: the run has failed; diverged: gradient of shard 1, step 1, epoch 0",
        ),
    ]);
    // The second one goes before it has answered.
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        ("lost 2", "left 2, 1 handed on; end 1: the run has failed; diverged: gradient of shard 1, step 1, epoch 0"),
    ]);
}

#[test]
fn a_validation_that_is_not_finite_has_a_second_opinion_too() {
    let recipe = Recipe { max_steps: Some(1), ..recipe("1 epochs of 10 images in batches of 4, 2 shards") };
    let mut run = Run::with(recipe, |_| {});
    run.play("enter 1, enter 2, shard 0 of 0 by 1, shard 1 of 0 by 1");
    check_run(
        run,
        &[
            ("batch 1 of 1 by 2, vague 0 of 1 by 1", "work 2: batches 0 of 1"),
            (
                "batch 0 of 1 by 2",
                "evict 1: its loss of validation batch 0 of step 2 is not finite, unlike that of worker 2; \
                 left 1, 0 handed on; epoch 0 at 1: 0.25; checkpoint; end 2: the run is complete; completed",
            ),
        ],
    );
}

#[test]
fn a_gradient_of_another_length_is_evicted_at_once() {
    check(&[
        ("enter 1, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        // What it said of this step before does not count any more.
        (
            "long 1 of 0 by 1",
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 1 handed on; waiting",
        ),
        ("enter 2", "welcome 2; going on; state 2: shards 0+1 of 0"),
    ]);
}

/// A run with every shard audited.
fn audited() -> Run {
    Run::with(recipe("1 epochs of 10 images in batches of 4, 2 shards"), |rules| rules.audit = 1.0)
}

#[test]
fn an_audited_shard_is_computed_twice_and_a_third_one_says_who_is_right() {
    check_run(
        audited(),
        &[
            ("enter 1", "welcome 1; state 1: shards 0+1 of 0"),
            ("enter 2", "welcome 2; state 2: shards 0+1 of 0"),
            ("enter 3", "welcome 3; state 3: nothing"),
            ("shard 0 of 0 by 1, shard 0 of 0 by 2, lie 1 of 0 by 2", ""),
            ("shard 1 of 0 by 1", "work 3: shards 1 of 0"),
            (
                "shard 1 of 0 by 3",
                "evict 2: its result of shard 1 of step 1 differs from those of worker 1 and of another one; \
                 left 2, 0 handed on; update 1 1: shards 0+1 of 1 3: shards 1+0 of 1; step 1 by 1+1",
            ),
        ],
    );
}

#[test]
fn one_who_went_before_it_was_outvoted_is_named_and_counts_for_nothing() {
    // Of two shards in each step, only some are audited.
    let mut run = Run::with(recipe("1 epochs of 10 images in batches of 4, 2 shards"), |rules| rules.audit = 0.5);
    let is_audited = |run: &Run| {
        let round = run.training.phase.round().expect("a step");
        [0, 1].map(|shard| round.tasks.n_wanted(shard) == 2)
    };
    run.play("enter 1, enter 2, enter 3");
    while is_audited(&run) != [false, true] {
        advance(&mut run);
    }
    let step = run.training.state().step;
    // Of two workers that have shard 1, the one that has shard 0 too gives the result of it that counts, and a wrong one of 1.
    let holders = |run: &Run, task| {
        let tasks = &run.training.phase.round().expect("a step").tasks;
        let all = run.training.roster.all().into_iter();
        all.filter(|&worker_id| tasks.of(worker_id).any(|held| held == task)).collect::<Vec<_>>()
    };
    let liar = holders(&run, 0)[0];
    let honest = holders(&run, 1).into_iter().find(|&worker_id| worker_id != liar).expect("two have it");
    run.play(&format!("shard 0 of {step} by {liar}, lie 1 of {step} by {liar}, lost {liar}"));
    run.play(&format!("shard 1 of {step} by {honest}"));
    let third = holders(&run, 1)[0];
    run.play(&format!("shard 1 of {step} by {third}"));
    assert_eq!((run.training.state().step, run.training.tally().evicted.len()), (step, 1), "shard 0 is asked for anew");
    advance(&mut run);
    assert_eq!(run.training.state().step, step + 1);
    let n_steps = u16::try_from(step + 1).expect("few steps");
    assert_eq!(run.training.state().params, [8.0 - 0.5 * f32::from(n_steps)]);
}

#[test]
fn where_nobody_else_is_a_shard_is_not_audited() {
    let mut run = audited();
    run.play("enter 1, shard 0 of 0 by 1, shard 1 of 0 by 1");
    assert_eq!((run.training.state().step, run.training.tally().n_not_audited), (1, 2));
    // Nor by the same process under another number, nor by one whose bits may be others.
    assert_eq!(run.play("join 9, lost 9, alien 8"), "welcome 9; welcome 8");
    assert_eq!(run.play("ready 8"), "state 8: nothing");
}

#[test]
fn a_dispute_waits_for_a_third_one() {
    check_run(
        audited(),
        &[
            ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: shards 0+1 of 0"),
            ("shard 0 of 0 by 1, lie 0 of 0 by 2", "disputed 0"),
            ("shard 1 of 0 by 1, shard 1 of 0 by 2, at 1, heard 1, heard 2", ""),
            ("enter 3", "welcome 3; state 3: shards 0 of 0"),
            (
                "shard 0 of 0 by 3",
                "evict 2: its result of shard 0 of step 1 differs from those of worker 1 and of another one; \
                 left 2, 0 handed on; update 1 1: shards 0+1 of 1 3: shards 1+0 of 1; step 1 by 1+1",
            ),
        ],
    );
}

#[test]
fn result_that_was_not_dealt_is_refused() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        (
            "lie 0 of 0 by 2",
            "refuse 2: expected results of tasks that the worker has to compute, found one of task 0 of step 0, which it has not",
        ),
        ("shard 0 of 0 by 1, shard 1 of 0 by 1", "update 1 1: shards 0 of 1 2: shards 1 of 1; step 1 by 1+1"),
        (
            "lie 0 of 1 by 2, shard 1 of 1 by 2",
            "refuse 2: expected results of tasks that the worker has to compute, found one of task 0 of step 1, which it has not",
        ),
        ("shard 0 of 1 by 1", "update 1 1: shards 0 of 2 2: shards 1 of 2; step 2 by 1+2"),
    ]);
}

/// The goal: a round that begins anew, since a result of an evicted worker counted, still takes what others compute for it.
#[test]
fn result_is_taken_after_the_round_begins_again() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("shard 0 of 0 by 1, shard 1 of 0 by 1", "update 1 1: shards 0 of 1 2: shards 1 of 1; step 1 by 1+1"),
        ("shard 0 of 1 by 1, at 1", "late 1 of 2 for 1 too; work 1: shards 1 of 1"),
        (
            "long 1 of 1 by 1",
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 1 handed on; work 2: shards 0 of 1",
        ),
        ("shard 1 of 1 by 2, shard 0 of 1 by 2", "update 1 2: shards 0+1 of 2; step 2 by 2+2"),
    ]);
}

#[test]
fn seventeenth_compute_class_is_refused() {
    let mut run = Run::new("1 epochs of 10 images in batches of 4, 2 shards");
    let is_refused = |run: &mut Run, number: u64| {
        let profile = profile(number, &format!("class {number}"));
        run.training.handle_event(run.now, Event::Joined(WorkerId(number), profile));
        let joined = run.drain();
        run.training.handle_event(run.now, Event::Ready(WorkerId(number)));
        run.drain();
        joined.contains("for good: expected at most 16 compute classes in a run, found one more")
    };
    let refused: Vec<u64> = (1..=1_000).filter(|&number| is_refused(&mut run, number)).collect();
    assert_eq!((refused.first(), refused.len()), (Some(&17), 984));
    assert_eq!(run.training.compute_classes().len(), COMPUTE_CLASSES_MAX);
    assert_eq!(
        run.play("join 2000, lost 2000"),
        "refuse 2000 for good: expected at most 16 compute classes in a run, found one more, `one`; start the worker on a machine and with a backend like those of the others"
    );
}
