//! A fully connected layer with its bias and activation, for images that lie one after the other.

use super::activation::{Activation, activate, slope_times};
use super::buffers::Buffer;
use super::product::{Dots, Onto, Outer, Rows, rows};
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
    } else {
        // The images are turned, not the weights.
        let mut columns = Buffer::new(x.len()); // [in, batch]
        transpose(x, n_samples, n_in, &mut columns);
        let mut turned = Buffer::new(n_out * n_samples); // [out, batch]
        Rows {
            a: weight,
            a_rows: &rows(n_out, n_in),
            a_runs: &[0],
            run: n_in,
            b: &columns,
            b_stride: n_samples,
            n: n_samples,
            c: &mut turned,
            c_rows: &rows(n_out, n_samples),
            onto: Onto::Nothing,
        }
        .compute();
        transpose(&turned, n_out, n_samples, &mut y);
    }
    activate(&mut y, bias, activation);
    y
}

/// What the gradient at the outputs is before the activation: [batch, out].
pub fn before_activation(y: &[f32], dy: &[f32], activation: Activation) -> Buffer {
    let mut dz = Buffer::new(dy.len());
    slope_times(y, dy, activation, &mut dz);
    dz
}

/// Gradient at the weights from that before the activation: `dzᵀ x` → [out, in].
pub fn weight_gradient(dz: &[f32], x: &[f32], n_samples: usize, into: &mut [f32]) {
    let (n_out, n_in) = (dz.len() / n_samples, x.len() / n_samples);
    Outer {
        a: dz,
        a_rows: &rows(n_samples, n_out),
        m: n_out,
        b: x,
        b_rows: &rows(n_samples, n_in),
        n: n_in,
        c: into,
        c_stride: n_in,
        onto: Onto::Nothing,
    }
    .compute();
}

/// Gradient at the inputs from that before the activation: `dz W` → [batch, in].
pub fn input_gradient(dz: &[f32], weight: &[f32], n_out: usize) -> Buffer {
    let (n_samples, n_in) = (dz.len() / n_out, weight.len() / n_out);
    let mut dx = Buffer::new(n_samples * n_in);
    Rows {
        a: dz,
        a_rows: &rows(n_samples, n_out),
        a_runs: &[0],
        run: n_out,
        b: weight,
        b_stride: n_in,
        n: n_in,
        c: &mut dx,
        c_rows: &rows(n_samples, n_in),
        onto: Onto::Nothing,
    }
    .compute();
    dx
}
