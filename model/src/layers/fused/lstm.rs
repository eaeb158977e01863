//! A whole LSTM layer over a sequence, forward and through time backward. Values of a feature lie together, step after
//! step: [features, steps, batch]. So every product takes weights and values as they lie, and the gradients at the weights
//! are products over all steps at once.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::buffers::Buffer;
use super::product::{Dots, Onto, Outer, Rows, rows};
use crate::arithmetic::{sigmoid, tanh};

/// Gates: i, f, g, o.
const N_GATES: usize = 4;

/// The parameters of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// [4 hidden, in].
    pub weight_ih: &'a [f32],
    /// [4 hidden, hidden].
    pub weight_hh: &'a [f32],
    /// [4 hidden].
    pub bias: &'a [f32],
}

impl Parameters<'_> {
    fn n_hidden(&self) -> usize {
        self.bias.len() / N_GATES
    }
}

/// How many steps of how many sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Steps, from 1.
    pub n_steps: usize,
    /// Sequences, from 1.
    pub n_samples: usize,
}

impl Extent {
    /// Values of one feature.
    fn row(self) -> usize {
        self.n_steps * self.n_samples
    }
}

/// What a layer is given.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Another value at each step: [in, steps, batch].
    Steps(&'a [f32]),
    /// One value at all of them: [in, batch].
    Repeated(&'a [f32]),
}

/// What a layer went through, kept for the way back.
#[derive(Debug)]
pub struct Unrolled {
    extent: Extent,
    /// After their functions: [4 hidden, steps, batch].
    gates: Buffer,
    /// [hidden, steps, batch].
    cells: Buffer,
    /// Their hyperbolic tangents: [hidden, steps, batch].
    cell_tanhs: Buffer,
    /// The outputs: [hidden, steps, batch].
    pub hidden: Buffer,
}

/// `W x + b` for columns of values: x [in, n], W [out, in], b [out] → [out, n].
pub fn project(x: &[f32], weight: &[f32], bias: &[f32], n: usize) -> Buffer {
    let n_out = bias.len();
    let n_in = weight.len() / n_out;
    let mut y = Buffer::new(n_out * n);
    for (row, bias) in y.chunks_exact_mut(n).zip(bias) {
        row.fill(*bias);
    }
    Rows {
        a: weight,
        a_rows: &rows(n_out, n_in),
        a_runs: &[0],
        run: n_in,
        b: x,
        b_stride: n,
        n,
        c: &mut y,
        c_rows: &rows(n_out, n),
        onto: Onto::Values,
    }
    .compute();
    y
}

/// Gradient at the weights of [`project`]: `dy xᵀ` → [out, in].
pub fn project_weight_gradient(dy: &[f32], x: &[f32], n: usize, into: &mut [f32]) {
    let (n_out, n_in) = (dy.len() / n, x.len() / n);
    Dots { a: dy, a_stride: n, m: n_out, b: x, b_stride: n, n: n_in, k: n, c: into, c_stride: n_in }.compute();
}

/// Gradient at the bias of [`project`]: sums over the columns.
pub fn project_bias_gradient(dy: &[f32], n: usize, into: &mut [f32]) {
    for (sum, row) in into.iter_mut().zip(dy.chunks_exact(n)) {
        *sum = sum_of(row);
    }
}

/// Gradient at the input of [`project`]: `Wᵀ dy` → [in, n].
pub fn project_input_gradient(dy: &[f32], weight: &[f32], n: usize) -> Buffer {
    let n_out = dy.len() / n;
    let n_in = weight.len() / n_out;
    let mut dx = Buffer::new(n_in * n);
    Outer {
        a: weight,
        a_rows: &rows(n_out, n_in),
        m: n_in,
        b: dy,
        b_rows: &rows(n_out, n),
        n,
        c: &mut dx,
        c_stride: n,
        onto: Onto::Nothing,
    }
    .compute();
    dx
}

/// In eight sums side by side, so that a compiler can take a vector of them.
fn sum_of(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().chain(rest).sum()
}

/// Goes through the sequence from a state of zeros.
pub fn forward(input: Input, parameters: Parameters, extent: Extent) -> Unrolled {
    let Extent { n_steps, n_samples } = extent;
    let (n_hidden, row) = (parameters.n_hidden(), extent.row());
    let n_gates = N_GATES * n_hidden;
    let mut gates = match input {
        Input::Steps(x) => project(x, parameters.weight_ih, parameters.bias, row),
        Input::Repeated(x) => {
            let projected = project(x, parameters.weight_ih, parameters.bias, n_samples);
            repeat(&projected, extent)
        }
    };
    let [mut cells, mut cell_tanhs, mut hidden] = [(); 3].map(|()| Buffer::new(n_hidden * row));
    // The last step's values, close together: each product reads all of them many times.
    let mut state = Buffer::zeros(n_hidden * n_samples);
    let zeros = Buffer::zeros(n_samples);
    let weight_rows = rows(n_gates, n_hidden);
    for step in 0..n_steps {
        let start = step * n_samples;
        if step > 0 {
            let gate_rows: Vec<usize> = (0..n_gates).map(|gate| gate * row + start).collect();
            Rows {
                a: parameters.weight_hh,
                a_rows: &weight_rows,
                a_runs: &[0],
                run: n_hidden,
                b: &state,
                b_stride: n_samples,
                n: n_samples,
                c: &mut gates,
                c_rows: &gate_rows,
                onto: Onto::Values,
            }
            .compute();
        }
        advance(Advance {
            extent,
            step,
            zeros: &zeros,
            gates: &mut gates,
            cells: &mut cells,
            cell_tanhs: &mut cell_tanhs,
            state: &mut state,
            hidden: &mut hidden,
        });
    }
    Unrolled { extent, gates, cells, cell_tanhs, hidden }
}

/// What a step changes, and where.
struct Advance<'a> {
    extent: Extent,
    step: usize,
    /// The cells before the first step: [batch].
    zeros: &'a [f32],
    /// Of this step before their functions, and then after: [4 hidden, steps, batch].
    gates: &'a mut [f32],
    /// [hidden, steps, batch].
    cells: &'a mut [f32],
    /// [hidden, steps, batch].
    cell_tanhs: &'a mut [f32],
    /// The outputs of this step, close together: [hidden, batch].
    state: &'a mut [f32],
    /// [hidden, steps, batch].
    hidden: &'a mut [f32],
}

