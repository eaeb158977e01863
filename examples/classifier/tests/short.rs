//! Runs the program on a small data set: images of noise with a bright square, whose position is the class.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use testdir::TestDir;

const SIDE: usize = 28;
const N_CLASSES: usize = 10;
/// 550 to draw labelled ones from, and 50 to validate.
const N_TRAINING_IMAGES: usize = 600;
const N_TEST_IMAGES: usize = 200;
/// What all runs here have.
const RECIPE: &str = "--data garments --labels 100 --batch-size 20 --shards 4";

/// A folder with a data set, in which the program runs.
fn workspace() -> TestDir {
    let workspace = TestDir::new(env!("CARGO_BIN_EXE_classifier"));
    let folder = workspace.path("garments");
    fs::create_dir(&folder).expect("the folder can be written");
    for (name, n_images) in [("train", N_TRAINING_IMAGES), ("t10k", N_TEST_IMAGES)] {
        let shape = [n_images, SIDE, SIDE];
        write_idx(
            &folder.join(format!("{name}-images-idx3-ubyte.gz")),
            &shape,
            &(0..n_images).flat_map(image).collect::<Vec<u8>>(),
        );
        let labels: Vec<u8> =
            (0..n_images).map(|position| u8::try_from(position % N_CLASSES).expect("below 10")).collect();
        write_idx(&folder.join(format!("{name}-labels-idx1-ubyte.gz")), &shape[..1], &labels);
    }
    workspace
}

fn tensors(workspace: &TestDir, name: &str) -> BTreeMap<String, Tensor> {
    read_safetensors(&fs::read(workspace.path(name)).expect("the weights"))
}

/// Noise, and in it a bright square of 7x7.
fn image(position: usize) -> Vec<u8> {
    let class = position % N_CLASSES;
    let (top, left) = (1 + class / 4 * 9, class % 4 * 7);
    let pixel = |place: usize| {
        let (row, column) = (place / SIDE, place % SIDE);
        let is_bright = (top..top + 7).contains(&row) && (left..left + 7).contains(&column);
        let number = u32::try_from(position * SIDE * SIDE + place).expect("a small number");
        let noise = number.wrapping_mul(2_654_435_761) >> 25; // below 128
        u8::try_from(noise).expect("below 128") + if is_bright { 100 } else { 0 }
    };
    (0..SIDE * SIDE).map(pixel).collect()
}

fn write_idx(path: &Path, shape: &[usize], content: &[u8]) {
    let numbers = [0x800 + shape.len()].into_iter().chain(shape.iter().copied());
    let header: Vec<u8> =
        numbers.flat_map(|number| u32::try_from(number).expect("a small number").to_be_bytes()).collect();
    let mut encoder = GzEncoder::new(fs::File::create(path).expect("a file"), Compression::fast());
    encoder.write_all(&[&header, content].concat()).expect("the file can be written");
    encoder.finish().expect("the file can be written");
}

/// Shape and bytes.
type Tensor = (Value, Vec<u8>);

fn read_safetensors(bytes: &[u8]) -> BTreeMap<String, Tensor> {
    let (n_header, rest) = bytes.split_first_chunk().expect("a length");
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*n_header)).expect("a length"));
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("JSON");
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
        let offset = |position: usize| {
            usize::try_from(entry["data_offsets"][position].as_u64().expect("a number")).expect("in memory")
        };
        (name, (entry["shape"].clone(), data[offset(0)..offset(1)].to_vec()))
    });
    tensors.collect()
}

fn safetensors(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }));
        data.extend_from_slice(bytes);
    }
    let header = Value::from(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

#[test]
fn training_on_two_workers_gives_parameters_of_one_process() {
    let workspace = workspace();
    let recipe = format!("{RECIPE} --epochs 8 --seed 3 --subset 1");
    let alone = workspace.end(&format!("train {recipe} --run-dir alone"));
    let cluster = workspace.end(&format!("coordinator {recipe} --workers 2 --run-dir cluster"));
    assert_eq!(cluster["params_blake3"], alone["params_blake3"]);
    let other = workspace.end(&format!("train {recipe} --run-dir other").replace("--subset 1", "--subset 2"));
    assert_ne!(other["params_blake3"], alone["params_blake3"], "other images have labels");

    let test = workspace.end("evaluate --data garments --weights alone/best.safetensors");
    assert_eq!(test["n_samples"], N_TEST_IMAGES);
    let accuracy = test["accuracy"].as_f64().expect("a number");
    assert!(accuracy > 0.8, "expected far more than 0.1, found {accuracy}");
}

#[test]
fn frozen_encoder_keeps_weights_of_other_network() {
    let workspace = workspace();
    workspace.end(&format!("train {RECIPE} --max-steps 3 --run-dir before"));
    // The weights of an autoencoder: the same encoder, no head, and a decoder.
    let mut autoencoder = tensors(&workspace, "before/model.safetensors");
    autoencoder.retain(|name, _| name.starts_with("encoder."));
    assert_eq!(autoencoder["encoder.conv3.weight"].0, json!([64, 32, 3, 3]));
    autoencoder.insert("decoder.deconv3.bias".to_owned(), (json!([1]), vec![0; 4]));
    fs::write(workspace.path("autoencoder.safetensors"), safetensors(&autoencoder)).expect("a file");

    let train = |flags: &str, folder: &str| {
        let init = "--seed 5 --init-from autoencoder.safetensors --init-partial";
        workspace.end(&format!("train {RECIPE} {init} --run-dir {folder} {flags}"));
        tensors(&workspace, &format!("{folder}/model.safetensors"))
    };
    let [first, last] =
        [1, 10].map(|n_steps| train(&format!("--freeze --max-steps {n_steps}"), &format!("frozen-{n_steps}")));
    let tuned = train("--max-steps 10", "tuned");
    assert_eq!(last.len(), 8, "three convolutions and the head, each with a bias");
    for (name, tensor) in &last {
        if name.starts_with("encoder.") {
            assert!(tensor == &autoencoder[name], "{name} is as in the file");
            assert!(tensor != &tuned[name], "{name} is trained without --freeze");
        } else {
            assert!(tensor != &first[name], "{name} is trained");
        }
    }
    let evaluated = workspace.end("evaluate --data garments --weights frozen-10/model.safetensors");
    assert!(evaluated["loss"].is_number());
}

/// Random features: of use to tell what training the encoder adds.
#[test]
fn frozen_encoder_without_file_is_trained_on() {
    let workspace = workspace();
    let end = workspace.end(&format!("train {RECIPE} --freeze --epochs 3 --run-dir frozen"));
    assert!(end["last_epoch"]["val_accuracy"].as_f64().expect("a number") > 0.2);
}

#[test]
fn mistake_gets_sentence() {
    let workspace = workspace();
    let labels = |found: &str| format!("expected --labels as a multiple of 10 from 10 to 50000, found {found}");
    workspace.fail("train --data garments --labels 0", 64, &labels("0"));
    workspace.fail("train --data garments --labels 55", 64, &labels("55"));
    workspace.fail("train --data garments --labels 5000", 65, "expected 500 training images of each class, found 55");
    workspace.fail("train", 65, "expected the folder with the four files of Fashion-MNIST, found none");
    workspace.fail("coordinator --workers 2 --data nowhere", 65, "cannot read nowhere/train-images-idx3-ubyte.gz");
    fs::copy(
        workspace.path("garments/t10k-labels-idx1-ubyte.gz"),
        workspace.path("garments/t10k-images-idx3-ubyte.gz"),
    )
    .expect("a copy");
    workspace.fail("train --data garments", 65, "another one or a part: t10k-images-idx3-ubyte");
}
