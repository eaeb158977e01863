//! The products of matrices that the three networks take, ours beside those of the crate `gemm`, which Burn's CPU backend
//! uses. For convolutions, `gemm` is given the windows already copied to a matrix, which it would take before each product:
//! so its times are lower bounds there.
//!
//! A line for each shape: GFLOP/s of both, each the median over rounds in which they take turns, and the median of the
//! rounds' ratios.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers are small"
)]

/// The crate's own files, whose items are private.
#[path = "../src/layers"]
mod layers {
    #[path = "fused"]
    pub mod fused {
        #[expect(dead_code, unused_imports, reason = "products take buffers alone, and its tests are elsewhere")]
        pub mod buffers;
        pub mod product;
    }
}

use std::hint::black_box;
use std::time::Instant;

use gemm::{Parallelism, gemm};
use layers::fused::product::{Accumulate, Dots, Outer, Panels, Right, RowStarts, Rows, rows};

const N_ROUNDS: usize = 31;
const ROUND_SECONDS: f64 = 0.01;

/// How operands lie: each is one of the forms in `product`.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Rows of A with rows of B.
    Rows,
    /// The same, with B packed before.
    Packed,
    /// Rows of A in windows of three rows of an image, so many columns wide; B packed before.
    Windows { width: usize },
    /// Columns of A with rows of B.
    Outer,
    /// Rows of A with columns of B.
    Dots,
}

