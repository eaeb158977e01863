//! The newest codes for TensorBoard's projector: a configuration that names two tables beside it, one of the codes and one of their
//! labels, a row for each code. The projector looks for the configuration in the folders of runs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::TensorBoardError;
use crate::codes::{Codes, Labels};

/// What the projector looks for.
const CONFIG: &str = "projector_config.pbtxt";
/// The codes.
const TENSORS: &str = "tensors.tsv";
/// The codes' labels. A table with a single column has no header.
const METADATA: &str = "metadata.tsv";

/// Writes the three files into a folder, the configuration last.
pub(super) fn write(folder: &Path, codes: Codes<'_>, labels: Option<Labels<'_>>) -> Result<(), TensorBoardError> {
    let mut config = format!("embeddings {{\n  tensor_name: \"codes\"\n  tensor_path: \"{TENSORS}\"\n");
    write_whole(folder, TENSORS, &tensors(codes))?;
    if let Some(labels) = labels {
        write_whole(folder, METADATA, &metadata(labels))?;
        writeln!(config, "  metadata_path: \"{METADATA}\"").expect("a string takes any text");
    }
    config.push_str("}\n");
    write_whole(folder, CONFIG, &config)
}

/// The values in so many digits that they are read as they are.
fn tensors(codes: Codes<'_>) -> String {
    let mut table = String::with_capacity(codes.len() * codes.n_values() * 12);
    for code in codes.rows() {
        for (place, value) in code.iter().enumerate() {
            let gap = if place == 0 { "" } else { "\t" };
            write!(table, "{gap}{value}").expect("a string takes any text");
        }
        table.push('\n');
    }
    table
}

fn metadata(labels: Labels<'_>) -> String {
    let name = |&label: &u8| match labels.names[usize::from(label)].replace(|c: char| c.is_control(), " ") {
        // The projector drops empty lines.
        name if name.trim().is_empty() => label.to_string(),
        name => name,
    };
    labels.numbers.iter().map(|label| name(label) + "\n").collect()
}

/// Writes a file under another name and then gives it its own, so that TensorBoard never reads a part of it.
fn write_whole(folder: &Path, name: &str, text: &str) -> Result<(), TensorBoardError> {
    let (path, unfinished) = (folder.join(name), folder.join(format!(".{name}")));
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
    written.map_err(|source| TensorBoardError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_a_row_for_each_code() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
        let values = [0.1, -2.5e-20, 3.0, 0.25, f32::MAX, 0.0];
        let codes = Codes::new(&values, 2).expect("three codes");
        let labels = Labels { numbers: &[1, 0, 2], names: &["T-shirt/top", "a\tb\n", ""] };
        write(folder.path(), codes, Some(labels)).expect("written");
        let found: Vec<f32> = read(TENSORS).split_whitespace().map(|text| text.parse().expect("a number")).collect();
        assert_eq!((found.as_slice(), read(TENSORS).lines().count()), (values.as_slice(), 3));
        assert!(read(TENSORS).lines().all(|line| line.split('\t').count() == 2));
        assert_eq!(read(METADATA), "a b \nT-shirt/top\n2\n");
        assert!(read(CONFIG).contains("metadata_path: \"metadata.tsv\""));

        write(folder.path(), Codes::new(&values, 1).expect("six codes"), None).expect("written");
        assert_eq!(read(TENSORS).lines().count(), 6);
        assert!(!read(CONFIG).contains("metadata"));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 3, "no unfinished files");
    }
}
