//! 3x3 convolutions with SELU and pooling, and transposed ones. Values of a pixel lie together: [batch, height, width,
//! channels]; a window's three rows are then three runs of the padded image, and no image is copied apart for the product.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::activation::{Activation, activate, selu_of};
use super::buffers::Buffer;
use super::product::{Accumulate, Outer, Panels, Right, RowStarts, Rows};

/// Side of a window.
const SIDE: usize = 3;
/// Places of a window.
const N_TAPS: usize = SIDE * SIDE;

/// Rows and columns of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    fn n_pixels(self) -> usize {
        self.height * self.width
    }

    /// With `n` rows and columns more.
    fn grown(self, n: usize) -> Self {
        Self { height: self.height + n, width: self.width + n }
    }

    /// After pooling: an odd last row or column is dropped.
    pub fn halved(self) -> Self {
        Self { height: self.height / 2, width: self.width / 2 }
    }

    /// Where the pixels of the upper left `part` begin, every `step`-th row and column, in steps of `n_channels`.
    fn row_starts(self, part: Self, step: usize, n_channels: usize) -> RowStarts {
        let row = |y: usize| (0..part.width).map(move |x| (step * y * self.width + step * x) * n_channels);
        (0..part.height).flat_map(row).collect()
    }

    /// Where a window's three rows begin.
    fn window_rows(self, n_channels: usize) -> [usize; SIDE] {
        [0, 1, 2].map(|y| y * self.width * n_channels)
    }
}

/// Writes an image into a larger one, from its place (`margin`, `margin`) on.
fn place_into(image: &[f32], size: Size, n_channels: usize, into: &mut [f32], into_size: Size, margin: usize) {
    let row = size.width * n_channels;
    let starts = (0..size.height).map(|y| ((y + margin) * into_size.width + margin) * n_channels);
    for (from, start) in image.chunks_exact(row).zip(starts) {
        into[start..start + row].copy_from_slice(from);
    }
}

/// Kernels [a, b, 3, 3] → [places, a, b], place by place of the window as `tap_of` names them, or → [places, b, a].
fn packed(weight: &[f32], [n_a, n_b]: [usize; 2], taps: &[usize], inner: Inner) -> Buffer {
    let mut packed = Buffer::new(taps.len() * n_a * n_b);
    for (&tap, values) in taps.iter().zip(packed.chunks_exact_mut(n_a * n_b)) {
        match inner {
            Inner::Second => {
                let from = weight[tap..].iter().step_by(N_TAPS);
                values.iter_mut().zip(from).for_each(|(value, from)| *value = *from);
            }
            Inner::First => {
                for (b, row) in values.chunks_exact_mut(n_a).enumerate() {
                    let from = weight[b * N_TAPS + tap..].iter().step_by(n_b * N_TAPS);
                    row.iter_mut().zip(from).for_each(|(value, from)| *value = *from);
                }
            }
        }
    }
    packed
}

/// Which of a kernel's two channel axes lies closest together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    First,
    Second,
}

/// The reverse of [`packed`] with all places in order: [places, b, a] → [a, b, 3, 3].
pub fn unpack(packed: &[f32], [n_a, n_b]: [usize; 2], weight: &mut [f32]) {
    for (tap, values) in packed.chunks_exact(n_a * n_b).enumerate() {
        for (b, row) in values.chunks_exact(n_a).enumerate() {
            let into = weight[b * N_TAPS + tap..].iter_mut().step_by(n_b * N_TAPS);
            into.zip(row).for_each(|(into, value)| *into = *value);
        }
    }
}

