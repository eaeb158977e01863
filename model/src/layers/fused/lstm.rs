//! A whole LSTM layer over a sequence, forward and through time backward. Values of a feature lie together, step after
//! step: [features, steps, batch]. So every product takes weights and values as they lie, and the gradients at the weights
//! are products over all steps at once. What only its own step needs lies together with it: [steps, features, batch].

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
    /// After their functions: [steps, 4 hidden, batch].
    gates: Buffer,
    /// [steps, hidden, batch].
    cells: Buffer,
    /// Their hyperbolic tangents: [steps, hidden, batch].
    cell_tanhs: Buffer,
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

/// Goes through the sequence from a state of zeros; gives each step's output, [hidden, steps, batch], too.
pub fn forward(input: Input, parameters: Parameters, extent: Extent) -> (Buffer, Unrolled) {
    let (n_samples, n_hidden, row) = (extent.n_samples, parameters.n_hidden(), extent.row());
    let n_gates = N_GATES * n_hidden;
    let given = match input {
        Input::Steps(x) => Given::Steps(x),
        // Projected once, not once a step.
        Input::Repeated(x) => Given::Projected(project(x, parameters.weight_ih, parameters.bias, n_samples)),
    };
    let mut gates = Buffer::new(n_gates * row);
    let [mut cells, mut cell_tanhs, mut hidden] = [(); 3].map(|()| Buffer::new(n_hidden * row));
    let [mut state, zeros] = [(); 2].map(|()| Buffer::zeros(n_hidden * n_samples));
    let (n_in, gate_rows) = (parameters.weight_ih.len() / n_gates, rows(n_gates, n_samples));
    let (input_rows, hidden_rows) = (rows(n_gates, n_in), rows(n_gates, n_hidden));
    let each_step = gates.chunks_exact_mut(n_gates * n_samples).enumerate();
    for (step, gates) in each_step {
        let add = |a, a_rows, run, b, b_stride, gates: &mut [f32]| {
            let (n, c_rows, onto) = (n_samples, &gate_rows, Onto::Values);
            Rows { a, a_rows, a_runs: &[0], run, b, b_stride, n, c: gates, c_rows, onto }.compute();
        };
        match &given {
            Given::Projected(projected) => gates.copy_from_slice(projected),
            Given::Steps(x) => {
                for (gates, bias) in gates.chunks_exact_mut(n_samples).zip(parameters.bias) {
                    gates.fill(*bias);
                }
                add(parameters.weight_ih, &input_rows, n_in, &x[step * n_samples..], row, gates);
            }
        }
        if step > 0 {
            add(parameters.weight_hh, &hidden_rows, n_hidden, &state, n_samples, gates);
        }
        let (before, cells) = cells.split_at_mut(step * state.len());
        let before = if step == 0 { &zeros[..] } else { &before[(step - 1) * state.len()..] };
        let cell_tanhs = &mut cell_tanhs[step * state.len()..];
        advance(Advance { gates, before, cells, cell_tanhs, state: &mut state });
        for (hidden, state) in hidden.chunks_exact_mut(row).zip(state.chunks_exact(n_samples)) {
            hidden[step * n_samples..][..n_samples].copy_from_slice(state);
        }
    }
    (hidden, Unrolled { extent, gates, cells, cell_tanhs })
}

/// An input as the steps take it.
enum Given<'a> {
    /// [in, steps, batch].
    Steps(&'a [f32]),
    /// The input's share of the gates, with the bias, the same at every step: [4 hidden, batch].
    Projected(Buffer),
}

/// What a step changes, and what from. Each is [hidden, batch] or begins so; the gates are four times that.
struct Advance<'a> {
    /// Before their functions, and then after.
    gates: &'a mut [f32],
    /// The cells of the step before.
    before: &'a [f32],
    cells: &'a mut [f32],
    cell_tanhs: &'a mut [f32],
    /// The outputs.
    state: &'a mut [f32],
}

