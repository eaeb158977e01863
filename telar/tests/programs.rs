//! Programs of tasks that the engine does not know, as their users run them: many processes, the same bits.

use std::path::{Path, PathBuf};

use testdir::{TestDir, last_json, wait_until};

/// A program in `examples/`.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test is a program");
    tests.ancestors().nth(2).expect("the folder of what is built").join("examples").join(name)
}

/// For the program of several tasks in `examples/odd.rs`.
fn test_dir() -> TestDir {
    TestDir::new(example("odd"))
}

/// The goal: any network, any data: whatever a task has, workers of any number give the bits of one process.
#[test]
fn custom_task_has_same_bits_with_any_worker_count() {
    let dir = test_dir();
    let flags = "--task words --rate 0.3 --noise 0.5 --shards 6 --clip-norm 0.8 --lr-schedule cosine --warmup-steps 3";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let other = dir.end(&format!("train {flags} --run-dir other --noise 0.25").replace("--noise 0.5 ", ""));
    assert_ne!(alone["params_blake3"], other["params_blake3"], "the task's own flag changes what is trained");
    for n_workers in [1, 2, 5] {
        let cluster = dir.end(&format!("coordinator {flags} --workers {n_workers} --run-dir run-{n_workers}"));
        assert_eq!(cluster["params_blake3"], alone["params_blake3"], "{n_workers} workers");
        assert_eq!(cluster["last_epoch"]["val_loss"], alone["last_epoch"]["val_loss"]);
        assert!(cluster["last_epoch"]["val_word_accuracy"].as_f64().expect("the task's metric") > 0.0);
        for figure in ["bits", "perplexity", "val_bits", "val_perplexity"] {
            assert_eq!(cluster["last_epoch"][figure], alone["last_epoch"][figure], "{figure}, {n_workers} workers");
        }
        assert!(cluster["last_epoch"]["sentences_per_second"].is_number());
    }
    // Means and functions of the loss are figures as shares are: 17 words cost about 4 bits each.
    let figure = |name: &str| alone["last_epoch"][name].as_f64().expect(name);
    assert!((1.0..6.0).contains(&figure("val_bits")), "{alone}");
    assert_eq!(figure("val_perplexity").to_bits(), figure("val_loss").exp().to_bits());
    let history = &dir.lines("run-5/history.jsonl")[1];
    assert_eq!(
        (&history["bits"], &history["val_bits"]),
        (&alone["last_epoch"]["bits"], &alone["last_epoch"]["val_bits"])
    );
    let evaluated = dir.end("evaluate --task words --split valid --weights alone/model.safetensors");
    assert_eq!(evaluated["loss"], alone["last_epoch"]["val_loss"]);
    assert_eq!(evaluated["bits"], alone["last_epoch"]["val_bits"]);
    assert_eq!((evaluated["task"].as_str(), evaluated["architecture"].as_str()), (Some("words"), Some("words")));
    // The weights know their task and its settings.
    let evaluated = dir.end("evaluate --split valid --weights alone/model.safetensors");
    assert_eq!(evaluated["loss"], alone["last_epoch"]["val_loss"]);
    dir.fail(
        "evaluate --task moody --weights alone/model.safetensors",
        65,
        "expected weights of moody, found weights of words",
    );
    // A run that is stopped and resumed, without its flags.
    let stopped =
        format!("coordinator {flags} --workers 2 --max-steps 5 --run-dir stopped").replace("--lr-schedule cosine ", "");
    dir.end(&stopped);
    let resumed = dir.end("coordinator --task words --workers 3 --resume stopped --max-steps 9");
    let whole = dir.end(&stopped.replace("--max-steps 5 --run-dir stopped", "--max-steps 9 --run-dir whole"));
    assert_eq!(resumed["params_blake3"], whole["params_blake3"]);
    dir.fail("coordinator --task words --resume stopped --rate 0.5", 64, "expected --rate 0.3 as in the run");
}

