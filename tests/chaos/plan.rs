//! What is drawn for a round before it begins.

use std::fmt;
use std::net::TcpListener;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A round.
pub struct Plan {
    /// All that is drawn while it is played.
    pub draws: Draws,
    /// Steps to its end.
    pub n_steps: u64,
    arch: &'static str,
    n_shards: u64,
    optimizer: &'static str,
    /// Workers at the beginning.
    pub n_workers: u64,
    /// Where workers find the coordinator, if it does not start them itself.
    pub address: Option<String>,
    checkpoint_every: u64,
    /// Whether every step reaches the disk.
    pub has_journal: bool,
    has_audit: bool,
}

/// Numbers from a seed.
#[derive(Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// A number from `min` to `max`.
    pub fn number(&mut self, min: u64, max: u64) -> u64 {
        min + self.0.next_u64() % (max - min + 1)
    }

    /// One of some values.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        let last = values.len() - 1;
        values[usize::try_from(self.number(0, last as u64)).expect("a place in a slice")]
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn drawn(seed: u64) -> Self {
        let mut draws = Draws(ChaCha8Rng::seed_from_u64(seed));
        let (arch, n_steps) =
            draws.one_of(&[("denoising", 1_000), ("denoising", 1_000), ("conv", 200), ("recurrent", 150)]);
        let address = match draws.number(0, 2) {
            0 => None,
            1 => Some("unix:socket".to_owned()),
            _ => Some(free_address(&mut draws)),
        };
        let n_workers = draws.number(2, 5);
        Self {
            arch,
            n_steps,
            n_shards: draws.number(2, 5),
            optimizer: draws.one_of(&[
                "",
                " --momentum 0.9 --nesterov --learning-rate 0.1",
                " --optimizer adamw --learning-rate 0.01 --lr-schedule cosine --warmup-steps 20 --clip-norm 0.1",
            ]),
            n_workers,
            address,
            checkpoint_every: draws.one_of(&[1, 5, 20]),
            has_journal: draws.one_of(&[false, false, true]),
            // Of two workers that differ, a third one has to say who is right.
            has_audit: n_workers > 2 && draws.one_of(&[false, true]),
            draws,
        }
    }

    /// What decides which bits come out.
    pub fn recipe_flags(&self, data: &str) -> String {
        let Self { arch, n_shards, optimizer, n_steps, .. } = self;
        format!(
            "--arch {arch} --shards {n_shards} --batch-size 16{optimizer} --epochs 1000 --max-steps {n_steps} --data {data}"
        )
    }

    /// What decides all but that.
    pub fn other_flags(&self) -> String {
        let Self { n_workers, checkpoint_every, .. } = self;
        let journal = if self.has_journal { " --journal" } else { "" };
        let audit = if self.has_audit { " --audit 0.2" } else { "" };
        let launch = self.address.as_ref().map(|address| format!(" --launch external --listen {address}"));
        format!(
            "--workers {n_workers} --checkpoint-every {checkpoint_every}{journal}{audit}{} --hash-steps \
             --heartbeat-timeout 1 --json",
            launch.unwrap_or_default()
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arch, n_steps, n_shards, optimizer, .. } = self;
        write!(out, "{arch}, {n_steps} steps of {n_shards} shards{optimizer}; {}", self.other_flags())
    }
}

/// A port of this machine that every coordinator of a round can have. Not an ephemeral port, which the system gives to
/// connecting clients: a worker that looks for its coordinator there could find itself.
fn free_address(draws: &mut Draws) -> String {
    // Ends: most ports are free.
    loop {
        let address = format!("127.0.0.1:{}", draws.number(20_000, 30_000));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
