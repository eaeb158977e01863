//! The tool as its users see it: the program itself, started with flags, and what it says, writes and exits with.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use engine::backend::Backend;
use engine::data::{Dataset, Split};
use engine::weights::Weights;
use model::arch::Architecture;
use model::task::{book_task, initial_params};
use model::trained::Trained;
use model::weights::read_any;
use serde_json::Value;
use tempfile::TempDir;

const ARCHS: [&str; 3] = ["conv", "recurrent", "denoising"];

/// The program with flags separated by spaces, without the caller's own settings.
fn program(flags: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("autoencoder"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELAR_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.args(flags.split_whitespace()).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to a good end and gives what was printed.
fn succeed(flags: &str) -> String {
    let output = program(flags).output().expect("the program starts");
    assert!(output.status.success(), "`{flags}` failed: {}", text(&output.stderr));
    text(&output.stdout)
}

fn succeed_json(flags: &str) -> Value {
    serde_json::from_str(succeed(flags).lines().last().expect("a line")).expect("JSON")
}

/// Runs to a bad end with the exit code and a sentence that holds every part.
fn fail(flags: &str, exit_code: i32, parts: &[&str]) {
    let output: Output = program(flags).output().expect("the program starts");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "`{flags}` said: {error}");
    for part in parts {
        assert!(error.contains(part), "`{flags}` said `{error}`, which does not hold `{part}`");
    }
}

/// The real data set where it is there, else a small one: what is tested here holds for both.
fn data_folder(temporary: &Path) -> PathBuf {
    common::fashion_mnist_folder().unwrap_or_else(|| {
        let folder = temporary.join("data");
        write_data(&folder);
        folder
    })
}

/// A small data set as plain files: 120 images for training and validation, 10 for the test.
fn write_data(folder: &Path) {
    write_images(folder, 10);
}

/// As [`write_data`], with another number of images for the test.
fn write_images(folder: &Path, n_test: u32) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, n_images) in [("train", 120_u32), ("t10k", n_test)] {
        let pixel = |place: u32| u8::try_from(place * place / 7 % 256).expect("below 256");
        let pixels: Vec<u8> = (0..n_images * 784).map(pixel).collect();
        let header = [0x803, n_images, 28, 28].map(u32::to_be_bytes).concat();
        fs::write(folder.join(format!("{name}-images-idx3-ubyte")), [header, pixels].concat()).expect("a file");
        let labels: Vec<u8> = (0..n_images).map(|place| u8::try_from(place % 10).expect("below 10")).collect();
        let header = [0x801, n_images].map(u32::to_be_bytes).concat();
        fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), [header, labels].concat()).expect("a file");
    }
}

fn write_weights(path: &Path, architecture: Architecture) {
    let weights = Weights::new(book_task(architecture).spec(), initial_params(architecture, 1));
    weights.write(path).expect("the folder can be written");
}

struct TestDir {
    folder: TempDir,
}

impl TestDir {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A small data set of its own.
    fn small_data(&self) -> String {
        write_data(&self.folder.path().join("small"));
        self.path("small")
    }
}

#[test]
fn summary_has_book_parameter_counts() {
    for (arch, n_params) in [("conv", 46_529), ("recurrent", 122_548), ("denoising", 163_814)] {
        assert_eq!(succeed_json(&format!("summary --arch {arch} --json"))["n_params"], n_params);
    }
    assert!(succeed("summary --arch denoising").contains("Parameters: 163,814"));
}

