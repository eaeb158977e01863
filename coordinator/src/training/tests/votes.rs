//! Workers whose results are not believed at once.

use super::*;

#[test]
fn non_finite_vote_is_evicted_if_coordinator_result_is_finite() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        ("shard 1 of 0 by 2", "compute shards 1 of 0"),
        (
            "own 1 of 0",
            "evict 1: its gradient of shard 1 of step 1 is not finite, unlike that of the coordinator; \
             left 1, 1 reassigned; work 2: shards 0 of 0",
        ),
        ("shard 0 of 0 by 2", "update 1 2: shards 0+1 of 1; step 1 by 2+2"),
    ]);
    // Alone, and two of them.
    check(&[
        ("enter 1, nan 1 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0; compute shards 1 of 0"),
        (
            "own 1 of 0",
            "evict 1: its gradient of shard 1 of step 1 is not finite, unlike that of the coordinator; \
             left 1, 1 reassigned; waiting",
        ),
        ("enter 2", "welcome 2; going on; state 2: shards 0 of 0"),
        ("shard 0 of 0 by 2", "update 1 2: shards 0+1 of 1; step 1 by 2+0"),
    ]);
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1, nan 1 of 0 by 2", "work 2: shards 1 of 0; compute shards 1 of 0"),
        ("shard 0 of 0 by 1", ""),
        (
            "own 1 of 0",
            "evict 1: its gradient of shard 1 of step 1 is not finite, unlike that of the coordinator; \
             left 1, 0 reassigned; work 2: shards 0+1 of 0; evict 2: its gradient of shard 1 of step 1 is not finite, \
             unlike that of the coordinator; left 2, 2 reassigned; waiting",
        ),
        ("enter 3", "welcome 3; going on; state 3: shards 0+1 of 0"),
    ]);
}

#[test]
fn run_diverges_if_coordinator_result_is_non_finite() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        ("nan 1 of 0 by 2", "compute shards 1 of 0"),
        (
            "ownnan 1 of 0",
            "end 1: the run has failed; end 2: the run has failed; diverged: gradient of shard 1, step 1, epoch 0",
        ),
    ]);
    // The second one goes before it has answered.
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("nan 1 of 0 by 1", "work 2: shards 1 of 0"),
        ("lost 2", "left 2, 1 reassigned; compute shards 1 of 0"),
        ("ownnan 1 of 0", "end 1: the run has failed; diverged: gradient of shard 1, step 1, epoch 0"),
    ]);
}

#[test]
fn outlier_result_needs_second_vote() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("huge 1 of 0 by 1", "work 2: shards 1 of 0"),
        ("shard 1 of 0 by 2", "compute shards 1 of 0"),
        (
            "own 1 of 0",
            "evict 1: its result of shard 1 of step 1 differs from that of the coordinator; \
             left 1, 1 reassigned; work 2: shards 0 of 0",
        ),
        // What two identities agree on may be true.
        ("enter 3", "welcome 3; state 3: nothing"),
        ("huge 0 of 0 by 2", "work 3: shards 0 of 0"),
        (
            "huge 0 of 0 by 3",
            "update 75000000000000000000000000000000000000 2: shards 0 of 1 3: shards 1 of 1; step 1 by 2+2",
        ),
    ]);
    check(&[
        ("enter 1, huge 1 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0; compute shards 1 of 0"),
        (
            "own 1 of 0",
            "evict 1: its result of shard 1 of step 1 differs from that of the coordinator; left 1, 1 reassigned; waiting",
        ),
    ]);
}

#[test]
fn non_finite_validation_is_recomputed_by_coordinator() {
    let recipe = Recipe { max_steps: Some(1), ..recipe("1 epochs of 10 images in batches of 4, 2 shards") };
    let mut run = Run::with(recipe, |_| {});
    run.play("enter 1, enter 2, shard 0 of 0 by 1, shard 1 of 0 by 1");
    check_run(
        run,
        &[
            ("batch 1 of 1 by 2, vague 0 of 1 by 1", "work 2: batches 0 of 1"),
            ("batch 0 of 1 by 2", "compute batches 0 of 1"),
            (
                "own 0 of 1",
                "evict 1: its loss of validation batch 0 of step 2 is not finite, unlike that of the coordinator; \
                 left 1, 0 reassigned; epoch 0 at 1: 0.25; checkpoint; end 2: the run is complete; completed",
            ),
        ],
    );
}

