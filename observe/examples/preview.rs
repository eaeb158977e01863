//! Writes pages of made-up runs into the folder named, to be looked at: `preview FOLDER`.

#[path = "../tests/page/samples.rs"]
mod samples;

use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use observe::chart::curves_svg;
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
        fs::create_dir_all(&pictures)?;
        for (epoch, file) in &summary.pictures {
            fs::write(pictures.join(file), picture(*epoch))?;
        }
    }
    let compared = [samples::running(), samples::single_process(), samples::failed(), samples::language()];
    fs::write(folder.join("compare.html"), comparison(&compared))
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