#[with_simd(advance = Arch::new())]
#[inline(always)]
fn advance_with_simd<S: Simd>(_simd: S, change: Advance<'_>) {
    let Advance { gates, before, cells, cell_tanhs, state } = change;
    let n_values = state.len();
    let [i, f, g, o] = four(gates, n_values);
    let (before, cells, cell_tanhs) = (&before[..n_values], &mut cells[..n_values], &mut cell_tanhs[..n_values]);
    for place in 0..n_values {
        let (input, forget, value, output) = (sigmoid(i[place]), sigmoid(f[place]), tanh(g[place]), sigmoid(o[place]));
        let cell = forget * before[place] + input * value;
        let cell_tanh = tanh(cell);
        (i[place], f[place], g[place], o[place]) = (input, forget, value, output);
        (cells[place], cell_tanhs[place], state[place]) = (cell, cell_tanh, output * cell_tanh);
    }
}

/// The four gates of `n` values each.
#[inline(always)]
fn four(gates: &mut [f32], n: usize) -> [&mut [f32]; 4] {
    let (i, gates) = gates.split_at_mut(n);
    let (f, gates) = gates.split_at_mut(n);
    let (g, gates) = gates.split_at_mut(n);
    [i, f, g, &mut gates[..n]]
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
    let zeros = Buffer::zeros(n_hidden * n_samples);
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
        let n = dstate.len();
        retreat(Retreat {
            gates: part(&unrolled.gates, step, N_GATES * n),
            before: if step == 0 { &zeros } else { part(&unrolled.cells, step - 1, n) },
            cell_tanhs: part(&unrolled.cell_tanhs, step, n),
            dstate: &dstate,
            dcells: &mut dcells,
            dgates: &mut dstep,
        });
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

/// Part number `place` of so many values.
fn part(values: &[f32], place: usize, n_values: usize) -> &[f32] {
    &values[place * n_values..][..n_values]
}

/// What a step on the way back changes, and what from. Each is [hidden, batch]; gates are four times that.
struct Retreat<'a> {
    /// After their functions.
    gates: &'a [f32],
    /// The cells of the step before.
    before: &'a [f32],
    cell_tanhs: &'a [f32],
    /// Gradient at the outputs.
    dstate: &'a [f32],
    /// Gradient at the cells from the steps after it, and then at those of the step before.
    dcells: &'a mut [f32],
    /// Gradient at the gates before their functions.
    dgates: &'a mut [f32],
}

#[with_simd(retreat = Arch::new())]
#[inline(always)]
fn retreat_with_simd<S: Simd>(_simd: S, change: Retreat<'_>) {
    let Retreat { gates, before, cell_tanhs, dstate, dcells, dgates } = change;
    let n_values = dstate.len();
    let [i, f, g, o] = [0, 1, 2, 3].map(|gate| &gates[gate * n_values..][..n_values]);
    let [di, df, dg, d_o] = four(dgates, n_values);
    let (before, cell_tanhs, dcells) = (&before[..n_values], &cell_tanhs[..n_values], &mut dcells[..n_values]);
    for place in 0..n_values {
        let (input, forget, value, output) = (i[place], f[place], g[place], o[place]);
        let (dh, cell_tanh) = (dstate[place], cell_tanhs[place]);
        let dcell = dcells[place] + dh * output * (1.0 - cell_tanh * cell_tanh);
        di[place] = dcell * value * input * (1.0 - input);
        df[place] = dcell * before[place] * forget * (1.0 - forget);
        dg[place] = dcell * input * (1.0 - value * value);
        d_o[place] = dh * cell_tanh * output * (1.0 - output);
        dcells[place] = dcell * forget;
    }
}

/// Gradient at the recurrent kernel: each step's gates with the outputs of the step before → [4 hidden, hidden].
pub fn recurrent_gradient(hidden: &[f32], dgates: &[f32], extent: Extent, into: &mut [f32]) {
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

/// The outputs of the last step: [hidden, steps, batch] → [hidden, batch].
pub fn last(hidden: &[f32], extent: Extent) -> Buffer {
    let Extent { n_steps, n_samples } = extent;
    let mut last = Buffer::new(hidden.len() / n_steps);
    for (last, row) in last.chunks_exact_mut(n_samples).zip(hidden.chunks_exact(extent.row())) {
        last.copy_from_slice(&row[(n_steps - 1) * n_samples..]);
    }
    last
}

impl Unrolled {
    /// Steps and sequences.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}