#[test]
fn run_folder_is_complete_and_weights_are_usable() {
    let dir = TestDir::new();
    let data = dir.small_data();
    for (arch, n_code) in [("conv", 576), ("recurrent", 30), ("denoising", 30)] {
        let run = dir.path(arch);
        let flags =
            format!("train --arch {arch} --data {data} --epochs 2 --shards 4 --hash-steps --run-dir {run} --json");
        let output = succeed(&flags);
        let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [first, second, end] = lines.as_slice() else { panic!("expected two epochs and an end, found {output}") };
        assert_eq!((&first["record"]["epoch"], &second["record"]["step"]), (&1.into(), &8.into())); // 110 images: 4 steps

        let run = PathBuf::from(run);
        let read = |name: &str| fs::read_to_string(run.join(name)).expect(name);
        let description: Value = serde_json::from_str(&read("run.json")).expect("JSON");
        assert_eq!(description["recipe"]["shards"], 4);
        assert_eq!(description["result"]["params_blake3"], end["params_blake3"]);
        let steps: Vec<Value> =
            read("steps.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(steps.len(), 8);
        assert_eq!((&steps[3]["n_samples"], &steps[7]["params_blake3"]), (&14.into(), &end["params_blake3"]));
        assert_eq!(read("history.jsonl").lines().count(), 2);
        let picture = image::open(run.join("reconstructions/epoch-02.png")).expect("a picture");
        assert_eq!(picture.height(), if arch == "denoising" { 368 } else { 248 }); // 8 + rows * 120

        let weights = run.join("model.safetensors").display().to_string();
        let evaluated = succeed_json(&format!("evaluate --weights {weights} --split valid --data {data} --json"));
        assert_eq!(evaluated["loss"], second["record"]["val_loss"]);
        let codes = dir.path("codes.npy");
        let encoded =
            succeed_json(&format!("encode --weights {weights} --split test --out {codes} --data {data} --json"));
        assert_eq!(encoded["shape"], serde_json::json!([10, n_code]));
        let file = fs::read(&codes).expect("codes");
        assert_eq!(npyz::NpyFile::new(&file[..]).expect("an array").shape(), [10, n_code]);
        let file = fs::read(dir.path("codes-labels.npy")).expect("labels");
        let labels = npyz::NpyFile::new(&file[..]).expect("an array");
        assert_eq!(labels.into_vec::<u8>().expect("bytes"), (0..10).collect::<Vec<u8>>());
        let out = dir.path("x.png");
        succeed(&format!("reconstruct --weights {weights} --out {out} --images 3 --noise dropout:0.3 --data {data}"));
        let picture = image::open(out).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (368, 368));
    }
}

#[test]
fn codes_are_drawn_and_tabulated() {
    let dir = TestDir::new();
    let (data, weights) = (dir.small_data(), dir.path("w.safetensors"));
    for (architecture, n_values) in Architecture::ALL.into_iter().zip([576, 30, 30]) {
        write_weights(Path::new(&weights), architecture);
        let out = dir.path("codes.png");
        let flags = format!("codes --weights {weights} --split train --images 50 --out {out} --data {data}");
        let printed = succeed(&flags);
        let expected = format!("codes of 50 training images, {n_values} values each: PCA, 2 components hold ");
        assert!(printed.starts_with(&expected) && printed.ends_with("/codes.png\n"), "{printed}");
        let picture = image::open(out).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (1000, 800));
        let line = succeed_json(&format!("{flags} --json"));
        assert_eq!((&line["shape"], &line["method"]), (&serde_json::json!([50, n_values]), &"pca".into()));
    }

    // More images are asked for than there are; what their labels mean is not known.
    let table = |name: &str| {
        let out = dir.path(name);
        succeed(&format!("codes --weights {weights} --method tsne --perplexity 3 --out {out} --data {data}"));
        fs::read_to_string(out).expect("a table")
    };
    let first = table("first.tsv");
    assert_eq!(first, table("again.tsv"));
    assert_eq!((first.lines().count(), first.lines().next()), (11, Some("x\ty\tlabel\tname")));
    assert!(first.ends_with("\t9\t9\n"), "{first}");

    let out = dir.path("codes.svg");
    succeed(&format!("codes --weights {weights} --images 20 --out {out} --data synthetic"));
    assert!(fs::read_to_string(out).expect("a picture").contains("Ankle boot"));
}

#[test]
fn codes_refuses_unknown_ending_and_too_few_images() {
    let dir = TestDir::new();
    let (data, weights) = (dir.small_data(), dir.path("w.safetensors"));
    write_weights(Path::new(&weights), Architecture::Denoising);
    let check = |out: &str, data: &str, flags: &str, exit_code, parts: &[&str]| {
        let out = dir.path(out);
        fail(&format!("codes --weights {weights} --out {out} --data {data} {flags}"), exit_code, parts);
        assert!(!Path::new(&out).exists());
    };
    check("codes.jpg", &data, "", 2, &["codes.jpg", "expected a name that ends in .png, .svg or .tsv"]);
    check("codes", &data, "", 2, &[".png, .svg or .tsv"]);
    check("codes.png", &data, "--images 2", 2, &["--images", "2 is not in 3.."]);
    check("codes.png", &data, "--method tsne", 64, &["expected a perplexity from 1 to 3.0", "found 30"]);
    check("w.safetensors/codes.png", &data, "", 73, &["cannot write"]);
    let two = dir.path("two");
    write_images(Path::new(&two), 2);
    check("codes.png", &two, "", 65, &["expected at least 3 codes, found 2"]);
}

