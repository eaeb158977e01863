//! The soak: runs in which workers and coordinators are killed, held up, asked to end, started and resumed at drawn
//! instants. Each has to end with the bits of one undisturbed process; a table says what the faults cost.
//!
//! Every round has a seed of its own, from which all is drawn: what is trained, by whom, which faults come after which
//! pauses. The same seed gives the same draws, though not the same instants: those depend on the machine.

mod plan;
mod round;
mod table;

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::TestDir;
use plan::Plan;
use round::Round;
use table::Table;

/// The default seed of the first round, and the default time; each later round's seed is the one before it plus 1.
const SHORT_SEED: u64 = 1;
const SHORT_TIME: Duration = Duration::from_secs(20);

/// Says how to play a round again, if it fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("round failed; again: TELAR_CHAOS_SEED={} just chaos 0", self.0);
        }
    }
}

/// Plays rounds until the time is over, one at least, on a data set.
fn play(seed: u64, time: Duration, data: &str) {
    let begun = Instant::now();
    let mut table = Table::default();
    for seed in seed.. {
        let _replay = Replay(seed);
        let plan = Plan::drawn(seed);
        eprintln!("round of seed {seed}: {plan}");
        let dir = TestDir::new();
        let flags = plan.recipe_flags(data);
        let expected = dir.reference(&flags);
        let mut round = Round::begin(&dir, &plan, data);
        let run = round.play();
        run.assert_same_bits(&expected);
        round.check_workers();
        let words = table.add(&round.log(), &run, &expected, plan.n_steps);
        eprintln!("   same bits after {:.1} s: {words}", round.duration().as_secs_f64());
        if begun.elapsed() >= time {
            break;
        }
    }
    eprintln!("{table}");
}

/// The value of a variable that the caller may set.
fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("expected a number in {name}, found `{text}`")))
}

/// The goal: whatever happens to whom, and when, not a bit, a step or an image is lost. For as many minutes as
/// `TELAR_CHAOS_MINUTES` says, or some seconds; from the seed in `TELAR_CHAOS_SEED`, on the data set in the folder
/// `TELAR_CHAOS_DATA`.
#[test]
fn soak_with_random_faults_loses_nothing() {
    let minutes = variable::<f64>("TELAR_CHAOS_MINUTES");
    let time = minutes.map_or(SHORT_TIME, |minutes| Duration::from_secs_f64(60.0 * minutes));
    let seed = variable("TELAR_CHAOS_SEED").unwrap_or(SHORT_SEED);
    let data = variable("TELAR_CHAOS_DATA").unwrap_or("small".to_owned());
    play(seed, time, &data);
}
