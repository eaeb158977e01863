//! A network's layers as a table, as Keras prints them.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::arch::Architecture;
use crate::task::book_task;

/// A layer of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryRow {
    /// What its tensors' names start with; empty for a layer without parameters.
    pub name: &'static str,
    /// What it is.
    pub kind: &'static str,
    /// Shape of its output for one image of 28x28.
    pub output_shape: &'static [usize],
    /// How many parameters it has.
    pub n_params: usize,
}

/// The layers of a network in order.
pub fn summary(architecture: Architecture) -> Vec<SummaryRow> {
    let task = book_task(architecture);
    let layout = &task.spec().layout;
    let n_params = |tensors: &str| {
        let prefix = format!("{tensors}.");
        layout.entries().iter().filter(|entry| entry.name.starts_with(&prefix)).map(|entry| entry.range().len()).sum()
    };
    let row = |row: &crate::arch::LayerRow| SummaryRow {
        name: row.tensors,
        kind: row.kind,
        output_shape: row.output,
        n_params: if row.tensors.is_empty() { 0 } else { n_params(row.tensors) },
    };
    architecture.layers().iter().map(row).collect()
}

impl SummaryRow {
    /// The table, with the parameters in all below it.
    pub fn table(architecture: Architecture, rows: &[Self]) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["Layer", "Tensors", "Output shape", "Parameters"]);
        for row in rows {
            let shape = row.output_shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            table.add_row([row.kind, row.name, &format!("(batch, {shape})"), &thousands(row.n_params)]);
        }
        if let Some(column) = table.column_mut(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let share = |part: &str| rows.iter().filter(|row| row.name.starts_with(part)).map(|row| row.n_params).sum();
        let [encoder, decoder]: [usize; 2] = ["encoder", "decoder"].map(share);
        let mut text = format!("Network: {architecture}\n{table}\n");
        let _ = write!(
            text,
            "Parameters: {} (encoder {}, decoder {}), all trainable",
            thousands(encoder + decoder),
            thousands(encoder),
            thousands(decoder),
        );
        text
    }
}

/// A count with its thousands set off by commas.
fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_rows_count_every_parameter() {
        for architecture in Architecture::ALL {
            let n_params: usize = summary(architecture).iter().map(|row| row.n_params).sum();
            assert_eq!(n_params, book_task(architecture).spec().layout.n_params());
        }
    }

    #[test]
    fn summary_table_ends_with_totals() {
        let text = SummaryRow::table(Architecture::Conv, &summary(Architecture::Conv));
        assert!(text.ends_with("Parameters: 46,529 (encoder 23,296, decoder 23,233), all trainable"), "{text}");
    }

    #[test]
    fn thousands_are_separated_by_commas() {
        for (count, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(count), text);
        }
    }
}