/// The goal: a worker of another machine that is killed in the middle costs nothing but its work.
#[test]
fn killed_worker_changes_no_bits() {
    let dir = test_dir();
    let flags = "--task words --shards 4 --epochs 60 --hash-steps";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let listen = "--launch external --listen unix:socket --workers 2 --run-dir run --json";
    let mut coordinator = dir.start(&format!("coordinator {flags} {listen}"));
    wait_until("the socket", || dir.path("socket").exists());
    let worker = || dir.start("worker --coordinator unix:socket --threads 1");
    let (first, mut second) = (worker(), worker());
    let n_steps = || std::fs::read_to_string(dir.path("run/steps.jsonl")).map_or(0, |text| text.lines().count());
    wait_until("some steps", || n_steps() > 30);
    drop(first);
    assert!(coordinator.0.wait().expect("it ends").success());
    assert!(second.0.wait().expect("it ends").success());
    let mut out = String::new();
    std::io::Read::read_to_string(coordinator.0.stdout.as_mut().expect("a pipe"), &mut out).expect("text");
    let end = last_json(&out);
    assert_eq!((end["step"].as_u64(), &end["params_blake3"]), (Some(60 * 8), &alone["params_blake3"]));
}

/// The goal: a run ends when it no longer improves, after the same step for any number of workers, and its best weights are kept.
#[test]
fn early_stopping_keeps_best_weights_on_any_number_of_workers() {
    let dir = test_dir();
    let flags = "--task words --shards 3 --epochs 60 --learning-rate 0.1 --patience 3";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let (best, last) = (&alone["best_epoch"], alone["last_epoch"]["epoch"].as_u64().expect("an epoch"));
    let best_epoch = best["epoch"].as_u64().expect("an epoch");
    assert_eq!((alone["stopped_early"].as_bool(), alone["interrupted"].as_bool()), (Some(true), Some(false)));
    assert!(last < 60 && last == best_epoch + 3, "{alone}");
    let best_weights = |run: &str| std::fs::read(dir.path(run).join("best.safetensors")).expect("the best weights");
    let evaluated = dir.end("evaluate --task words --split valid --weights alone/best.safetensors");
    assert_eq!(evaluated["loss"], best["val_loss"]);
    let check = |found: serde_json::Value, run: &str| {
        assert_eq!(found["params_blake3"], alone["params_blake3"], "{run}");
        assert_eq!((&found["step"], &found["best_epoch"]), (&alone["step"], best), "{run}");
        assert_eq!((found["stopped_early"].as_bool(), found["outcome"].as_str()), (Some(true), Some("completed")));
        assert!(best_weights(run) == best_weights("alone"), "{run}");
    };
    check(dir.end(&format!("coordinator {flags} --workers 3 --run-dir three")), "three");
    // A run that is stopped after its best epoch knows it when it is resumed; 8 steps are an epoch.
    let stopped = dir.end(&format!("coordinator {flags} --run-dir two --workers 2 --max-steps {}", 8 * best_epoch + 8));
    assert_eq!((stopped["stopped_early"].as_bool(), &stopped["best_epoch"]), (Some(false), best));
    check(dir.end("coordinator --task words --workers 2 --resume two --epochs 60"), "two");
    // It is complete, unless more patience is asked for.
    let resumed = dir.end("coordinator --task words --workers 1 --resume two");
    assert_eq!(resumed["step"], alone["step"]);
    let resumed = dir.end("coordinator --task words --workers 1 --resume two --patience 5");
    assert!(resumed["step"].as_u64() > alone["step"].as_u64(), "{resumed}");
    dir.fail("train --task broken --init-partial", 2, "--init-from <FILE>");
    let partial =
        "train --task moody --max-steps 1 --init-from alone/best.safetensors --init-partial --run-dir partial";
    let output = dir.run(partial);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("tensors from alone/best.safetensors"), "{out}");
    dir.fail(
        "train --task broken --init-from alone/best.safetensors --init-partial",
        65,
        "tensors one.weight, one.bias",
    );
}

