//! The smallest task: a line through points. The first page of the documentation shows it.

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, TensorData};
use telar::{
    Batch, BoxError, ComputeDevice, Context, DataSource, Dataset, Fingerprint, Loss, Split, Task, clap, serde,
};

/// Values of x: 900 to train on, and 50 to validate.
struct Line(Vec<f32>);

impl Dataset for Line {
    type Batch = Vec<f32>;

    fn name(&self) -> String {
        "points of y = 3 x - 1".to_owned()
    }

    fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => 900,
            Split::Valid => 50,
            Split::Test => 0,
        }
    }

    fn gather(&self, split: Split, samples: &[u32]) -> Vec<f32> {
        let first = if split == Split::Train { 0 } else { 900 };
        samples.iter().map(|&sample| self.0[first + sample as usize]).collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.iter().map(|x| x.to_le_bytes()))
    }
}

#[derive(Module, Debug)]
struct Net {
    linear: Linear,
}

#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Fit {}

impl Task for Fit {
    const NAME: &'static str = "fit";
    type Network = Net;
    type Data = Line;

    fn data(&self, _source: &DataSource) -> Result<Line, BoxError> {
        Ok(Line((0..950_u16).map(|place| f32::from(place) / 1000.0).collect()))
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Net {
        Net { linear: LinearConfig::new(1, 1).init(device) }
    }

    fn loss(&self, network: &Net, x: Batch<Self>, context: &Context<'_>) -> Loss {
        let x = Tensor::<2>::from_data(TensorData::new(x, [context.n_samples(), 1]), context.device());
        let errors = network.linear.forward(x.clone()) - (x * 3.0 - 1.0);
        Loss::sum(errors.powi_scalar(2).sum())
    }
}

fn main() -> ExitCode {
    telar::main(Fit::default())
}

#[cfg(test)]
mod tests {
    use burn::nn::Initializer;
    use telar::testing;

    use super::*;

    #[test]
    fn loss_is_sum_of_squared_errors() {
        let device = ComputeDevice::default();
        let zeros = LinearConfig::new(1, 1).with_initializer(Initializer::Zeros);
        let network = Net { linear: zeros.init(&device) };
        let context = testing::evaluation_context(&device, 2);
        let sums = Fit::default().loss(&network, vec![0.0, 1.0], &context).sums(2);
        assert!((sums.loss_sum - 5.0).abs() < 1e-6, "y is -1 and 2, and the network says 0: {sums:?}");
    }

    #[test]
    fn task_keeps_the_rules() -> Result<(), BoxError> {
        let task = Fit::default();
        let data = task.data(&DataSource::default())?;
        testing::check(task, data)
    }
}
