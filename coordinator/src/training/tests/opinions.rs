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
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 0 handed on; waiting",
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
        let step = run.training.state().step;
        for (shard, worker) in [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)] {
            run.play(&format!("shard {shard} of {step} by {worker}"));
        }
    }
    let step = run.training.state().step;
    // It has given the result of shard 0 that counts, and a wrong one of shard 1.
    run.play(&format!("lie 0 of {step} by 2, lie 1 of {step} by 2, lost 2"));
    run.play(&format!("shard 1 of {step} by 1, shard 1 of {step} by 3"));
    assert_eq!((run.training.state().step, run.training.tally().evicted.len()), (step, 1), "shard 0 is asked for anew");
    run.play(&format!("shard 0 of {step} by 1, shard 1 of {step} by 1, shard 1 of {step} by 3"));
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