/// Names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// The goal: what a task shows of itself is where the built-in networks' pictures are.
#[test]
fn task_with_two_pictures_and_codes_has_folder_for_each() {
    let dir = test_dir();
    let flags = "--task words --shards 3";
    dir.end(&format!("train {flags} --run-dir alone"));
    dir.end(&format!("coordinator {flags} --workers 2 --run-dir run --tensorboard"));
    let epochs = ["epoch-01.png", "epoch-02.png"];
    for name in ["embedding", "hidden-weights"] {
        assert_eq!(names(&dir.path("run").join(name)), epochs, "{name}");
        for epoch in epochs {
            let read = |run: &str| std::fs::read(dir.path(run).join(name).join(epoch)).expect("a picture");
            assert!(read("run") == read("alone"), "{name}/{epoch}");
            assert!(read("run").starts_with(b"\x89PNG"));
        }
    }
    assert_eq!(names(&dir.path("run/codes")), epochs);
    assert!(!dir.path("run/reconstructions").exists(), "nobody makes any");
    let table = |name: &str| std::fs::read_to_string(dir.path("run/tensorboard/validation").join(name));
    let tensors = table("tensors.tsv").expect("the newest codes");
    assert!(tensors.lines().count() == 17 && tensors.lines().all(|line| line.split('\t').count() == 12), "{tensors}");
    assert_eq!(table("metadata.tsv").expect("labels"), "even\nodd\n".repeat(8) + "even\n");

    // The run of another process has those before.
    dir.end("coordinator --task words --workers 1 --resume run --epochs 3");
    assert_eq!(names(&dir.path("run/embedding")), [epochs[0], epochs[1], "epoch-03.png"]);
}

/// The goal: no run ends for a picture.
#[test]
fn picture_that_cannot_be_shown_is_left_out_with_sentence() {
    let dir = test_dir();
    for (how, parts) in [
        (
            "pictures",
            &[
                "which the run folder has already, found `checkpoints`",
                "lower-case letters, digits and dashes, found \"../up\"",
                "expected one picture named `fine` an epoch",
                "expected picture `text` as PNG",
                "expected finite codes, found NaN in code 0",
            ][..],
        ),
        ("panic", &["the task panicked while it made what people see after an epoch"]),
    ] {
        let line = format!("coordinator --task broken --how {how} --workers 1 --epochs 1 --run-dir {how}");
        let output = dir.run(&line);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        for part in parts {
            assert!(err.contains(part), "`{part}` is not in {err}");
        }
    }
    assert_eq!(names(&dir.path("pictures/fine")), ["epoch-01.png"]);
    assert!(!dir.path("pictures/codes").exists() && !dir.path("pictures/text").exists() && !dir.path("up").exists());
    assert!(names(&dir.path("pictures/checkpoints")).iter().all(|name| name.ends_with(".safetensors")));
    assert!(!dir.path("panic/fine").exists() && dir.path("panic/model.safetensors").exists());
}

/// The goal: what a task does wrong gets a sentence.
#[test]
fn task_fault_is_reported_with_reason() {
    let dir = test_dir();
    dir.fail("coordinator --workers 2", 64, "expected --task words, moody or broken, found none");
    dir.fail("train --task words --rate 1", 64, "expected --rate from 0 to below 1, found 1");
    dir.fail("train --task moody --rate 0.5", 64, "--rate is not a flag of the task moody");
    dir.fail("train --task words --data nowhere", 65, "expected no --data, found nowhere");
    dir.fail("train --task words --weight-decay 0.1", 64, "parameters that are not trained, such as frozen.weight");
    dir.fail("train --task broken --how shared", 64, "found one.weight in other.weight too");
    dir.fail("train --task broken --how nan", 74, "the loss of shard 0 is not finite");
    dir.fail("coordinator --task broken --how nan --workers 2", 74, "the run diverged: at step 1");
    dir.fail("coordinator --task broken --how sizes --workers 2", 64, "expected the parameter layout");
    let counts = "expected a count of at most 32 for accuracy in shard 0, found 33";
    dir.fail("train --task broken --how counts", 70, counts);
    let output = dir.run("coordinator --task broken --how counts --shards 1 --workers 1 --run-dir counts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains(counts), "{err}");
    // Data that depends on who gathers it: each of two votes, and the coordinator's, is another one.
    let output = dir.run("coordinator --task moody --workers 2 --shards 4 --epochs 1 --audit 1 --run-dir moody");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("evicted") && err.contains("wrong"), "{err}");
}

/// The goal: a worker's program without the task of the run says which it has and which it lacks.
#[test]
fn worker_without_task_of_run_exits_with_reason() {
    let dir = test_dir();
    let flags = "--task words --launch external --listen unix:socket --run-dir run";
    let _coordinator = dir.start(&format!("coordinator {flags}"));
    wait_until("the socket", || dir.path("socket").exists());
    let mut worker = dir.command_of(&example("line"), "worker --coordinator unix:socket");
    let output = worker.output().expect("a start");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{err}");
    assert!(err.contains("expected the task fit, which this program knows, found the task `words`"), "{err}");
}

