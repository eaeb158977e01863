//! Writes files for TensorBoard of a made-up run that is resumed once, for `tests/tensorboard_files.py`:
//! `tensorboard FOLDER PICTURE.png`. Six steps of 0.5 in which the last two are lost, and from step 5 on four of 0.25.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use events::{Figures, PictureName, RecordedEvent, RunEvent, StepCosts, StepEvent, StepRecord};
use observe::codes::{Codes, Labels};
use observe::tensorboard::TensorBoard;

const TIME: f64 = 1_790_000_000.0;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().context("expected a folder")?;
    let png = std::fs::read(arguments.next().context("expected a picture")?)?;

    let reconstructions = PictureName::new("reconstructions")?;
    let mut board = TensorBoard::create(&folder, "node", TIME)?;
    board.add_settings(&[("arch".to_owned(), "denoising".to_owned()), ("bar".to_owned(), "a|b".to_owned())])?;
    apply(&mut board, 0.0, RunEvent::Started { incarnation: 1, step: 0 })?;
    for step in 1..=6 {
        apply(&mut board, f64::from(step), made_up_step(step, 0.5))?;
        if step % 2 == 0 {
            apply(&mut board, f64::from(step), validation(step, 0.5)?)?;
            board.add_picture(step.into(), reconstructions, &png)?;
        }
    }
    // Killed after step 6, with a checkpoint of step 4.
    drop(board);

    let mut board = TensorBoard::create(&folder, "node", TIME + 10.0)?;
    apply(&mut board, 10.0, RunEvent::Started { incarnation: 2, step: 4 })?;
    for step in 5..=8 {
        apply(&mut board, 10.0 + f64::from(step), made_up_step(step, 0.25))?;
    }
    apply(&mut board, 20.0, validation(8, 0.25)?)?;
    board.add_picture(8, reconstructions, &png)?;
    board.add_picture(8, PictureName::CODES, &png)?;
    // Four codes of three values; of the labels one has a tab in it.
    let values: Vec<f32> = (0..12_u8).map(|value| 0.1 * f32::from(value)).collect();
    let labels = Labels { numbers: &[0, 1, 1, 2], names: &["T-shirt/top", "Ankle boot", "a\tb"] };
    board.add_codes(Codes::new(&values[..9], 3)?, None)?;
    board.add_codes(Codes::new(&values, 3)?, Some(labels))?;
    apply(&mut board, 20.0, RunEvent::Ended { outcome: "completed".to_owned(), step: 8 })
}

fn apply(board: &mut TensorBoard, seconds: f64, event: RunEvent) -> Result<()> {
    Ok(board.apply(&RecordedEvent { time: TIME + seconds, event })?)
}

fn made_up_step(step: u32, loss: f64) -> RunEvent {
    let record = StepRecord {
        step: step.into(),
        epoch: 1,
        loss,
        metrics: Figures(vec![("accuracy".to_owned(), f64::from(step) / 8.0)]),
        n_samples: 32,
        milliseconds: 2.0,
        params_blake3: None,
    };
    let costs = StepCosts::default();
    RunEvent::Step(StepEvent { record, workers: vec![1], n_active: 1, costs, begun: Duration::ZERO, tasks: Vec::new() })
}

fn validation(step: u32, loss: f64) -> Result<RunEvent> {
    let line = format!(r#"{{"epoch": {}, "step": {step}, "val_loss": {loss}, "val_accuracy": 0.5}}"#, step / 2);
    Ok(RunEvent::Epoch(serde_json::from_str(&line)?))
}
