//! Turning a matrix round.

/// Side of the blocks in which it is done: two of them fit the first cache.
const BLOCK: usize = 16;

/// `from` [rows, columns] → `into` [columns, rows].
///
/// # Panics
/// If a slice has another length.
pub fn transpose(from: &[f32], n_rows: usize, n_columns: usize, into: &mut [f32]) {
    assert_eq!((from.len(), into.len()), (n_rows * n_columns, n_rows * n_columns), "a matrix has all its values");
    for first_row in (0..n_rows).step_by(BLOCK) {
        let last_row = (first_row + BLOCK).min(n_rows);
        for first_column in (0..n_columns).step_by(BLOCK) {
            for column in first_column..(first_column + BLOCK).min(n_columns) {
                let row = &mut into[column * n_rows..][first_row..last_row];
                for (value, from) in
                    row.iter_mut().zip(from[first_row * n_columns + column..].iter().step_by(n_columns))
                {
                    *value = *from;
                }
            }
        }
    }
}
