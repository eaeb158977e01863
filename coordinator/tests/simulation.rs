//! The driver with the training core under schedules that are drawn: workers that come, die, stand still, lag, leave and lie,
//! connections that break, messages that are lost, doubled and overtaken, and a coordinator that is started anew. Whatever
//! happens, the run ends with the bits that it ends with when nothing does. One seed replays each schedule, in virtual time; no
//! clock is read, and no task is spawned but to play several of them side by side.

mod simulation {
    pub mod cluster;
    pub mod coverage;
    pub mod describe;
    pub mod network;
    pub mod plan;
    pub mod reference;
    pub mod shell;
    pub mod sim_rng;
    pub mod worker;
}

use std::num::NonZero;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use simulation::cluster::play;
use simulation::coverage::{Coverage, CoverageCounts};

const N_SEEDS: u64 = 10_000;

/// Schedules that end otherwise than they should, after which no others are played.
const N_WRONG_MAX: usize = 8;

/// Plays a seed's schedule, which has to end as it should.
fn check(seed: u64) {
    if let Err(text) = try_play(seed) {
        panic!("{text}");
    }
}

/// Plays a seed's schedule; returns what went wrong, if anything did, and how to replay it.
fn try_play(seed: u64) -> Result<CoverageCounts, String> {
    catch_unwind(|| play(seed, false)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        format!("seed {seed}: {text}; play it again with `just sim {seed}`")
    })
}

#[test]
fn ten_thousand_schedules_end_with_reference_result() {
    let (next, counts, wrong) = (AtomicU64::new(0), Mutex::new(CoverageCounts::default()), Mutex::new(Vec::new()));
    let play_some = || {
        // Ends: each turn takes a seed.
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= N_SEEDS || lock(&wrong).len() >= N_WRONG_MAX {
                return;
            }
            match try_play(seed) {
                Ok(found) => lock(&counts).add_all(&found),
                Err(text) => lock(&wrong).push(text),
            }
        }
    };
    let n_threads = available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..n_threads).for_each(|_| drop(scope.spawn(play_some))));
    let (counts, wrong) = (lock(&counts).clone(), lock(&wrong).join("\n"));
    assert!(wrong.is_empty(), "{wrong}");
    println!("{counts:#?}");
    let unseen: Vec<Coverage> = Coverage::ALL.iter().copied().filter(|&coverage| counts.of(coverage) == 0).collect();
    assert!(unseen.is_empty(), "expected every one of these in some schedule, found none: {unseen:?}");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The schedule of the seed in `TELAR_SIM_SEED`, line by line; without it that of seed 0, in silence.
#[test]
fn schedule_of_seed_ends_with_reference_result() {
    match std::env::var("TELAR_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap_or_else(|_| panic!("expected a seed in TELAR_SIM_SEED, found `{seed}`"));
            play(seed, true);
        }
        Err(_) => check(0),
    }
}

/// Schedules in which something once went wrong, in the core or in one that was broken on purpose, each named by what has to
/// hold. Whoever changes what is drawn makes other schedules of them.
mod regressions {
    use super::check;

    #[test]
    fn sums_are_added_in_tree_order() {
        check(1);
        check(2);
    }

    #[test]
    fn shard_result_counts_once() {
        check(1);
        check(5);
    }

    #[test]
    fn shards_of_dead_worker_are_reassigned() {
        check(9);
        check(20);
    }

    #[test]
    fn non_finite_gradient_is_not_applied() {
        check(334);
        check(344);
    }

    #[test]
    fn result_of_other_step_is_not_counted() {
        check(46);
        check(101);
    }

    #[test]
    fn result_on_other_parameters_is_not_counted() {
        check(482);
        check(823);
    }

    #[test]
    fn lagging_replica_gets_full_state() {
        check(3);
        check(19);
    }

    #[test]
    fn epoch_sums_survive_coordinator_restart() {
        check(0);
        check(3);
    }

    #[test]
    fn results_of_evicted_worker_are_discarded() {
        check(38);
        check(45);
    }

    #[test]
    fn result_with_wrong_bits_is_outvoted() {
        check(18);
        check(35);
    }

    #[test]
    fn unresponsive_worker_is_removed() {
        check(110);
        check(217);
    }

    #[test]
    fn leaving_worker_gets_no_new_tasks() {
        check(9);
        check(32);
    }

    /// Closing the session of one who left ended the run, or evicted another one who left, whose session was then closed
    /// again.
    #[test]
    fn leaving_worker_is_closed_only_once() {
        check(195);
        check(497);
    }
}