#[with_simd(advance = Arch::new())]
#[inline(always)]
fn advance_with_simd<S: Simd>(_simd: S, change: Advance<'_>) {
    let Advance { extent, step, zeros, gates, cells, cell_tanhs, state, hidden } = change;
    let (n_samples, row) = (extent.n_samples, extent.row());
    let n_values = cells.len();
    for (unit, h) in state.chunks_exact_mut(n_samples).enumerate() {
        let place = unit * row + step * n_samples;
        let [i, f, g, o] = four(gates, n_values, place, n_samples);
        let (before, after) = cells.split_at_mut(place);
        let before = if step == 0 { &zeros[..n_samples] } else { &before[place - n_samples..place] };
        let cell_row = &mut after[..n_samples];
        let c_tanh = &mut cell_tanhs[place..place + n_samples];
        for b in 0..n_samples {
            let (input, forget, value, output) = (sigmoid(i[b]), sigmoid(f[b]), tanh(g[b]), sigmoid(o[b]));
            let cell = forget * before[b] + input * value;
            let cell_tanh = tanh(cell);
            (i[b], f[b], g[b], o[b]) = (input, forget, value, output);
            (cell_row[b], c_tanh[b], h[b]) = (cell, cell_tanh, output * cell_tanh);
        }
        hidden[place..place + n_samples].copy_from_slice(h);
    }
}

/// A row's part in each of the four gates.
#[inline(always)]
fn four(gates: &mut [f32], gate: usize, place: usize, n: usize) -> [&mut [f32]; 4] {
    let mut parts = gates.chunks_exact_mut(gate).map(|part| &mut part[place..place + n]);
    std::array::from_fn(|_| parts.next().expect("there are four gates"))
}

/// The same at every step: [features, batch] → [features, steps, batch].
fn repeat(values: &[f32], extent: Extent) -> Buffer {
    let mut repeated = Buffer::new(values.len() * extent.n_steps);
    for (row, values) in repeated.chunks_exact_mut(extent.row()).zip(values.chunks_exact(extent.n_samples)) {
        for step in row.chunks_exact_mut(extent.n_samples) {
            step.copy_from_slice(values);
        }
    }
    repeated
}

/// Sums over the steps: [features, steps, batch] → [features, batch].
fn sum_steps(values: &[f32], extent: Extent) -> Buffer {
    let mut sums = Buffer::zeros(values.len() / extent.n_steps);
    for (sums, row) in sums.chunks_exact_mut(extent.n_samples).zip(values.chunks_exact(extent.row())) {
        for step in row.chunks_exact(extent.n_samples) {
            sums.iter_mut().zip(step).for_each(|(sum, value)| *sum += value);
        }
    }
    sums
}