/// The goal: a program's own command behaves like the built-in ones.
#[test]
fn own_command_shares_help_errors_and_exit_codes() {
    let dir = test_dir();
    let help = dir.output("--help");
    assert!(help.contains("end          End with an error") && help.contains("train        Train in this"), "{help}");
    assert!(dir.output("end --help").contains("--code <CODE>"));
    dir.fail("end", 65, "error: expected a code, found none");
    dir.fail("end --code 64", 64, "error: expected nothing, found a code");
    dir.fail("end --code", 2, "a value is required for '--code <CODE>'");
    dir.fail("end --weights nowhere", 65, "error: cannot read nowhere");
    dir.fail("other", 2, "unrecognized subcommand 'other'");
    dir.end("train --task words --max-steps 1 --run-dir words");
    assert_eq!(dir.output("end --weights words/model.safetensors"), "");
    dir.end("train --task moody --max-steps 1 --run-dir moody");
    dir.fail("end --weights moody/model.safetensors", 65, "expected weights of words, found weights of moody");
}

/// The goal: the documentation shows tests that run.
#[test]
fn documentation_shows_tests_of_example() {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(path).expect("a file of the project")
    };
    let example = read("examples/line.rs");
    let (_, tests) = example.split_once("#[cfg(test)]").expect("the example has tests");
    assert!(read("../docs/your-own-network.md").contains(tests), "docs/your-own-network.md shows examples/line.rs");
}

/// The goal: what a new network takes from a file is said in full, or the run does not begin.
#[test]
fn initial_values_are_taken_by_mapped_names() {
    let dir = test_dir();
    dir.end("train --task words --max-steps 3 --run-dir words");
    let init = "--task broken --max-steps 1 --init-from words/model.safetensors --init-partial --init-map";
    let shapes = "expected frozen.weight as F32 [1, 1] for one.weight, found F32 [12, 12]";
    dir.fail(&format!("train {init} frozen=one"), 65, shapes);
    dir.fail(
        &format!("train {init} froze=one"),
        65,
        "expected tensors below froze for `--init-map froze=one`, found embedding",
    );
    dir.fail(&format!("train {init} frozen=one.linear"), 65, "to include one.linear.bias for");
    dir.fail(&format!("train {init} frozen"), 2, "expected FROM=TO");
    dir.fail("train --task broken --init-map a=b", 2, "--init-partial");
    // Tensors that change their names, and change them back, with steps that are too small to change a value.
    let twins = dir.end("train --task broken --max-steps 1 --run-dir twins");
    let swap = |from: &str, to: &str| {
        let init = format!("--init-from {from}/model.safetensors --init-partial --init-map one=other,other=one");
        format!("train --task broken --max-steps 1 --learning-rate 1e-30 {init} --run-dir {to}")
    };
    let swapped = dir.end(&swap("twins", "swapped"));
    assert_ne!(swapped["params_blake3"], twins["params_blake3"]);
    assert_eq!(dir.json("swapped/run.json")["recipe"]["init_map"], serde_json::json!(["one=other", "other=one"]));
    assert_eq!(dir.end(&swap("swapped", "again"))["params_blake3"], twins["params_blake3"]);
    let out = dir.output(&swap("swapped", "more"));
    assert!(out.contains("initial values: 4 of 4 tensors from swapped/model.safetensors\n"), "{out}");
}

/// The goal: weights of a network of another size are explained by the flags that make it.
#[test]
fn evaluation_of_other_network_names_flags() {
    let dir = test_dir();
    // A file that says nothing of its task, with one tensor.
    let header = r#"{"out.bias":{"dtype":"F32","shape":[17],"data_offsets":[0,68]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 68]].concat();
    std::fs::write(dir.path("other.safetensors"), file).expect("a file");
    dir.fail(
        "evaluate --task words --weights other.safetensors --noise 0.5",
        65,
        "expected embedding.weight as F32 [17, 12], found no such tensor in other.safetensors; expected the weights of the network \
         of --rate 0.25 --noise 0.5: give the flags that they were trained with",
    );
    // Without flags there is nothing to give.
    let output = dir.command_of(&example("line"), "evaluate --weights other.safetensors").output().expect("a start");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("expected out.bias as no tensor of fit, found it") && !err.contains("flags"), "{err}");
}
