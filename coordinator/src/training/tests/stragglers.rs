//! Workers that are late.

use super::*;

/// A run of 30 steps of two shards, with three workers, of which shards 0 and 1 of each step have taken 1 ms, up to step 8.
fn warm() -> Run {
    let mut run = Run::new("10 epochs of 10 images in batches of 4, 2 shards");
    run.training.schedule = Schedule::new(&recipe("30 epochs of 4 images in batches of 4, 2 shards"), 120, 501, 500);
    run.play("enter 1, enter 2, enter 3, shard 0 of 0 by 1, shard 1 of 0 by 1");
    for step in 1..=8 {
        run.play(&format!("after 1, shard 0 of {step} by 1, shard 1 of {step} by 2"));
    }
    run
}

#[test]
fn late_shard_goes_to_idle_worker_and_first_result_counts() {
    // 1 ms + 8 x 5 ms, the least that a deviation counts as: after 41 ms.
    check_run(
        warm(),
        &[
            ("shard 0 of 9 by 1, after 40", ""),
            ("after 1", "late 1 of 2 for 1 too; work 1: shards 1 of 9"),
            (
                "after 1000, heard 2, heard 1, heard 3",
                "late 1 of 2 for 3 too; late 1 of 1 for 3 too; work 3: shards 1 of 9",
            ),
            // Who has not answered yet is dealt nothing.
            ("shard 1 of 9 by 3", "update 1 1: nothing 2: nothing 3: shards 0+1 of 10; step 10 by 1+3"),
            // What comes too late is no fault, and sets it free; but it rests for two steps.
            ("shard 1 of 9 by 2", ""),
            ("caught 1 up to 10", ""),
            (
                "shard 0 of 10 by 3, shard 1 of 10 by 3",
                "update 1 1: nothing 2: nothing 3: shards 0+1 of 11; step 11 by 3+3",
            ),
            (
                "shard 0 of 11 by 3, shard 1 of 11 by 3",
                "update 1 1: shards 0 of 12 2: shards 1 of 12 3: nothing; step 12 by 3+3",
            ),
            ("shard 1 of 9 by 3", "refuse 3: expected results of step 12, found one of step 9"),
        ],
    );
}

#[test]
fn late_worker_that_answers_first_counts() {
    check_run(
        warm(),
        &[
            ("after 41", "late 0 of 1 for 3 too; work 3: shards 0 of 9"),
            ("shard 0 of 9 by 1, shard 0 of 9 by 3", "late 1 of 2 for 1 too; work 1: shards 1 of 9"),
            ("shard 1 of 9 by 2", "update 1 1: nothing 2: nothing 3: shards 0+1 of 10; step 10 by 1+2"),
        ],
    );
}

#[test]
fn late_shard_without_idle_worker_waits_until_join_timeout() {
    let mut run = warm();
    run.play("lost 2, lost 3");
    check_run(
        run,
        &[
            ("after 1000, heard 1, after 1000, heard 1", ""),
            ("shard 0 of 9 by 1, shard 1 of 9 by 1", "update 1 1: shards 0+1 of 10; step 10 by 1+1"),
        ],
    );
    let signs: Vec<String> = (1..60).map(|second| format!("at {second}, heard 1")).collect();
    check(&[
        ("enter 1, shard 1 of 0 by 1", "welcome 1; state 1: shards 0+1 of 0"),
        (&signs.join(","), ""),
        ("at 60", "close 1: no answer for 60 s, the --join-timeout; left 1, 1 reassigned; waiting"),
    ]);
}

#[test]
fn unanswered_task_is_late_after_one_second_without_timings() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("after 999, heard 1", ""),
        ("after 1", "late 0 of 1 for 2 too; work 2: shards 0 of 0"),
        ("shard 0 of 0 by 2", "late 1 of 1 for 2 too; work 2: shards 1 of 0"),
        // Whoever has not answered is dealt nothing.
        ("shard 1 of 0 by 2", "update 1 1: nothing 2: shards 0+1 of 1; step 1 by 2+2"),
    ]);
}

#[test]
fn late_threshold_is_multiple_of_fastest_task_at_first() {
    check(&[
        ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
        ("after 50, shard 0 of 0 by 1, after 50, shard 1 of 0 by 1", TO_STEP_1),
        ("after 60, shard 0 of 1 by 1, after 139", ""),
        ("after 1", "late 1 of 2 for 1 too; work 1: shards 1 of 1"),
        ("shard 1 of 1 by 1", "update 1 1: shards 0+1 of 2 2: nothing; step 2 by 1+1"),
    ]);
}

const TO_STEP_1: &str = "update 1 1: shards 0 of 1 2: shards 1 of 1; step 1 by 1+1";

#[test]
fn late_threshold_of_batches_uses_batch_times() {
    let recipe = Recipe { max_steps: Some(1), ..recipe("1 epochs of 10 images in batches of 4, 2 shards") };
    let run = Run::with(recipe, |_| {});
    check_run(
        run,
        &[
            ("enter 1, enter 2", "welcome 1; state 1: shards 0+1 of 0; welcome 2; state 2: nothing"),
            (
                "after 1, shard 0 of 0 by 1, shard 1 of 0 by 1",
                "update 1 1: batches 0 of 1 2: batches 1 of 1; step 1 by 1+1",
            ),
            ("after 30, batch 0 of 1 by 1, after 89, heard 2", ""),
            ("after 1", "late 1 of 2 for 1 too; work 1: batches 1 of 1"),
        ],
    );
}
