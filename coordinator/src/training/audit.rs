//! Which tasks are audited: shards, and batches of validations, by which runs may end. They are drawn by a secret that no worker
//! receives, so that no worker can give right answers only where they are compared.

use std::fmt;

use blake3::Hash;

use super::round::TaskKind;

/// What audited shards are drawn by: 32 random bytes, the same for all processes of a run's coordinator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuditSecret([u8; 32]);

/// Says nothing of the secret, since what holds one may be printed.
impl fmt::Debug for AuditSecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AuditSecret(…)")
    }
}

impl AuditSecret {
    /// The secret of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret that [`AuditSecret::to_hex`] gave, if the text is one.
    pub fn from_hex(text: &str) -> Option<Self> {
        Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    /// 64 hexadecimal digits, for a checkpoint and nothing else.
    pub fn to_hex(self) -> String {
        Hash::from_bytes(self.0).to_string()
    }

    /// Whether a task on the parameters after `step` updates is audited, where a share of all tasks, from 0 to 1, is to be.
    pub fn draws(&self, step: u64, kind: TaskKind, task: u32, share: f64) -> bool {
        if share <= 0.0 {
            return false;
        }
        let mut key = [0; 13]; // 8 step + 4 task + 1 for a batch
        key[..8].copy_from_slice(&step.to_le_bytes());
        key[8..12].copy_from_slice(&task.to_le_bytes());
        let key = match kind {
            TaskKind::Shard => &key[..12],
            TaskKind::Batch => &key[..],
        };
        let [a, b, c, d, ..] = *blake3::keyed_hash(&self.0, key).as_bytes();
        f64::from(u32::from_le_bytes([a, b, c, d])) < share * 2_f64.powi(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_draws_depend_on_secret_and_match_share() {
        let draws = |secret: u8, share: f64| -> Vec<bool> {
            let secret = AuditSecret::new([secret; 32]);
            (0..1_000)
                .flat_map(|step| (0..4).map(move |shard| secret.draws(step, TaskKind::Shard, shard, share)))
                .collect()
        };
        let n_drawn = |draws: &[bool]| draws.iter().filter(|&&is_drawn| is_drawn).count();
        assert_eq!([0.0, 1.0].map(|share| n_drawn(&draws(1, share))), [0, 4_000]);
        let [one, other] = [1, 2].map(|secret| draws(secret, 0.25));
        assert!((900..1_100).contains(&n_drawn(&one)), "{}", n_drawn(&one));
        let n_same = one.iter().zip(&other).filter(|(one, other)| **one && **other).count();
        assert!((180..320).contains(&n_same), "a sixteenth is drawn by both, found {n_same} of 4000");
        assert_eq!(one, draws(1, 0.25));
    }

    #[test]
    fn audit_secret_round_trips_hex_and_is_not_printed() {
        let secret = AuditSecret::new([0xAB; 32]);
        assert_eq!(AuditSecret::from_hex(&secret.to_hex()), Some(secret));
        assert_eq!(AuditSecret::from_hex("ab"), None);
        assert_eq!(format!("{secret:?}"), "AuditSecret(…)");
    }
}