/// A 3x3 convolution, *same* padding, 2x2 max pooling, bias and SELU: x [batch, height, width, in], W [out, in, 3, 3],
/// b [out] → [batch, height / 2, width / 2, out], and which pixel of each window was the largest (0 to 3, row by row).
pub fn forward_pooled(x: &[f32], weight: &[f32], bias: &[f32], size: Size) -> (Buffer, Vec<u8>) {
    let n_out = bias.len();
    let n_in = weight.len() / (n_out * N_TAPS);
    let (padded_size, half) = (size.grown(2), size.halved());
    let used = Size { height: 2 * half.height, width: 2 * half.width };
    let n_samples = x.len() / (size.n_pixels() * n_in);
    let taps: Vec<usize> = (0..N_TAPS).collect();
    let kernel = Panels::new(&packed(weight, [n_out, n_in], &taps, Inner::First), n_out); // [places, in, out]
    let mut padded = Buffer::zeros(padded_size.n_pixels() * n_in);
    let mut sums = Buffer::new(used.n_pixels() * n_out);
    let mut y = Buffer::new(n_samples * half.n_pixels() * n_out);
    let mut winners = vec![0; y.len()];
    let (a_rows, c_rows) = (padded_size.row_starts(used, 1, n_in), used.row_starts(used, 1, n_out));
    let images = x.chunks_exact(size.n_pixels() * n_in);
    let outputs = y.chunks_exact_mut(half.n_pixels() * n_out).zip(winners.chunks_exact_mut(half.n_pixels() * n_out));
    for (image, (y, winners)) in images.zip(outputs) {
        place_into(image, size, n_in, &mut padded, padded_size, 1);
        Rows {
            a: &padded,
            a_rows: &a_rows,
            a_runs: &padded_size.window_rows(n_in),
            run: SIDE * n_in,
            b: Right::Panels(&kernel),
            c: &mut sums,
            c_rows: &c_rows,
            accumulate: Accumulate::Overwrite,
        }
        .compute();
        pool(&sums, used.width * n_out, bias, y, winners);
    }
    (y, winners)
}

/// Pools [2 height, 2 width, out], rows of `row` values, adds the bias and applies SELU. SELU rises and the bias moves all
/// alike, so they may as well come after: a quarter of the work.
#[with_simd(pool = Arch::new())]
#[inline(always)]
fn pool_with_simd<'a, S: Simd>(
    _simd: S,
    sums: &'a [f32],
    row: usize,
    bias: &'a [f32],
    y: &'a mut [f32],
    winners: &'a mut [u8],
) {
    let n_out = bias.len();
    let rows = y.chunks_exact_mut(row / 2).zip(winners.chunks_exact_mut(row / 2));
    for (rows, (y, winners)) in sums.chunks_exact(2 * row).zip(rows) {
        let (upper, lower) = rows.split_at(row);
        let pixels = y.chunks_exact_mut(n_out).zip(winners.chunks_exact_mut(n_out));
        let windows = upper.chunks_exact(2 * n_out).zip(lower.chunks_exact(2 * n_out));
        for ((upper, lower), (y, winners)) in windows.zip(pixels) {
            let (first, second) = upper.split_at(n_out);
            let (third, fourth) = lower.split_at(n_out);
            for channel in 0..n_out {
                let (mut largest, mut winner) = (first[channel], 0);
                for (value, place) in [(second[channel], 1), (third[channel], 2), (fourth[channel], 3)] {
                    // The first of equals, as in Keras; NaN always propagates.
                    let is_larger = (value > largest) | value.is_nan();
                    largest = if is_larger { value } else { largest };
                    winner = if is_larger { place } else { winner };
                }
                y[channel] = selu_of(largest + bias[channel]);
                winners[channel] = winner;
            }
        }
    }
}

/// Gradients of [`forward_pooled`], from that before the activation.
#[derive(Debug)]
pub struct PooledGradient<'a> {
    /// Input: [batch, height, width, in].
    pub x: &'a [f32],
    /// Kernels: [out, in, 3, 3].
    pub weight: &'a [f32],
    /// Which pixel of each window was the largest.
    pub winners: &'a [u8],
    /// Gradient at the largest: [batch, height / 2, width / 2, out].
    pub dz: &'a [f32],
    /// Of the input.
    pub size: Size,
    /// Output channels.
    pub n_out: usize,
}

