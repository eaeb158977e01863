//! Early stopping: which epoch has the lowest validation loss, and whether it is worth going on.

use std::fmt;
use std::num::NonZeroU32;

/// The epoch with the lowest validation loss so far; of equal ones the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestEpoch {
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Its mean validation loss of a sample.
    pub val_loss: f64,
}

impl BestEpoch {
    /// The best epoch after one more epoch was validated: this epoch if its loss is below that of `best`. A loss that is not a
    /// number, as without validation samples, is never the best.
    #[must_use]
    pub fn after(best: Option<Self>, epoch: u32, val_loss: f64) -> Option<Self> {
        match best {
            _ if val_loss.is_nan() => best,
            Some(best) if val_loss >= best.val_loss => Some(best),
            Some(_) | None => Some(Self { epoch, val_loss }),
        }
    }

    /// Whether `epoch`, the last that was validated, is at least `patience` epochs after this one.
    pub fn exhausts(&self, patience: NonZeroU32, epoch: u32) -> bool {
        epoch.saturating_sub(self.epoch) >= patience.get()
    }
}

impl fmt::Display for BestEpoch {
    /// The epoch counted from 1.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "epoch {}, val loss {:.4}", self.epoch + 1, self.val_loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_epoch_is_first_of_lowest_losses() {
        let losses = [0.5, 0.3, f64::NAN, 0.3, 0.4];
        let best = (0..).zip(losses).fold(None, |best, (epoch, loss)| BestEpoch::after(best, epoch, loss));
        assert_eq!(best, Some(BestEpoch { epoch: 1, val_loss: 0.3 }));
        assert_eq!(BestEpoch::after(None, 0, f64::NAN), None);
    }

    #[test]
    fn patience_counts_epochs_after_best() {
        let best = BestEpoch { epoch: 4, val_loss: 0.25 };
        let patience = NonZeroU32::new(2).expect("above 0");
        let found: Vec<bool> = (3..8).map(|epoch| best.exhausts(patience, epoch)).collect();
        assert_eq!(found, [false, false, false, true, true]);
        assert_eq!(best.to_string(), "epoch 5, val loss 0.2500");
    }
}
