//! Transposing a matrix.

/// Side of the blocks in which it is done.
const SIDE: usize = 4;

type Block = [[f32; SIDE]; SIDE];

/// `from` [rows, columns] → `into` [columns, rows].
///
/// # Panics
/// If a slice has another length.
pub fn transpose(from: &[f32], n_rows: usize, n_columns: usize, into: &mut [f32]) {
    assert_eq!((from.len(), into.len()), (n_rows * n_columns, n_rows * n_columns), "a matrix has all its values");
    let (rest_rows, rest_columns) = (n_rows / SIDE * SIDE, n_columns / SIDE * SIDE);
    // Down the columns, so that what is written lies side by side.
    for column in (0..rest_columns).step_by(SIDE) {
        for row in (0..rest_rows).step_by(SIDE) {
            let block: Block = std::array::from_fn(|i| {
                *from[(row + i) * n_columns + column..].first_chunk().expect("a block lies within the matrix")
            });
            for (i, values) in transposed(block).into_iter().enumerate() {
                into[(column + i) * n_rows + row..][..SIDE].copy_from_slice(&values);
            }
        }
    }
    for row in 0..n_rows {
        let first_column = if row < rest_rows { rest_columns } else { 0 };
        for column in first_column..n_columns {
            into[column * n_rows + row] = from[row * n_columns + column];
        }
    }
}

/// A block transposed. Compilers do not find the shuffles by themselves, and without them it takes three times as long.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(block: Block) -> Block {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    let mut transposed = [[0.0; SIDE]; SIDE];
    #[expect(unsafe_code, reason = "there is no safe way to a CPU's shuffles")]
    // SAFETY: every x86-64 CPU has SSE; each row has the four values that are read or written.
    unsafe {
        let [mut a, mut b, mut c, mut d] = block.map(|row| _mm_loadu_ps(row.as_ptr()));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        for (row, values) in transposed.iter_mut().zip([a, b, c, d]) {
            _mm_storeu_ps(row.as_mut_ptr(), values);
        }
    }
    transposed
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(block: Block) -> Block {
    std::array::from_fn(|column| std::array::from_fn(|row| block[row][column]))
}