#[test]
fn gradient_of_wrong_length_evicts_worker_at_once() {
    check(&[
        ("enter 1, shard 0 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        // What it said of this step before does not count any more.
        (
            "long 1 of 0 by 1",
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 1 reassigned; waiting",
        ),
        ("enter 2", "welcome 2; going on; state 2: shards 0+1 of 0"),
    ]);
}

#[test]
fn evicted_identity_rejoins_after_increasing_wait() {
    check(&[
        ("enter 1, twin 2 of 1, ready 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        (
            "long 1 of 0 by 1",
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 2 reassigned; work 2: shards 0+1 of 0",
        ),
        ("twin 3 of 1", "close 3: expected no worker of 1 for 1 s more, after 1 eviction, found one"),
        ("join 4, lost 4", "welcome 4"),
        ("after 999, twin 5 of 1", "close 5: expected no worker of 1 for 1 s more, after 1 eviction, found one"),
        ("after 1, twin 6 of 1", "welcome 6"),
        // Who was in before is in.
        (
            "long 1 of 0 by 2",
            "evict 2: expected 4 bytes in the gradient of shard 1, found 8; left 2, 2 reassigned; waiting",
        ),
        ("ready 6", "going on; state 6: shards 0+1 of 0"),
        (
            "after 1999, heard 6, twin 7 of 1",
            "close 7: expected no worker of 1 for 1 s more, after 2 evictions, found one",
        ),
        ("after 1, twin 8 of 1", "welcome 8"),
    ]);
}

/// A run with every shard audited.
fn audited() -> Run {
    Run::with(recipe("1 epochs of 10 images in batches of 4, 2 shards"), |rules| rules.audit = 1.0)
}

#[test]
fn audit_dispute_is_decided_by_third_worker() {
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
                 left 2, 0 reassigned; update 1 1: shards 0+1 of 1 3: shards 1+0 of 1; step 1 by 1+1",
            ),
        ],
    );
}

#[test]
fn outvoted_worker_that_left_loses_all_its_results() {
    // Of the first step's two shards, the second one is audited.
    let draws = |secret: &AuditSecret| [0, 1].map(|shard| secret.draws(0, TaskKind::Shard, shard, 0.5));
    let mut secrets = (0..=255).map(|byte| AuditSecret::new([byte; 32]));
    let secret = secrets.find(|secret| draws(secret) == [false, true]).expect("a quarter of them draws so");
    let recipe = recipe("1 epochs of 10 images in batches of 4, 2 shards");
    let mut run = Run::with(recipe, |rules| (rules.audit, rules.audit_secret) = (0.5, secret));
    let entered = run.play("enter 1, enter 2, enter 3");
    assert!(entered.ends_with("state 2: shards 1 of 0; welcome 3; state 3: nothing"), "{entered}");
    // It has given the result of shard 0 that counts, and a wrong one of shard 1.
    run.play("shard 0 of 0 by 1, lie 1 of 0 by 1, lost 1");
    assert_eq!(run.play("shard 1 of 0 by 2"), "work 3: shards 1 of 0");
    assert_eq!(run.play("shard 1 of 0 by 3"), "work 2: shards 0+1 of 0; work 3: shards 1 of 0");
    assert_eq!((run.training.state().step, run.training.tally().evicted.len()), (0, 1), "shard 0 is asked for anew");
    run.play("shard 0 of 0 by 2, shard 1 of 0 by 2, shard 1 of 0 by 3");
    assert_eq!((run.training.state().step, &run.training.state().params), (1, &vec![7.5]));
}

#[test]
fn audit_with_one_identity_is_computed_by_coordinator() {
    let mut run = audited();
    assert_eq!(
        run.play("enter 1, shard 0 of 0 by 1, shard 1 of 0 by 1"),
        "welcome 1; state 1: shards 0+1 of 0; compute shards 0 of 0; compute shards 1 of 0"
    );
    run.play("own 0 of 0, own 1 of 0");
    assert_eq!((run.training.state().step, run.training.tally().n_audited), (1, 2));
    // A second connection of that identity is no second one, nor is one of another compute class.
    run.play("twin 9 of 1, ready 9, alien 8, ready 8");
    assert!(run.play("shard 0 of 1 by 1").ends_with("compute shards 0 of 1"));
}