/// Which product, how it lies, and rows, columns and inner dimension.
type Case = (&'static str, Form, [usize; 3]);

const CASES: &[Case] = &[
    ("denoising: 784 to 100, shard of 8", Form::Dots, [8, 100, 784]),
    ("denoising: 784 to 100, shard of 64", Form::Dots, [64, 100, 784]),
    ("denoising: 100 to 784, shard of 8", Form::Rows, [784, 8, 100]),
    ("denoising: 100 to 784, shard of 64", Form::Rows, [64, 784, 100]),
    ("denoising: 100 to 30, shard of 64", Form::Rows, [64, 30, 100]),
    ("denoising: gradient at 100 x 784, shard of 8", Form::Outer, [100, 784, 8]),
    ("denoising: gradient at 100 x 784, shard of 64", Form::Outer, [100, 784, 64]),
    ("denoising: gradient at 784 x 100, shard of 64", Form::Outer, [784, 100, 64]),
    ("denoising: gradient at the codes of 100, shard of 8", Form::Rows, [8, 100, 784]),
    ("denoising: gradient at the codes of 100, shard of 64", Form::Rows, [64, 100, 784]),
    ("recurrent: gates of a step, shard of 8", Form::Packed, [8, 400, 100]),
    ("recurrent: gates of a step, shard of 64", Form::Packed, [64, 400, 100]),
    ("recurrent: gates from 28 inputs, shard of 8", Form::Rows, [224, 400, 28]),
    ("recurrent: gradient at a state, shard of 8", Form::Packed, [8, 100, 400]),
    ("recurrent: gradient at 400 x 100, shard of 8", Form::Outer, [400, 100, 224]),
    ("recurrent: gradient at 120 x 30, shard of 8", Form::Outer, [120, 30, 224]),
    ("conv: second layer, 14 x 14 x 16 to 32", Form::Windows { width: 14 }, [196, 32, 144]),
    ("conv: third layer, 7 x 7 x 32 to 64", Form::Windows { width: 7 }, [49, 64, 288]),
    ("conv: gradient at a row of the second kernel", Form::Outer, [48, 32, 196]),
    ("conv: gradient at a row of the third kernel", Form::Outer, [96, 64, 49]),
];

/// Operands of a product, and what both give.
struct Operands {
    form: Form,
    size: [usize; 3],
    a: Vec<f32>,
    b: Vec<f32>,
    ours: Vec<f32>,
    theirs: Vec<f32>,
    a_rows: RowStarts,
    b_rows: RowStarts,
    c_rows: RowStarts,
    /// A as a matrix, for `gemm`.
    a_matrix: Vec<f32>,
    panels: Panels,
}

impl Operands {
    fn new(form: Form, size @ [m, n, k]: [usize; 3]) -> Self {
        let values =
            |len: usize, step: usize| (0..len).map(|i| (i * step % 101) as f32 / 101.0 - 0.5).collect::<Vec<_>>();
        let (a_rows, a) = match form {
            Form::Windows { width } => {
                let (n_in, padded) = (k / 9, width + 2);
                let starts = (0..m).map(|place| (place / width * padded + place % width) * n_in);
                (starts.collect(), values(padded * (m / width + 2) * n_in, 37))
            }
            Form::Outer => (rows(k, m), values(m * k, 37)),
            _ => (rows(m, k), values(m * k, 37)),
        };
        let b = values(n * k, 53);
        let mut operands = Self {
            form,
            size,
            a_matrix: Vec::new(),
            panels: Panels::new(&b, n),
            a,
            b,
            ours: vec![0.0; m * n],
            theirs: vec![0.0; m * n],
            a_rows,
            b_rows: rows(k, n),
            c_rows: rows(m, n),
        };
        operands.a_matrix = match form {
            Form::Windows { .. } => {
                let runs = operands.runs();
                let window = |start: usize| runs.iter().flat_map(move |run| start + run..start + run + k / 3);
                operands.a_rows.iter().flat_map(|&start| window(start)).map(|place| operands.a[place]).collect()
            }
            _ => operands.a.clone(),
        };
        operands
    }

    /// Where the runs of a row of A begin.
    fn runs(&self) -> Vec<usize> {
        let k = self.size[2];
        match self.form {
            Form::Windows { width } => (0..3).map(|row| row * (width + 2) * (k / 9)).collect(),
            _ => vec![0],
        }
    }

    #[expect(clippy::many_single_char_names, reason = "matrices and their sizes")]
    fn compute_ours(&mut self) {
        let [m, n, k] = self.size;
        let runs = self.runs();
        match self.form {
            Form::Rows | Form::Packed | Form::Windows { .. } => {
                let is_packed = !matches!(self.form, Form::Rows);
                let b = if is_packed { Right::Panels(&self.panels) } else { Right::Matrix(&self.b, n) };
                let (run, c_rows) = (k / runs.len(), &self.c_rows);
                let (a, a_rows, a_runs, c) = (&self.a, &self.a_rows, &runs, &mut self.ours);
                Rows { a, a_rows, a_runs, run, b, c, c_rows, accumulate: Accumulate::Overwrite }.compute();
            }
            Form::Outer => {
                let (a, a_rows, b, b_rows, c) = (&self.a, &self.a_rows, &self.b, &self.b_rows, &mut self.ours);
                Outer { a, a_rows, m, b, b_rows, n, c, c_stride: n, accumulate: Accumulate::Overwrite }.compute();
            }
            Form::Dots => {
                let (a, b, c) = (&self.a, &self.b, &mut self.ours);
                Dots { a, a_stride: k, m, b, b_stride: k, n, k, c, c_stride: n }.compute();
            }
        }
    }

    #[expect(unsafe_code, reason = "the crate's interface")]
    #[expect(clippy::many_single_char_names, reason = "matrices and their sizes")]
    fn compute_theirs(&mut self) {
        let [m, n, k] = self.size;
        let [n_columns, n_places] = [n, k].map(|n| isize::try_from(n).expect("small"));
        let n_rows = isize::try_from(m).expect("small");
        let [a_column, a_row] = if matches!(self.form, Form::Outer) { [n_rows, 1] } else { [1, n_places] };
        let [b_column, b_row] = if matches!(self.form, Form::Dots) { [n_places, 1] } else { [1, n_columns] };
        let (c, a, b) = (self.theirs.as_mut_ptr(), self.a_matrix.as_ptr(), self.b.as_ptr());
        // SAFETY: the strides are those of matrices of these sizes, which the vectors hold.
        unsafe {
            gemm(
                m,
                n,
                k,
                c,
                1,
                n_columns,
                false,
                a,
                a_column,
                a_row,
                b,
                b_column,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

fn seconds(repeats: usize, operands: &mut Operands, compute: fn(&mut Operands)) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        compute(black_box(operands));
    }
    start.elapsed().as_secs_f64() / repeats as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!("| product | form | rows x columns x inner | gemm GFLOP/s | ours GFLOP/s | ours by gemm |");
    println!("|---|---|---|---|---|---|");
    for &(name, form, size @ [m, n, k]) in CASES {
        let mut operands = Operands::new(form, size);
        let once =
            seconds(3, &mut operands, Operands::compute_theirs).max(seconds(3, &mut operands, Operands::compute_ours));
        for (ours, theirs) in operands.ours.iter().zip(&operands.theirs) {
            assert!((ours - theirs).abs() <= 1e-3, "{name}: {ours} is not {theirs}");
        }
        let repeats = (ROUND_SECONDS / once).ceil() as usize;
        let (mut theirs, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            let their_time = seconds(repeats, &mut operands, Operands::compute_theirs);
            let our_time = seconds(repeats, &mut operands, Operands::compute_ours);
            theirs.push(their_time);
            ours.push(our_time);
            ratios.push(their_time / our_time);
        }
        let speed = |time: f64| 2e-9 * (m * n * k) as f64 / time;
        let (theirs, ours, ratio) = (speed(median(&mut theirs)), speed(median(&mut ours)), median(&mut ratios));
        println!("| {name} | {form:?} | {m} x {n} x {k} | {theirs:.0} | {ours:.0} | {ratio:.2} |");
    }
}