impl PooledGradient<'_> {
    /// The gradient at the kernels, [places, in, out], and that at the input where it is wanted.
    pub fn compute(&self, wants_input: bool) -> (Buffer, Option<Buffer>) {
        let Self { x, weight, winners, dz, size, n_out } = *self;
        let n_in = weight.len() / (n_out * N_TAPS);
        let (padded_size, half) = (size.grown(2), size.halved());
        let used = Size { height: 2 * half.height, width: 2 * half.width };
        let mut padded = Buffer::zeros(padded_size.n_pixels() * n_in);
        // What is in the margins, and in an odd last row or column, stays 0.
        let mut dsums = Buffer::zeros(padded_size.n_pixels() * n_out);
        let mut dkernel = Buffer::zeros(N_TAPS * n_in * n_out); // [places, in, out]
        let reversed: Vec<usize> = (0..N_TAPS).rev().collect();
        let kernel = wants_input.then(|| packed(weight, [n_out, n_in], &reversed, Inner::Second)); // [places, out, in]
        let kernel = kernel.map(|kernel| Panels::new(&kernel, n_in));
        let mut dx = wants_input.then(|| Buffer::new(x.len()));
        let (x_rows, dsum_rows) = (padded_size.row_starts(used, 1, n_in), padded_size.row_starts(used, 1, n_out));
        let (dx_from, dx_rows) = (padded_size.row_starts(size, 1, n_out), size.row_starts(size, 1, n_in));
        let interior = (padded_size.width + 1) * n_out;
        let (image, half_image) = (size.n_pixels() * n_in, half.n_pixels() * n_out);
        let gradients = dz.chunks_exact(half_image).zip(winners.chunks_exact(half_image));
        for (place, (x, (dz, winners))) in x.chunks_exact(image).zip(gradients).enumerate() {
            place_into(x, size, n_in, &mut padded, padded_size, 1);
            spread(dz, winners, half.width, n_out, &mut dsums[interior..], padded_size.width * n_out);
            for (start, dkernel) in
                padded_size.window_rows(n_in).into_iter().zip(dkernel.chunks_exact_mut(SIDE * n_in * n_out))
            {
                Outer {
                    a: &padded[start..],
                    a_rows: &x_rows,
                    m: SIDE * n_in,
                    b: &dsums[interior..],
                    b_rows: &dsum_rows,
                    n: n_out,
                    c: dkernel,
                    c_stride: n_out,
                    accumulate: Accumulate::Add,
                }
                .compute();
            }
            if let (Some(dx), Some(kernel)) = (&mut dx, &kernel) {
                Rows {
                    a: &dsums,
                    a_rows: &dx_from,
                    a_runs: &padded_size.window_rows(n_out),
                    run: SIDE * n_out,
                    b: Right::Panels(kernel),
                    c: &mut dx[place * image..][..image],
                    c_rows: &dx_rows,
                    accumulate: Accumulate::Overwrite,
                }
                .compute();
            }
        }
        (dkernel, dx)
    }
}

/// Gives each window's gradient to the pixel that won, and 0 to the others.
#[with_simd(spread = Arch::new())]
#[inline(always)]
fn spread_with_simd<'a, S: Simd>(
    _simd: S,
    dz: &'a [f32],
    winners: &'a [u8],
    half_width: usize,
    n_out: usize,
    into: &'a mut [f32],
    row: usize,
) {
    let pixels = dz.chunks_exact(n_out).zip(winners.chunks_exact(n_out));
    for (pixel, (dz, winners)) in pixels.enumerate() {
        let (y, x) = (pixel / half_width, pixel % half_width);
        for place in 0..4_u8 {
            let (down, right) = (usize::from(place / 2), usize::from(place % 2));
            let start = (2 * y + down) * row + (2 * x + right) * n_out;
            for ((into, &dz), &winner) in into[start..start + n_out].iter_mut().zip(dz).zip(winners) {
                *into = if winner == place { dz } else { 0.0 };
            }
        }
    }
}

/// A 3x3 transposed convolution, stride 2.
#[derive(Clone, Copy, Debug)]
pub struct Transposed<'a> {
    /// Input: [batch, n, m, in].
    pub x: &'a [f32],
    /// Kernels: [in, out, 3, 3].
    pub weight: &'a [f32],
    /// Of the input.
    pub size: Size,
    /// Of the output: 2n or 2n + 1 rows, 2m or 2m + 1 columns.
    pub out_size: Size,
    /// Output channels.
    pub n_out: usize,
}

