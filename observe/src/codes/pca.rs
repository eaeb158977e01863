//! Principal component analysis: the two directions in which codes vary most.

use super::{Codes, as_f64, spread};

/// Most iterations for a component. Only where two components hold almost the same variance are so many reached, and then
/// any direction between the two is as good.
const ITERATIONS_MAX: usize = 10_000;
/// A direction has been found when an iteration moves none of its entries farther.
const TOLERANCE: f64 = 1e-12;
/// Shares of the variance below this are rounding errors.
const SHARE_MIN: f64 = 1e-12;

/// Codes in the coordinates of their first two principal components.
#[derive(Clone, Debug, PartialEq)]
pub struct Pca {
    /// One point for each code, in order; the mean of all is the origin.
    pub points: Vec<[f64; 2]>,
    /// The share of the codes' variance that each component holds, from 0 to 1; both 0 where all codes are equal.
    pub variance_shares: [f64; 2],
}

/// The first two principal components: eigenvectors of the covariance matrix with the largest eigenvalues, as in Jolliffe,
/// "Principal Component Analysis" (2nd edition, 2002), chapter 1. Found by power iteration with deflation, in f64 and in a
/// fixed order: the same codes give the same bits. The largest entry of each component is positive, as in scikit-learn.
/// A component without variance, such as the second of codes of one value, gives zeros.
pub fn pca(codes: Codes) -> Pca {
    let centered = centered(codes);
    let n_values = codes.n_values();
    let mut covariance = covariance(&centered, n_values);
    let variance: f64 = (0..n_values).map(|i| covariance[i * n_values + i]).sum();
    let mut components = [const { Vec::new() }; 2];
    let mut variance_shares = [0.0; 2];
    for (component, share) in components.iter_mut().zip(&mut variance_shares) {
        let (direction, eigenvalue) = dominant(&covariance, n_values, SHARE_MIN * variance);
        deflate(&mut covariance, &direction, eigenvalue);
        *share = if variance > 0.0 { eigenvalue / variance } else { 0.0 };
        *component = direction;
    }
    let points = centered.chunks_exact(n_values).map(|code| [dot(code, &components[0]), dot(code, &components[1])]);
    Pca { points: points.collect(), variance_shares }
}

/// The codes less their mean: [codes, values].
pub(super) fn centered(codes: Codes) -> Vec<f64> {
    let mut mean = vec![0.0; codes.n_values()];
    for code in codes.rows() {
        mean.iter_mut().zip(code).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    for sum in &mut mean {
        *sum /= as_f64(codes.len());
    }
    codes.rows().flat_map(|code| code.iter().zip(&mean).map(|(&value, mean)| f64::from(value) - mean)).collect()
}

/// Sums of products of centred values, [values, values]: the covariance but for a factor, which shares do not depend on.
fn covariance(centered: &[f64], n_values: usize) -> Vec<f64> {
    // So few rows stay in the first cache while all codes pass.
    const N_ROWS: usize = 4;
    let mut covariance = vec![0.0; n_values * n_values];
    for (block, rows) in covariance.chunks_mut(N_ROWS * n_values).enumerate() {
        // What is left of the diagonal is the same as what is right of it.
        let first = block * N_ROWS;
        for code in centered.chunks_exact(n_values) {
            for (row, &left) in rows.chunks_exact_mut(n_values).zip(&code[first..]) {
                add_scaled(&mut row[first..], &code[first..], left);
            }
        }
    }
    for i in 0..n_values {
        for j in 0..i {
            covariance[i * n_values + j] = covariance[j * n_values + i];
        }
    }
    covariance
}

/// The unit eigenvector with the largest eigenvalue, and that; zeros if it is not above `eigenvalue_min`.
fn dominant(matrix: &[f64], n_values: usize, eigenvalue_min: f64) -> (Vec<f64>, f64) {
    // Entries without a pattern: orthogonal to no eigenvector that codes have.
    let mut direction: Vec<f64> = (0..n_values).map(|i| 1.0 + spread(i)[0]).collect();
    let mut eigenvalue = 0.0;
    normalize(&mut direction);
    for _ in 0..ITERATIONS_MAX {
        // The matrix is symmetric, so that rows can be added up, which takes vector instructions.
        let mut next = vec![0.0; n_values];
        matrix.chunks_exact(n_values).zip(&direction).for_each(|(row, &scale)| add_scaled(&mut next, row, scale));
        eigenvalue = normalize(&mut next);
        if eigenvalue <= eigenvalue_min {
            return (vec![0.0; n_values], 0.0);
        }
        let change = next.iter().zip(&direction).map(|(new, old)| (new - old).abs()).fold(0.0, f64::max);
        direction = next;
        if change < TOLERANCE {
            break;
        }
    }
    let largest = direction.iter().copied().fold(0.0, |a: f64, b: f64| if b.abs() > a.abs() { b } else { a });
    for entry in &mut direction {
        *entry *= largest.signum();
    }
    (direction, eigenvalue)
}

/// Takes out of a symmetric matrix the part that lies along an eigenvector.
fn deflate(matrix: &mut [f64], direction: &[f64], eigenvalue: f64) {
    for (row, left) in matrix.chunks_exact_mut(direction.len()).zip(direction) {
        row.iter_mut().zip(direction).for_each(|(entry, right)| *entry -= eigenvalue * left * right);
    }
}

/// Scales to length 1 and gives the length before; zeros stay.
fn normalize(vector: &mut [f64]) -> f64 {
    let length = dot(vector, vector).sqrt();
    if length > 0.0 {
        for entry in vector {
            *entry /= length;
        }
    }
    length
}

fn add_scaled(sums: &mut [f64], values: &[f64], scale: f64) {
    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += scale * value);
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}
