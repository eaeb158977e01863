//! What `telar::testing::check` finds in tasks that break a rule.

use std::sync::atomic::{AtomicU32, Ordering};

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Tensor, TensorData};
use telar::{
    Batch, BoxError, ComputeDevice, Context, DataSource, Dataset, Fingerprint, Loss, Metric, Split, Task, clap, serde,
    testing,
};

/// Ten numbers.
struct Numbers;

impl Dataset for Numbers {
    type Batch = Vec<f32>;

    fn name(&self) -> String {
        "numbers".to_owned()
    }

    fn len(&self, _split: Split) -> usize {
        10
    }

    fn gather(&self, _split: Split, samples: &[u32]) -> Vec<f32> {
        samples.iter().map(|&sample| 1.0 + f32::from(u16::try_from(sample).expect("below 10"))).collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(["numbers"])
    }
}

#[derive(Module, Debug)]
struct Net {
    linear: Linear,
    dropout: Dropout,
    norm: Option<BatchNorm>,
}

/// A task that breaks a rule.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Faulty {
    /// Which: mean, moving, centred, norm, counts, shares, nan or refused; none, or dropout, which is no fault
    #[arg(long)]
    how: Option<String>,
}

impl Faulty {
    fn is(&self, how: &str) -> bool {
        self.how.as_deref() == Some(how)
    }
}

impl Task for Faulty {
    const NAME: &'static str = "faulty";
    const METRICS: &'static [Metric] = &[Metric::share_of_samples("positive")];
    type Network = Net;
    type Data = Numbers;

    fn checked(self) -> Result<Self, BoxError> {
        if self.is("refused") { Err("expected another way, found refused".into()) } else { Ok(self) }
    }

    fn data(&self, _source: &DataSource) -> Result<Numbers, BoxError> {
        Ok(Numbers)
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Net {
        Net {
            linear: LinearConfig::new(1, 1).init(device),
            dropout: DropoutConfig::new(if self.is("dropout") { 0.5 } else { 0.0 }).init(),
            norm: self.is("norm").then(|| BatchNormConfig::new(1).init(device)),
        }
    }

    fn loss(&self, network: &Net, batch: Batch<Self>, context: &Context<'_>) -> Loss {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let n_samples = context.n_samples();
        let x = Tensor::<2>::from_data(TensorData::new(batch, [n_samples, 1]), context.device());
        let x = if self.is("centred") { x.clone() - x.mean_dim(0) } else { x };
        let errors = network.dropout.forward(network.linear.forward(x)) - 2.0;
        let squares = errors.powi_scalar(2);
        let scale = match self.how.as_deref() {
            #[expect(clippy::cast_precision_loss, reason = "a few calls")]
            Some("moving") => 1.0 + CALLS.fetch_add(1, Ordering::Relaxed) as f32,
            Some("nan") => f32::NAN,
            _ => 1.0,
        };
        let loss = if self.is("mean") { squares.mean() } else { squares.sum() };
        let count = match self.how.as_deref() {
            Some("counts") => n_samples + 1,
            Some("shares") => 1,
            _ => n_samples,
        };
        Loss::sum(loss * scale).counts([count as u64])
    }
}

fn check(how: &str) -> Result<(), String> {
    testing::check(Faulty { how: Some(how.to_owned()) }, Numbers).map_err(|error| error.to_string())
}

#[test]
fn task_that_keeps_the_rules_passes() {
    assert_eq!(check("none"), Ok(()));
    assert_eq!(check("dropout"), Ok(()), "what is drawn from a context's stream is the same each time");
}

#[test]
fn broken_rule_gets_sentence() {
    let check = |how: &str, part: &str| {
        let error = check(how).expect_err(how);
        assert!(error.contains(part), "{how}: {error}");
    };
    check("mean", "expected the loss of 6 samples as the sum over two parts of them");
    check("centred", "expected the loss of 6 samples as the sum over two parts of them");
    check("moving", "expected the same bits when samples are computed again, found another gradient of linear.weight");
    check("nan", "expected a finite loss and gradient, found the loss NaN");
    check("counts", "expected a count of at most 6 for positive in a batch of 6 samples, found 7");
    check("shares", "expected count 0 of 6 samples as the sum over two parts of them, 2, found 1");
    check("norm", "the network of the task faulty cannot be trained");
    check("refused", "expected another way, found refused");
}
