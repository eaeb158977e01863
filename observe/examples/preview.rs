//! Writes pages of made-up runs into the folder named, to be looked at: `preview FOLDER`.

#[path = "../tests/page/samples.rs"]
mod samples;

use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use events::{PictureFile, PictureName};
use observe::chart::curves_svg;
use observe::codes::{Labels, Scatter};
use observe::page::{asset, comparison, document};

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "preview".to_owned());
    let folder = Path::new(&folder);
    fs::create_dir_all(folder.join("assets"))?;
    for name in ["page.css", "page.js", "favicon.svg"] {
        fs::write(folder.join("assets").join(name), asset(name).expect("an asset").bytes)?;
    }
    let others = ["denoising-002".to_owned(), "language-001".to_owned(), "a run <b> & its \"name\"".to_owned()];
    let runs = [
        ("running", samples::running()),
        ("empty", samples::empty()),
        ("single", samples::single_process()),
        ("language", samples::language()),
        ("crowd", samples::crowd()),
        ("failed", samples::failed()),
    ];
    for (name, summary) in &runs {
        fs::write(folder.join(format!("{name}.html")), document(summary, samples::NOW, &others))?;
        fs::write(folder.join(format!("{name}.svg")), curves_svg(summary))?;
        let pictures = folder.join("runs").join(&summary.name).join("pictures");
        for (&name, epochs) in &summary.pictures {
            fs::create_dir_all(pictures.join(name.as_str()))?;
            for &epoch in epochs {
                let file = PictureFile { name, epoch };
                let bytes = if name == PictureName::CODES { code_space(epoch) } else { picture(epoch) };
                fs::write(pictures.join(file.path()), bytes)?;
            }
        }
    }
    let compared = [samples::running(), samples::single_process(), samples::failed(), samples::language()];
    fs::write(folder.join("compare.html"), comparison(&compared))
}

/// Codes in three clusters that part from epoch to epoch.
fn code_space(epoch: u32) -> Vec<u8> {
    let labels: Vec<u8> = (0..600_u16).map(|sample| u8::try_from(sample % 3).expect("three labels")).collect();
    let points: Vec<[f64; 2]> = (0..600_u16)
        .map(|sample| {
            let (angle, radius) = (f64::from(sample) * 2.4, (f64::from(sample) / 600.0).sqrt());
            let center = f64::from(sample % 3) * TAU / 3.0;
            let distance = 0.4 * f64::from(epoch);
            [distance * center.cos() + radius * angle.cos(), distance * center.sin() + radius * angle.sin()]
        })
        .collect();
    let labels = Some(Labels { numbers: &labels, names: &["Trouser", "Sneaker", "Bag"] });
    let title = &format!("Codes of 600 samples after epoch {epoch}");
    Scatter { title, axes: ["component 1", "component 2"], points: &points, labels }.compact_png()
}

/// A bitmap, since that needs no library; browsers show it under any name.
fn picture(epoch: u32) -> Vec<u8> {
    let (width, height) = (420_u32, 90_u32);
    let size = width * height * 3;
    let mut bytes = b"BM".to_vec();
    for field in [54 + size, 0, 54, 40, width, height, 1 | (24 << 16), 0, size, 0, 0, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    let mut noise = 1_u32;
    for y in 0..height {
        for x in 0..width {
            let wave = ((f64::from(x) / 30.0 * TAU).sin() * (f64::from(y) / 30.0 * TAU).cos() + 1.0) * 90.0;
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let speckle = f64::from(noise >> 24) / f64::from(epoch);
            let level = wave + if y >= 60 { 0.0 } else { speckle };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a pixel, which saturates")]
            bytes.extend([level as u8; 3]);
        }
    }
    bytes
}
