//! Keras' initialisers, drawn on the host from the run's seed, so that every backend starts from the same bits.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, StandardNormal};

use engine::random::{Stream, generator, unit_f32};

/// Draws the initial values of one network, tensor by tensor.
#[derive(Debug)]
pub struct Initializer<'a> {
    seed: u64,
    n_drawn: u32,
    device: &'a Device,
}

impl<'a> Initializer<'a> {
    /// Draws for the seed and puts the values on the device.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self { seed, n_drawn: 0, device }
    }

    /// All zeros.
    pub fn zeros<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.parameter(vec![0.0; shape.iter().product()], shape)
    }

    /// Uniform in ±√(6 / (fan in + fan out)) (Glorot and Bengio, 2010). `shape` is [out, in, kernel..] or
    /// [in, out, kernel..]; the kernel's places count towards both fans.
    pub fn glorot_uniform<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<D>> {
        let n_kernel: usize = shape[2..].iter().product();
        let fans = (shape[0] + shape[1]) * n_kernel;
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a few thousand at most")]
        let limit = (6.0 / fans as f64).sqrt() as f32;
        let mut generator = generator(self.seed, Stream::InitialValues { tensor: self.n_drawn });
        let n_values = shape.iter().product();
        let values = (0..n_values).map(|_| limit * (2.0 * unit_f32(&mut generator) - 1.0)).collect();
        self.parameter(values, shape)
    }

    /// A matrix [rows, columns], rows ≥ columns, whose columns are orthonormal, uniform among all such
    /// (Saxe et al., 2013): the Q of a matrix of normal numbers, with the signs of R's diagonal divided out.
    pub fn orthogonal(&mut self, n_rows: usize, n_columns: usize) -> Param<Tensor<2>> {
        let mut generator = generator(self.seed, Stream::InitialValues { tensor: self.n_drawn });
        let mut columns: Vec<Vec<f64>> =
            (0..n_columns).map(|_| (0..n_rows).map(|_| StandardNormal.sample(&mut generator)).collect()).collect();
        orthonormalize(&mut columns);
        #[expect(clippy::cast_possible_truncation, reason = "drawn in f64, kept in f32")]
        let values =
            (0..n_rows * n_columns).map(|place| columns[place % n_columns][place / n_columns] as f32).collect();
        self.parameter(values, [n_rows, n_columns])
    }

    /// The bias of an LSTM: 0, but 1 for the forget gate (Jozefowicz et al., 2015). Shape [4 hidden].
    pub fn forget_gate_one(&mut self, n_hidden: usize) -> Param<Tensor<1>> {
        let mut values = vec![0.0; 4 * n_hidden];
        values[n_hidden..2 * n_hidden].fill(1.0); // gates i, f, g, o
        self.parameter(values, [4 * n_hidden])
    }

    fn parameter<const D: usize>(&mut self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        self.n_drawn += 1;
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }
}

/// Gram–Schmidt, each column twice over, which is enough for full precision (Giraud et al., 2005). Dividing by a
/// positive length leaves R's diagonal positive, so no sign remains to be divided out.
fn orthonormalize(columns: &mut [Vec<f64>]) {
    for position in 0..columns.len() {
        let (done, rest) = columns.split_at_mut(position);
        let column = &mut rest[0];
        for other in done.iter().chain(done.iter()) {
            let share = dot(column, other);
            for (value, unit) in column.iter_mut().zip(other) {
                *value -= share * unit;
            }
        }
        let length = dot(column, column).sqrt();
        assert!(length > 1e-9, "random columns are never dependent");
        for value in column {
            *value /= length;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::reference_device;

    #[test]
    fn orthogonal_columns_are_orthonormal() {
        let (n_rows, n_columns) = (40, 10);
        let values = Initializer::new(3, &reference_device()).orthogonal(n_rows, n_columns).val().into_data();
        let values = values.as_slice::<f32>().expect("f32");
        let column = |c: usize| (0..n_rows).map(|r| f64::from(values[r * n_columns + c])).collect::<Vec<_>>();
        for a in 0..n_columns {
            for b in 0..n_columns {
                let expected = if a == b { 1.0 } else { 0.0 };
                assert!((dot(&column(a), &column(b)) - expected).abs() < 1e-6, "columns {a} and {b}");
            }
        }
    }

    #[test]
    fn glorot_values_fill_their_range() {
        let values = Initializer::new(3, &reference_device()).glorot_uniform([64, 32, 3, 3]).val().into_data();
        let values = values.as_slice::<f32>().expect("f32");
        let limit = (6.0_f32 / (96.0 * 9.0)).sqrt();
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let mean = values.iter().sum::<f32>() / 18_432.0; // 64 * 32 * 9 = 18,432
        assert!(largest <= limit && largest > 0.999 * limit && mean.abs() < 0.02 * limit, "{largest} {mean}");
    }
}
