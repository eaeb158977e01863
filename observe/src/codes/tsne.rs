//! t-SNE, by the crate `bhtsne`, made repeatable.

use bhtsne::{Neighbor, tSNE};
use rayon::ThreadPoolBuilder;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::pca::{centered, pca};
use super::{Codes, CodesError, as_f64, spread};

/// How coarsely distant points are taken together, as in the paper: lower is slower and more exact.
const THETA: f32 = 0.5;
/// Standard deviation of the first coordinate at the start, as in scikit-learn: small, so that points can still pass one
/// another.
const START_DEVIATION: f64 = 1e-4;
/// How far starting points are moved to part codes that are equal, as a fraction of [`START_DEVIATION`].
const START_SPREAD: f64 = 1e-2;

/// t-distributed stochastic neighbour embedding: van der Maaten and Hinton, "Visualizing Data using t-SNE" (2008), with the
/// Barnes-Hut approximation of van der Maaten (2014). One point for each code, in order; distances between far points and
/// sizes of clusters mean nothing. `perplexity` is about the number of neighbours of a code that count, usually 5 to 50.
///
/// It starts from the codes' principal components instead of random points (Kobak and Berens, "The art of using t-SNE for
/// single-cell transcriptomics", 2019), and adds on one thread, since sums over threads depend on their number: the same codes
/// give the same bits on the same machine, and there is no seed. The time grows with the square of the number of
/// codes; 2,000 codes of 30 values take some seconds.
///
/// # Errors
/// If there are fewer than 4 codes, the perplexity is not from 1 to a third of the other codes, or the system gives
/// no thread.
pub fn tsne(codes: Codes, perplexity: f64) -> Result<Vec<[f64; 2]>, CodesError> {
    if codes.len() < 4 {
        return Err(CodesError::TooFew { expected: 4, found: codes.len() });
    }
    let max = as_f64(codes.len() - 1) / 3.0;
    if !(1.0..=max).contains(&perplexity) {
        return Err(CodesError::Perplexity { n_codes: codes.len(), max, found: perplexity });
    }
    let (rows, start) = scaled(codes);
    let rows: Vec<&[f32]> = rows.chunks_exact(codes.n_values()).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a third of the codes")]
    let (n_neighbors, perplexity) = ((3.0 * perplexity) as usize, perplexity as f32);
    let neighbors = neighbors(&rows, n_neighbors);
    let pool = ThreadPoolBuilder::new().num_threads(1).build().map_err(|_| CodesError::NoThread)?;
    let embedding = pool.install(|| {
        let mut tsne: tSNE<f32, &[f32]> = tSNE::new(&rows);
        tsne.perplexity(perplexity).initial_embedding(start).barnes_hut_with_neighbors(THETA, &neighbors).embedding()
    });
    assert!(embedding.iter().all(|value| value.is_finite()), "codes of deviation 1 have finite points");
    Ok(embedding.chunks_exact(2).map(|point| [point[0].into(), point[1].into()]).collect())
}

/// The codes and the points to start from, both divided by the deviation of the first component. t-SNE takes no account of
/// scale, but squares of distances would overflow. Each starting point is moved a little in its own direction: equal codes
/// would stay on one point, and codes on a line would stay on it.
#[expect(clippy::cast_possible_truncation, reason = "values around 1 and 0.0001")]
fn scaled(codes: Codes) -> (Vec<f32>, Vec<f32>) {
    let points = pca(codes).points;
    let deviation = (points.iter().map(|point| point[0] * point[0]).sum::<f64>() / as_f64(points.len())).sqrt();
    let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
    let rows = centered(codes).into_iter().map(|value| (value * scale) as f32);
    let start = points.iter().enumerate().flat_map(|(i, point)| {
        let moves = spread(i);
        [0, 1].map(|axis| (START_DEVIATION * (point[axis] * scale + START_SPREAD * moves[axis])) as f32)
    });
    (rows.collect(), start.collect())
}

/// Each code's nearest others, nearest first, and of equally distant ones the first. Found by comparing all with all: the search
/// in `bhtsne` begins at random, and chooses differently among equally distant codes each time.
fn neighbors(rows: &[&[f32]], n_neighbors: usize) -> Vec<Vec<Neighbor<f32>>> {
    let nearest = |index: usize| {
        let others = (0..rows.len()).filter(|&other| other != index);
        let mut nearest: Vec<Neighbor<f32>> =
            others.map(|other| Neighbor { index: other, distance: distance(rows[index], rows[other]) }).collect();
        let order =
            |a: &Neighbor<f32>, b: &Neighbor<f32>| a.distance.total_cmp(&b.distance).then(a.index.cmp(&b.index));
        nearest.select_nth_unstable_by(n_neighbors - 1, order);
        nearest.truncate(n_neighbors);
        nearest.sort_unstable_by(order);
        nearest
    };
    (0..rows.len()).into_par_iter().map(nearest).collect()
}

fn distance(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right) * (left - right)).sum::<f32>().sqrt()
}