#[test]
fn coordinator_of_other_compute_class_accepts_near_result() {
    let recipe = recipe("1 epochs of 10 images in batches of 4, 2 shards");
    let mut run = Run::with(recipe, |rules| (rules.audit, rules.own_class) = (1.0, "other".to_owned()));
    run.play("enter 1, shard 0 of 0 by 1, shard 1 of 0 by 1, own 0 of 0, own 1 of 0");
    assert_eq!((run.training.state().step, run.training.tally().n_not_audited), (1, 2));
    run.play("shard 0 of 1 by 1, own 0 of 1, lie 1 of 1 by 1");
    let evicted = "evict 1: its result of shard 1 of step 2 differs from that of the coordinator";
    assert!(run.play("own 1 of 1").starts_with(evicted));
}

#[test]
fn dispute_of_two_identities_is_decided_by_coordinator() {
    check_run(
        audited(),
        &[
            ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: shards 0+1 of 0"),
            // It has two voices and is one.
            ("twin 3 of 2, ready 3", "welcome 3; state 3: nothing"),
            ("shard 0 of 0 by 1, lie 0 of 0 by 2", "compute shards 0 of 0"),
            (
                "own 0 of 0",
                "evict 2: its result of shard 0 of step 1 differs from that of the coordinator; \
                 left 2, 1 reassigned; work 3: shards 1 of 0",
            ),
            ("lie 1 of 0 by 3, shard 1 of 0 by 1", "compute shards 1 of 0"),
            (
                "own 1 of 0",
                "evict 3: its result of shard 1 of step 1 differs from that of the coordinator; \
                 left 3, 0 reassigned; update 1 1: shards 0+1 of 1; step 1 by 1+1",
            ),
        ],
    );
}

#[test]
fn late_second_vote_is_computed_by_coordinator() {
    check_run(
        audited(),
        &[
            ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: shards 0+1 of 0"),
            ("shard 0 of 0 by 1, after 99, heard 1", ""),
            ("after 1", "compute shards 0 of 0"),
            ("shard 1 of 0 by 1", "compute shards 1 of 0"),
            // Whoever was overtaken is not waited for again.
            ("own 0 of 0, own 1 of 0", "update 1 1: shards 0+1 of 1 2: nothing; step 1 by 1+1"),
            ("shard 0 of 1 by 1", "compute shards 0 of 1"),
        ],
    );
}

#[test]
fn result_of_unassigned_task_is_refused() {
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
fn result_is_accepted_after_round_restart() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("shard 0 of 0 by 1, shard 1 of 0 by 1", "update 1 1: shards 0 of 1 2: shards 1 of 1; step 1 by 1+1"),
        ("shard 0 of 1 by 1, at 1", "late 1 of 2 for 1 too; work 1: shards 1 of 1"),
        (
            "long 1 of 1 by 1",
            "evict 1: expected 4 bytes in the gradient of shard 1, found 8; left 1, 1 reassigned; work 2: shards 0 of 1",
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
    assert_eq!(run.play("join 2000"), "welcome 2000", "of the coordinator's own class");
}

#[test]
fn fifth_compute_class_of_one_identity_is_refused() {
    let mut run = Run::new("1 epochs of 10 images in batches of 4, 2 shards");
    let mut join = |number: u64, identity: &str| {
        let profile = Profile { identity: Identity::new(identity), ..profile(number, &format!("class {number}")) };
        run.training.handle_event(run.now, Event::Joined(WorkerId(number), profile));
        let joined = run.drain();
        run.training.handle_event(run.now, Event::Ready(WorkerId(number)));
        run.training.handle_event(run.now, Event::Lost(WorkerId(number), "gone".to_owned()));
        run.drain();
        joined
    };
    for number in 1..=4 {
        assert_eq!(join(number, "one"), format!("welcome {number}"));
    }
    assert_eq!(
        join(5, "one"),
        "refuse 5 for good: expected at most 4 new compute classes from one, found one more, `class 5`"
    );
    assert_eq!(join(6, "other"), "welcome 6");
}
