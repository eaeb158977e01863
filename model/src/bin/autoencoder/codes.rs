//! `codes`: a picture of which images lie together in the space of codes.

use std::fmt::Write as _;

use serde_json::json;

use engine::data::{DataError, Dataset, Split};
use engine::files::write_whole;
use engine::{exit, say};
use model::codes::split_codes;
use model::trained::Trained;
use observe::codes::{CodeMap, Codes, CodesError, Labels, Method, Scatter};

use crate::args::{CodesArgs, CodesFile, CodesFormat, CodesMethod};
use crate::trained::Opened;

pub fn draw(args: &CodesArgs) -> anyhow::Result<()> {
    let Opened { architecture, weights, device, data } = Opened::new(&args.trained)?;
    let trained = Trained::new(architecture, &weights, &device);
    let coded = split_codes(&trained, &data, args.split, args.images as usize);
    let codes = Codes::new(coded.values(), coded.n_values()).map_err(with_exit_code)?;
    let (n_images, n_values) = (codes.len(), codes.n_values());
    let method = match args.method {
        CodesMethod::Pca => Method::Pca,
        CodesMethod::Tsne => Method::Tsne { perplexity: args.perplexity },
    };
    let map = CodeMap::new(codes, method).map_err(with_exit_code)?;
    let images = match args.split {
        Split::Train => "training images",
        Split::Valid => "validation images",
        Split::Test => "test images",
    };
    let names: Vec<&str> = coded.label_names().iter().map(String::as_str).collect();
    let labels = Labels { numbers: coded.labels(), names: &names };
    let scatter = Scatter {
        title: &format!("Codes of {n_images} {images}, {architecture}"),
        axes: [&map.axes[0], &map.axes[1]],
        points: &map.points,
        labels: Some(labels),
    };
    let CodesFile { path, format } = &args.out;
    let content = match format {
        CodesFormat::Png => scatter.png(),
        CodesFormat::Svg => scatter.svg().into_bytes(),
        CodesFormat::Tsv => table(&map.points, labels).into_bytes(),
    };
    write_whole(path, &content)?;
    if args.trained.json {
        let line = json!({
            "architecture": architecture, "split": args.split, "data": data.name(), "shape": [n_images, n_values],
            "method": args.method, "description": map.description, "out": path.display().to_string(),
        });
        say!("{line}");
    } else {
        let description = map.description;
        say!("codes of {n_images} {images}, {n_values} values each: {description}; {}", path.display());
    }
    Ok(())
}

/// The points as tab-separated values, with a header.
fn table(points: &[[f64; 2]], labels: Labels) -> String {
    let mut table = "x\ty\tlabel\tname\n".to_owned();
    for ([x, y], &label) in points.iter().zip(labels.numbers) {
        let name = labels.names[usize::from(label)];
        writeln!(table, "{x}\t{y}\t{label}\t{name}").expect("a string takes any text");
    }
    table
}

fn with_exit_code(error: CodesError) -> DataError {
    let exit_code = match error {
        CodesError::Perplexity { .. } => exit::CONFIGURATION,
        CodesError::NoThread => exit::UNAVAILABLE,
        CodesError::Length { .. } | CodesError::TooFew { .. } | CodesError::NotFinite { .. } => exit::DATA,
    };
    DataError::new(error.into(), exit_code)
}