/// The gradient at a layer's outputs.
#[derive(Clone, Copy, Debug)]
pub enum OutputGradient<'a> {
    /// At each step: [hidden, steps, batch].
    Steps(&'a [f32]),
    /// At the last one, and none at the others: [hidden, batch].
    Last(&'a [f32]),
}

/// The gradient at the gates, before their functions: [4 hidden, steps, batch].
pub fn gates_gradient(unrolled: &Unrolled, weight_hh: &[f32], dh: OutputGradient) -> Buffer {
    let Extent { n_steps, n_samples } = unrolled.extent;
    let row = unrolled.extent.row();
    let n_hidden = unrolled.cells.len() / row;
    let n_gates = N_GATES * n_hidden;
    let mut dgates = Buffer::new(n_gates * row);
    // Of the step at hand, close together: [4 hidden, batch], and what goes on to the step before: [hidden, batch] each.
    let mut dstep = Buffer::new(n_gates * n_samples);
    let [mut dstate, mut dcells] = [(); 2].map(|()| Buffer::zeros(n_hidden * n_samples));
    let zeros = Buffer::zeros(n_samples);
    let (weight_rows, step_rows) = (rows(n_gates, n_hidden), rows(n_gates, n_samples));
    for step in (0..n_steps).rev() {
        let start = step * n_samples;
        let given = match dh {
            OutputGradient::Steps(values) => Some((values, row, start)),
            OutputGradient::Last(values) => (step + 1 == n_steps).then_some((values, n_samples, 0)),
        };
        if let Some((values, stride, start)) = given {
            for (state, values) in dstate.chunks_exact_mut(n_samples).zip(values.chunks_exact(stride)) {
                state.iter_mut().zip(&values[start..]).for_each(|(state, value)| *state += value);
            }
        }
        retreat(Retreat { unrolled, step, zeros: &zeros, dstate: &dstate, dcells: &mut dcells, dgates: &mut dstep });
        for (row, values) in dgates.chunks_exact_mut(row).zip(dstep.chunks_exact(n_samples)) {
            row[start..start + n_samples].copy_from_slice(values);
        }
        if step > 0 {
            Outer {
                a: weight_hh,
                a_rows: &weight_rows,
                m: n_hidden,
                b: &dstep,
                b_rows: &step_rows,
                n: n_samples,
                c: &mut dstate,
                c_stride: n_samples,
                onto: Onto::Nothing,
            }
            .compute();
        }
    }
    dgates
}

/// What a step on the way back changes.
struct Retreat<'a> {
    unrolled: &'a Unrolled,
    step: usize,
    /// The cells before the first step: [batch].
    zeros: &'a [f32],
    /// Gradient at the step's outputs: [hidden, batch].
    dstate: &'a [f32],
    /// Gradient at the step's cells from the steps after it, and then at those of the step before: [hidden, batch].
    dcells: &'a mut [f32],
    /// Gradient at the step's gates before their functions: [4 hidden, batch].
    dgates: &'a mut [f32],
}

#[with_simd(retreat = Arch::new())]
#[inline(always)]
fn retreat_with_simd<S: Simd>(_simd: S, change: Retreat<'_>) {
    let Retreat { unrolled, step, zeros, dstate, dcells, dgates } = change;
    let Unrolled { extent, gates, cells, cell_tanhs, .. } = unrolled;
    let (n_samples, row) = (extent.n_samples, extent.row());
    let n_values = dstate.len();
    for (unit, (dh, dc)) in dstate.chunks_exact(n_samples).zip(dcells.chunks_exact_mut(n_samples)).enumerate() {
        let place = unit * row + step * n_samples;
        let of = |gate: usize| &gates[gate * cells.len() + place..][..n_samples];
        let [i, f, g, o] = [of(0), of(1), of(2), of(3)];
        let c_tanh = &cell_tanhs[place..place + n_samples];
        let before = if step == 0 { &zeros[..n_samples] } else { &cells[place - n_samples..place] };
        let [di, df, dg, d_o] = four(dgates, n_values, unit * n_samples, n_samples);
        for b in 0..n_samples {
            let dcell = dc[b] + dh[b] * o[b] * (1.0 - c_tanh[b] * c_tanh[b]);
            di[b] = dcell * g[b] * i[b] * (1.0 - i[b]);
            df[b] = dcell * before[b] * f[b] * (1.0 - f[b]);
            dg[b] = dcell * i[b] * (1.0 - g[b] * g[b]);
            d_o[b] = dh[b] * c_tanh[b] * o[b] * (1.0 - o[b]);
            dc[b] = dcell * f[b];
        }
    }
}

/// Gradient at the recurrent kernel: each step's gates with the outputs of the step before → [4 hidden, hidden].
pub fn recurrent_gradient(unrolled: &Unrolled, dgates: &[f32], into: &mut [f32]) {
    let Unrolled { extent, hidden, .. } = unrolled;
    let row = extent.row();
    let n_hidden = hidden.len() / row;
    Dots {
        a: &dgates[extent.n_samples.min(row)..],
        a_stride: row,
        m: N_GATES * n_hidden,
        b: hidden,
        b_stride: row,
        n: n_hidden,
        k: row - extent.n_samples,
        c: into,
        c_stride: n_hidden,
    }
    .compute();
}

/// The gates' gradient as the input sees it: of a repeated one, the sum over the steps.
pub fn projected_gradient(is_repeated: bool, dgates: Buffer, extent: Extent) -> (Buffer, usize) {
    if is_repeated { (sum_steps(&dgates, extent), extent.n_samples) } else { (dgates, extent.row()) }
}

impl Unrolled {
    /// Steps and sequences.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The outputs of the last step: [hidden, batch].
    pub fn last(&self) -> Buffer {
        let Extent { n_steps, n_samples } = self.extent;
        let n_hidden = self.hidden.len() / self.extent.row();
        let mut last = Buffer::new(n_hidden * n_samples);
        for (last, row) in last.chunks_exact_mut(n_samples).zip(self.hidden.chunks_exact(self.extent.row())) {
            last.copy_from_slice(&row[(n_steps - 1) * n_samples..]);
        }
        last
    }
}
