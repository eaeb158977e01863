//! A fully connected layer with its bias and activation, for images that lie one after the other.

use super::activation::{Activation, activate, slope_times};
use super::buffers::Buffer;
use super::product::{Accumulate, Dots, Outer, Right, Rows, rows};
use super::transpose::transpose;

/// Inputs from which on dot products over them are the fastest: with fewer, the sums over a vector's lanes are too many.
const N_DOT_INPUTS_MIN: usize = 256;

/// `act(x Wᵀ + b)`: x [batch, in], W [out, in], b [out] → [batch, out].
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], activation: Activation) -> Buffer {
    let n_out = bias.len();
    let n_in = weight.len() / n_out;
    let n_samples = x.len() / n_in;
    let mut y = Buffer::new(n_samples * n_out);
    if n_in >= N_DOT_INPUTS_MIN {
        Dots {
            a: x,
            a_stride: n_in,
            m: n_samples,
            b: weight,
            b_stride: n_in,
            n: n_out,
            k: n_in,
            c: &mut y,
            c_stride: n_out,
        }
        .compute();
    } else if weight.len() < x.len() + y.len() {
        multiply(x, Right::Matrix(&transposed(weight, n_in), n_out), n_in, Accumulate::Overwrite, &mut y);
    } else {
        // The few images are transposed, not the weights.
        let columns = transposed(x, n_in); // [in, batch]
        let mut transposed_y = Buffer::new(y.len()); // [out, batch]
        multiply(weight, Right::Matrix(&columns, n_samples), n_in, Accumulate::Overwrite, &mut transposed_y);
        transpose(&transposed_y, n_out, n_samples, &mut y);
    }
    activate(&mut y, bias, activation);
    y
}

/// `x w`: x [rows, in], w [in, columns], y [rows, columns].
pub fn multiply(x: &[f32], w: Right, n_in: usize, accumulate: Accumulate, y: &mut [f32]) {
    let n_rows = x.len() / n_in;
    let n_columns = w.n_columns();
    Rows {
        a: x,
        a_rows: &rows(n_rows, n_in),
        a_runs: &[0],
        run: n_in,
        b: w,
        c: y,
        c_rows: &rows(n_rows, n_columns),
        accumulate,
    }
    .compute();
}

/// [rows, columns] → [columns, rows].
pub fn transposed(matrix: &[f32], n_columns: usize) -> Buffer {
    let mut transposed = Buffer::new(matrix.len());
    transpose(matrix, matrix.len() / n_columns, n_columns, &mut transposed);
    transposed
}

/// What the gradient at the outputs is before the activation: [batch, out].
pub fn before_activation(y: &[f32], dy: &[f32], activation: Activation) -> Buffer {
    let mut dz = Buffer::new(dy.len());
    slope_times(y, dy, activation, &mut dz);
    dz
}

/// Gradient at the weights from that before the activation: `dzᵀ x` → [out, in]. Zeros if there is no sample, as for what
/// leads from step to step in a sequence of one.
pub fn weight_gradient(dz: &[f32], x: &[f32], n_samples: usize, [n_out, n_in]: [usize; 2], into: &mut [f32]) {
    Outer {
        a: dz,
        a_rows: &rows(n_samples, n_out),
        m: n_out,
        b: x,
        b_rows: &rows(n_samples, n_in),
        n: n_in,
        c: into,
        c_stride: n_in,
        accumulate: Accumulate::Overwrite,
    }
    .compute();
}

/// Gradient at the inputs from that before the activation: `dz W` → [batch, in].
pub fn input_gradient(dz: &[f32], weight: &[f32], n_out: usize) -> Buffer {
    let n_in = weight.len() / n_out;
    let mut dx = Buffer::new(dz.len() / n_out * n_in);
    multiply(dz, Right::Matrix(weight, n_in), n_out, Accumulate::Overwrite, &mut dx);
    dx
}