impl Transposed<'_> {
    fn n_in(&self) -> usize {
        self.weight.len() / (self.n_out * N_TAPS)
    }

    /// [batch, rows, columns, out], with bias and activation. Each pixel of the output has two window places in a direction
    /// if it is even there, and one if it is odd: four products, each over the pixels of one kind.
    pub fn forward(&self, bias: &[f32], activation: Activation) -> Buffer {
        let Self { x, weight, size, out_size, n_out } = *self;
        let n_in = self.n_in();
        let (image, out_image) = (size.n_pixels() * n_in, out_size.n_pixels() * n_out);
        let mut y = Buffer::new(x.len() / image * out_image);
        let padded_size = size.grown(2);
        let mut padded = Buffer::zeros(padded_size.n_pixels() * n_in);
        let kinds = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(down, right)| {
            // Window places in the order of the padded input's rows and columns.
            let [rows, columns] = [down, right].map(|odd| if odd == 0 { &[2, 0][..] } else { &[1][..] });
            let taps: Vec<usize> = rows.iter().flat_map(|y| columns.iter().map(move |x| SIDE * y + x)).collect();
            let part =
                Size { height: (out_size.height - down).div_ceil(2), width: (out_size.width - right).div_ceil(2) };
            let first = (down * padded_size.width + right) * n_in;
            let runs: Vec<usize> = (0..rows.len()).map(|y| first + y * padded_size.width * n_in).collect();
            let start = (down * out_size.width + right) * n_out;
            ParityClass {
                run: columns.len() * n_in,
                kernel: Panels::new(&packed(weight, [n_in, n_out], &taps, Inner::Second), n_out), // [places, in, out]
                a_rows: padded_size.row_starts(part, 1, n_in),
                c_rows: out_size.row_starts(part, 2, n_out).iter().map(|place| place + start).collect(),
                runs,
            }
        });
        for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(out_image)) {
            place_into(x, size, n_in, &mut padded, padded_size, 1);
            for ParityClass { run, kernel, a_rows, c_rows, runs } in &kinds {
                Rows {
                    a: &padded,
                    a_rows,
                    a_runs: runs,
                    run: *run,
                    b: Right::Panels(kernel),
                    c: y,
                    c_rows,
                    accumulate: Accumulate::Overwrite,
                }
                .compute();
            }
        }
        activate(&mut y, bias, activation);
        y
    }

    /// From the gradient before the activation that at the kernels, [places, out, in], and that at the input where it is
    /// wanted.
    pub fn gradient(&self, dz: &[f32], wants_input: bool) -> (Buffer, Option<Buffer>) {
        let Self { x, weight, size, out_size, n_out } = *self;
        let n_in = self.n_in();
        let full = Size { height: 2 * size.height + 1, width: 2 * size.width + 1 };
        // A row or column that is cut off has no gradient.
        let mut padded = Buffer::zeros(full.n_pixels() * n_out);
        let mut dkernel = Buffer::zeros(N_TAPS * n_out * n_in); // [places, out, in]
        let taps: Vec<usize> = (0..N_TAPS).collect();
        let kernel = wants_input.then(|| packed(weight, [n_in, n_out], &taps, Inner::First)); // [places, out, in]
        let kernel = kernel.map(|kernel| Panels::new(&kernel, n_in));
        let mut dx = wants_input.then(|| Buffer::new(x.len()));
        let (windows, x_rows) = (full.row_starts(size, 2, n_out), size.row_starts(size, 1, n_in));
        let (image, out_image) = (size.n_pixels() * n_in, out_size.n_pixels() * n_out);
        for (place, (x, dz)) in x.chunks_exact(image).zip(dz.chunks_exact(out_image)).enumerate() {
            place_into(dz, out_size, n_out, &mut padded, full, 0);
            for (start, dkernel) in
                full.window_rows(n_out).into_iter().zip(dkernel.chunks_exact_mut(SIDE * n_out * n_in))
            {
                Outer {
                    a: &padded[start..],
                    a_rows: &windows,
                    m: SIDE * n_out,
                    b: x,
                    b_rows: &x_rows,
                    n: n_in,
                    c: dkernel,
                    c_stride: n_in,
                    accumulate: Accumulate::Add,
                }
                .compute();
            }
            if let (Some(dx), Some(kernel)) = (&mut dx, &kernel) {
                Rows {
                    a: &padded,
                    a_rows: &windows,
                    a_runs: &full.window_rows(n_out),
                    run: SIDE * n_out,
                    b: Right::Panels(kernel),
                    c: &mut dx[place * image..][..image],
                    c_rows: &x_rows,
                    accumulate: Accumulate::Overwrite,
                }
                .compute();
            }
        }
        (dkernel, dx)
    }
}

/// The output pixels that are even or odd in the same way.
struct ParityClass {
    run: usize,
    kernel: Panels,
    a_rows: RowStarts,
    c_rows: RowStarts,
    runs: Vec<usize>,
}
