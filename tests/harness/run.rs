//! What came out of a run, and whether it is what came out of another one.

use std::fs;
use std::path::Path;

use engine::recipe::Recipe;
use serde_json::Value;

/// What came out of a run.
#[derive(Debug)]
pub struct Run {
    /// Name of the parameters at the end.
    pub params_blake3: String,
    /// Lines of `steps.jsonl`.
    pub steps: Vec<Value>,
    /// Lines of `history.jsonl`.
    pub history: Vec<Value>,
    /// What `run.json` says.
    pub description: Value,
}

impl Run {
    /// Reads a run's folder; `end` is the last line that its program printed.
    pub fn read(folder: &Path, end: &Value) -> Self {
        let text = |name| fs::read_to_string(folder.join(name)).expect("a run's file");
        let json = |line: &str| serde_json::from_str(line).expect("a line of JSON");
        Self {
            params_blake3: end["params_blake3"].as_str().expect("a name of the parameters").to_owned(),
            steps: text("steps.jsonl").lines().map(json).collect(),
            history: text("history.jsonl").lines().map(json).collect(),
            description: json(&text("run.json")),
        }
    }

    /// What was trained.
    pub fn recipe(&self) -> Recipe {
        serde_json::from_value(self.description["recipe"].clone()).expect("a recipe")
    }

    /// Panics unless every step and every epoch came out as in another run, to the last digit, each once and in order.
    pub fn assert_same_bits(&self, expected: &Self) {
        let step_fields = ["step", "epoch", "loss", "rounded_accuracy", "n_samples"];
        assert_same_fields(&step_fields, &self.steps, &expected.steps);
        let epoch_fields = ["step", "epoch", "loss", "rounded_accuracy", "val_loss", "val_rounded_accuracy"];
        assert_same_fields(&epoch_fields, &self.history, &expected.history);
        assert_eq!(self.params_blake3, expected.params_blake3, "the losses are the same");
    }

    /// Who computed each shard of each step.
    pub fn workers(&self) -> Vec<Vec<u64>> {
        let worker = |worker: &Value| worker.as_u64().expect("a worker's number");
        let workers = |step: &Value| step["workers"].as_array().expect("a list").iter().map(worker).collect();
        self.steps.iter().map(workers).collect()
    }
}

fn assert_same_fields(fields: &[&str], found: &[Value], expected: &[Value]) {
    for (found, expected) in found.iter().zip(expected) {
        for field in fields {
            assert_eq!(found[field], expected[field], "{field} of {found}, beside {expected}");
        }
        // Where the parameters of each step are named, these are the bits themselves.
        let names = [found, expected].map(|step| step.get("params_blake3"));
        assert!(names.contains(&None) || names[0] == names[1], "parameters of {found}, beside {expected}");
    }
    assert_eq!(found.len(), expected.len(), "lines");
}