#[test]
fn same_seed_is_bit_identical_across_runs_and_threads() {
    let dir = TestDir::new();
    let data = data_folder(dir.folder.path());
    let hash = |flags: &str, name: &str| {
        let run = dir.path(name);
        let flags = format!("train {flags} --max-steps 20 --data {} --run-dir {run} --json", data.display());
        succeed_json(&flags)["params_blake3"].clone()
    };
    let on_cpu = |backend: &&Backend| **backend != Backend::Cuda;
    for (backend, arch) in Backend::COMPILED.iter().filter(on_cpu).flat_map(|backend| ARCHS.map(|arch| (backend, arch)))
    {
        // 128 images are enough for products that are cut over threads.
        let flags = format!("--arch {arch} --backend {backend} --batch-size 128");
        let name = format!("{arch}-{backend}");
        let two = hash(&format!("{flags} --threads 2"), &format!("{name}-2"));
        assert_eq!(two, hash(&format!("{flags} --threads 2"), &format!("{name}-again")), "{name}, twice");
        assert_ne!(two, hash(&format!("{flags} --threads 2 --seed 7"), &format!("{name}-7")), "{name}, another seed");
        if *backend == Backend::Flex {
            assert_eq!(two, hash(&format!("{flags} --threads 1"), &format!("{name}-1")), "{name}, on 1 and 2 threads");
        }
    }
}

#[test]
fn training_starts_from_given_weights() {
    let dir = TestDir::new();
    let (data, weights) = (dir.small_data(), dir.path("w.safetensors"));
    write_weights(Path::new(&weights), Architecture::Denoising);
    let hash = |flags: &str, run: &str| {
        let run = dir.path(run);
        let flags = format!("train --arch denoising {flags} --max-steps 2 --data {data} --run-dir {run} --json");
        succeed_json(&flags)["params_blake3"].clone()
    };
    // The initial weights of seed 1 from a file, or drawn.
    assert_eq!(hash(&format!("--seed 1 --init-from {weights}"), "a"), hash("--seed 1", "b"));
    assert_ne!(hash(&format!("--seed 2 --init-from {weights}"), "c"), hash("--seed 2", "d"));
}

#[test]
fn every_recipe_flag_changes_trained_parameters() {
    let dir = TestDir::new();
    let data = dir.small_data();
    let variants = [
        "",
        "--seed 7",
        "--batch-size 16",
        "--learning-rate 0.1",
        "--momentum 0.9",
        "--momentum 0.9 --nesterov",
        "--noise none",
        "--noise gaussian:0.3",
        "--noise dropout:0.5",
        "--no-shuffle",
        "--epochs 2",
        "--epochs 1 --max-steps 3",
    ];
    let mut hashes: Vec<String> = Vec::new();
    for (number, flags) in variants.iter().enumerate() {
        let epochs = if flags.contains("--epochs") { "" } else { "--epochs 1" };
        let run = dir.path(&format!("run-{number}"));
        let end =
            succeed_json(&format!("train --arch denoising {epochs} {flags} --data {data} --run-dir {run} --json"));
        let hash = end["params_blake3"].as_str().expect("a hash").to_owned();
        assert!(
            !hashes.contains(&hash),
            "`{flags}` gives the parameters of `{:?}`",
            hashes.iter().position(|h| *h == hash)
        );
        hashes.push(hash);
    }
}

#[test]
fn invalid_flags_are_refused_with_advice() {
    let dir = TestDir::new();
    let run = dir.path("run");
    let check = |flags: &str, exit_code, parts: &[&str]| {
        fail(&format!("train {flags} --data synthetic --run-dir {run}"), exit_code, parts);
        assert!(!Path::new(&run).exists(), "`{flags}` left something behind");
    };
    check("--arch conv --batch-size 0", 64, &["expected --batch-size", "found 0", "`--batch-size 32`"]);
    check("--arch conv --shards 33", 64, &["found --shards 33 with --batch-size 32"]);
    check("--arch conv --learning-rate -1", 64, &["--learning-rate above 0 and finite, found -1"]);
    check("--arch conv --nesterov", 64, &["--momentum 0.9"]);
    check("--arch konv", 2, &["konv", "conv, recurrent, denoising"]);
    check("--arch conv --noise gaussian", 2, &["`gaussian:0.2`"]);
    check("--arch conv --device gpu", 2, &["expected a device", "found `gpu`"]);
    check("--arch conv --device cuda:0", 64, &["`flex` does not compute on `cuda:0`"]);
    if cfg!(not(feature = "tch")) {
        check("--arch conv --backend tch", 64, &["not compiled in", "--features tch"]);
    }
}

