//! What each crate must not contain or depend on: rules that the compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// Words with which files, sockets, clocks, chance, threads, tokio, tonic and burn come into a file.
const OUTSIDE: [&str; 17] = [
    "tokio",
    "tonic",
    "burn",
    "proto::",
    "std::fs",
    "std::net",
    "std::os",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync",
    "Instant",
    "SystemTime",
    "rand",
    "HashMap",
    "HashSet",
    "unsafe",
];

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of a folder and those below it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of the project").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| sources(folder));
    files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")).chain(below).collect()
}

/// Lines that hold one of the words as a whole word, comments apart.
fn lines_with(path: &Path, words: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a file of the project");
    let code = text.lines().zip(1..).filter(|(line, _)| !line.trim_start().starts_with("//"));
    let has = |line: &str| words.iter().any(|word| has_word(line, word));
    code.filter(|(line, _)| has(line)).map(|(line, number)| format!("{}:{number}: {line}", path.display())).collect()
}

/// As [`lines_with`], up to the file's tests.
fn lines_before_tests_with(path: &Path, words: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a file of the project");
    let n_lines = text.lines().position(|line| line == "#[cfg(test)]").unwrap_or(usize::MAX);
    let is_before = |line: &String| {
        let number = line[path.display().to_string().len() + 1..].split(':').next().and_then(|text| text.parse().ok());
        number.is_some_and(|number: usize| number <= n_lines)
    };
    let is_test = path.to_string_lossy().contains("/tests");
    lines_with(path, words).into_iter().filter(|line| !is_test && is_before(line)).collect()
}

/// Whether the word is there and not a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(start, _)| {
        let end = start + word.len();
        !is_part(line[..start].chars().next_back()) && (word.ends_with(':') || !is_part(line[end..].chars().next()))
    })
}

#[test]
fn training_core_has_no_io_clock_or_threads() {
    let source = project().join("coordinator/src");
    let files: Vec<PathBuf> =
        sources(&source.join("training")).into_iter().chain([source.join("training.rs")]).collect();
    assert!(files.len() >= 6, "the core has moved: {files:?}");
    let found: Vec<String> = files.iter().flat_map(|path| lines_with(path, &OUTSIDE)).collect();
    assert!(found.is_empty(), "the core knows of the outside:\n{}", found.join("\n"));
}

#[test]
fn source_search_finds_whole_words() {
    let driver = project().join("coordinator/src/driver.rs");
    assert!(!lines_with(&driver, &["tokio"]).is_empty() && !lines_with(&driver, &["Instant"]).is_empty());
    assert!(has_word("use burn::x;", "burn") && !has_word("let burned = 1;", "burn") && !has_word("operand", "rand"));
}

#[test]
fn crates_depend_only_on_allowed_crates() {
    let check = |crate_name: &str, unknown: &[&str]| {
        let manifest =
            fs::read_to_string(project().join(crate_name).join("Cargo.toml")).expect("a crate has a manifest");
        let dependencies = manifest.split_once("[dependencies]").map_or("", |(_, rest)| rest);
        let found: Vec<&str> = dependencies
            .lines()
            .filter(|line| unknown.iter().any(|name| line.starts_with(&format!("{name}."))))
            .collect();
        assert!(found.is_empty(), "{crate_name} depends on {found:?}");
    };
    check("proto", &["engine", "model", "coordinator", "worker", "burn", "tokio"]);
    check("engine", &["proto", "model", "coordinator", "worker", "telar", "tokio", "tonic"]);
    check("model", &["proto", "coordinator", "worker", "telar", "tokio", "tonic"]);
    check("coordinator", &["worker", "telar"]);
    check("worker", &["coordinator", "telar"]);
    check("telar", &["model"]);
}

/// The goal: the engine trains any network, and knows none.
#[test]
fn engine_names_no_network() {
    let words =
        ["model::", "Architecture", "N_PIXELS", "Noise", "Garments", "conv", "denoising", "recurrent", "autoencoder"];
    let crates = ["engine", "coordinator", "worker", "telar"];
    let files = crates.iter().flat_map(|crate_name| sources(&project().join(crate_name).join("src")));
    // The programs are made for the autoencoders; their flags have examples.
    let is_program = |path: &PathBuf| path.ends_with("main.rs") || path.ends_with("args.rs");
    let found: Vec<String> = files
        .filter(|path| !is_program(path))
        .flat_map(|path| lines_before_tests_with(&path, &words))
        .filter(|line| !line.contains("#[error"))
        .collect();
    assert!(found.is_empty(), "the engine knows a network:\n{}", found.join("\n"));
}

#[test]
fn backends_are_named_in_one_file() {
    let words = ["Device::flex", "Device::libtorch", "Device::cuda", "burn_flex", "burn_tch"];
    let crates = ["proto", "engine", "model", "coordinator", "worker", "telar"];
    let files = crates.iter().flat_map(|crate_name| sources(&project().join(crate_name).join("src")));
    let others = files.filter(|path| !path.ends_with("engine/src/backend.rs"));
    let found: Vec<String> = others.flat_map(|path| lines_with(&path, &words)).collect();
    assert!(found.is_empty(), "a backend is named outside of its file:\n{}", found.join("\n"));
}