#[test]
fn invalid_data_is_refused_with_file_name() {
    let dir = TestDir::new();
    let check = |damage: fn(&mut Vec<u8>), name: &str, parts: &[&str]| {
        let data = dir.small_data();
        let path = Path::new(&data).join(name);
        let mut bytes = fs::read(&path).expect("a file");
        damage(&mut bytes);
        fs::write(&path, bytes).expect("a file");
        let run = dir.path("run");
        fail(&format!("train --arch conv --data {data} --run-dir {run}"), 65, &[&[name], parts].concat());
        assert!(!Path::new(&run).exists());
    };
    let images = "train-images-idx3-ubyte";
    check(|bytes| bytes[3] = 1, images, &["expected magic number 0x00000803", "found 0x00000801"]);
    check(|bytes| bytes.truncate(94_095), images, &["expected 94096 bytes", "found 94095", "cut off"]);
    check(|bytes| bytes.push(0), images, &["found 94097", "bytes trail"]);
    check(|bytes| bytes[15] = 29, images, &["28x28", "found 28x29"]);
    check(|bytes| bytes.truncate(3), images, &["expected a header of 16 bytes, found 3"]);
    check(|bytes| bytes[8] = 10, "t10k-labels-idx1-ubyte", &["expected labels below 10, found 10 at position 0"]);

    let data = dir.small_data();
    fs::remove_file(Path::new(&data).join(images)).expect("a file");
    fail(&format!("train --arch conv --data {data}"), 65, &["expected `train-images-idx3-ubyte`", "data fetch"]);
    fs::write(Path::new(&data).join(format!("{images}.gz")), b"not gzip").expect("a file");
    fail(
        &format!("train --arch conv --data {data}"),
        65,
        &["train-images-idx3-ubyte.gz", "expected a whole gzip stream"],
    );
    fail("train --arch conv --data /nowhere/at-all", 65, &["/nowhere/at-all", "found neither"]);
}

#[test]
fn invalid_weights_are_refused_with_reason() {
    let dir = TestDir::new();
    let data = dir.small_data();
    let (weights, run) = (dir.path("w.safetensors"), dir.path("run"));
    let check = |parts: &[&str]| {
        let out = dir.path("x.png");
        fail(&format!("reconstruct --weights {weights} --out {out} --data {data}"), 65, parts);
        assert!(!Path::new(&out).exists());
    };
    check(&["cannot read", "w.safetensors"]);
    write_weights(Path::new(&weights), Architecture::Recurrent);
    let train = format!("train --arch conv --init-from {weights} --data {data} --run-dir {run}");
    fail(&train, 65, &["expected weights of conv, found weights of recurrent"]);
    assert!(!Path::new(&run).exists());

    let whole = fs::read(&weights).expect("weights");
    fs::write(&weights, &whole[..whole.len() / 2]).expect("a file");
    check(&["expected a safetensors file"]);
    let mut broken = whole.clone();
    let last = broken.len() - 4;
    broken[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, broken).expect("a file");
    check(&["expected finite values, found NaN"]);
    let mut reshaped = whole.clone();
    let shape = whole.windows(8).position(|bytes| bytes == b"[400,28]").expect("a header");
    reshaped[shape..shape + 8].copy_from_slice(b"[28,400]");
    fs::write(&weights, reshaped).expect("a file");
    check(&["expected encoder.lstm1.weight_ih as F32 [400, 28], found F32 [28, 400]"]);
}

#[test]
fn unwritable_output_path_is_named_in_error() {
    let dir = TestDir::new();
    let (data, weights) = (dir.small_data(), dir.path("w.safetensors"));
    write_weights(Path::new(&weights), Architecture::Denoising);
    // A file is no folder, not even for root.
    let train = |run: &str| format!("train --arch denoising --max-steps 1 --data {data} --run-dir {run}");
    fail(&train(&format!("{weights}/run")), 73, &["cannot write", "w.safetensors/run"]);
    fail(&format!("reconstruct --weights {weights} --out {weights}/x.png --data {data}"), 73, &["cannot write"]);
    fail(
        &format!("encode --weights {weights} --split test --out {weights}/x.npy --data {data}"),
        73,
        &["cannot write"],
    );
    let run = dir.path("run");
    succeed(&train(&run));
    fail(&train(&run), 73, &["it holds a run already"]);
}

#[test]
fn diverged_run_reports_step_and_advice() {
    let dir = TestDir::new();
    let (data, run) = (dir.small_data(), dir.path("run"));
    let flags = format!("train --arch denoising --learning-rate 1e9 --data {data} --run-dir {run}");
    fail(&flags, 74, &["diverged: at step", "of shard 0", "learning rate 1000000000;", "lower --learning-rate"]);
    assert!(!Path::new(&run).join("model.safetensors").exists(), "weights that are not finite were kept");
}

#[test]
fn signal_ends_run_after_step_and_saves_weights() {
    let dir = TestDir::new();
    let (data, run) = (dir.small_data(), dir.path("run"));
    for (signal, exit_code) in [("INT", 0), ("TERM", 143)] {
        let run = format!("{run}-{signal}");
        let flags = format!("train --arch denoising --epochs 1000000 --data {data} --run-dir {run} --json");
        let mut child = program(&flags).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        lines.next().expect("an epoch's line").expect("text");
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().expect("kill starts");
        assert!(kill.success(), "the program runs");
        let end: Value = serde_json::from_str(&lines.last().expect("a last line").expect("text")).expect("JSON");
        assert_eq!(child.wait().expect("the program ends").code(), Some(exit_code));
        assert_eq!((&end["event"], &end["interrupted"]), (&"end".into(), &true.into()));
        let (_, weights) = read_any(&Path::new(&run).join("model.safetensors")).expect("whole weights");
        assert_eq!(end["params_blake3"], engine::params::params_blake3(&weights.params));
    }
}

#[test]
fn offline_training_falls_back_to_synthetic_data() {
    let dir = TestDir::new();
    let offline = |flags: &str| {
        let mut command = program(flags);
        command.current_dir(dir.folder.path()).env("HOME", dir.path("home")).env("XDG_CACHE_HOME", dir.path("cache"));
        // No process listens there, so nothing is ever reached.
        for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy"] {
            command.env(name, "http://127.0.0.1:9");
        }
        command.output().expect("the program starts")
    };
    let output = offline("train --arch denoising --max-steps 1 --run-dir run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("NOT FASHION-MNIST"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("55000 images of synthetic garments"), "{}", text(&output.stdout));

    let output = offline("train --arch denoising --max-steps 1 --data fashion-mnist --run-dir never");
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stderr));
    assert!(!dir.folder.path().join("never").exists());
}

const ENCODER_IN_NUMPY: &str = "
assert hidden.shape == (100,)
def selu(x): return 1.0507009873554805 * numpy.where(x > 0, x, 1.6732632423543772 * (numpy.exp(x) - 1))
x = numpy.linspace(0, 1, 784, dtype=numpy.float32)
for layer in ['encoder.dense1', 'encoder.dense2']:
    x = selu(w[layer + '.weight'] @ x + w[layer + '.bias'])
print(*x)
";

#[test]
fn published_weights_load_into_numpy() {
    let dir = TestDir::new();
    let (weights, python) = (dir.path("w.safetensors"), std::env::var("TELAR_PYTHON"));
    let interpreter = python.clone().unwrap_or_else(|_| "python3".to_owned());
    let run = |code: &str| Command::new(&interpreter).args(["-c", code, &weights]).output();
    if python.is_err() && !run("import numpy, safetensors").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no Python with numpy and safetensors");
        return;
    }
    write_weights(Path::new(&weights), Architecture::Denoising);
    // The documentation's own lines, but for the file, and then the encoder worked out by hand.
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/weights.md")).expect("the page");
    let lines = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("lines of Python");
    let lines = lines.replace("\"runs/denoising-001/model.safetensors\"", "sys.argv[1]");
    let code = format!("import sys\n{lines}{ENCODER_IN_NUMPY}");
    let output = run(&code).expect("Python starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Vec<f32> =
        text(&output.stdout).split_whitespace().map(|value| value.parse().expect("a number")).collect();

    let device = engine::backend::reference_device();
    let (architecture, weights) = read_any(Path::new(&weights)).expect("whole weights");
    let images = model::images::Images {
        values: (0..784_u16).map(|place| f32::from(place) / 783.0).collect(),
        shape: [1, 28, 28],
    };
    let expected = Trained::new(architecture, &weights, &device).encode(images);
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {expected:?}");
}

#[test]
fn other_dataset_with_same_file_names_is_refused() {
    let dir = TestDir::new();
    write_data(&dir.folder.path().join("data"));
    let output = program("train --arch conv --run-dir run").current_dir(dir.folder.path()).output().expect("a start");
    assert_eq!(output.status.code(), Some(65));
    assert!(text(&output.stderr).contains("expected Fashion-MNIST in data, found another data set"));
}

#[test]
fn fashion_mnist_split_matches_book() {
    let Some(data) = common::fashion_mnist() else { return };
    let counts = [Split::Train, Split::Valid, Split::Test].map(|split| data.len(split));
    assert_eq!(counts, [55_000, 5_000, 10_000]);
    // The first training image is an ankle boot, the first test image too.
    assert_eq!((data.labels(Split::Train)[0], data.labels(Split::Test)[0]), (9, 9));
}
