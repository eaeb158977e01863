//! A run that is mirrored to an object store: what is there is what is in the run folder, the training never waits for it,
//! and a coordinator that has nothing else goes on from it to the same bits.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Bucket, N_SHORT_STEPS, Passage, Process, SHORT_RUN, Stream, TestDir, wait_until};

/// How long the mirror may take to have what was uploaded to it.
const UPLOAD_WAIT_MAX: Duration = Duration::from_mins(1);

/// A place with a bucket; None, with a message, where there is no `moto`.
fn place_with_bucket() -> Option<(TestDir, Bucket)> {
    let dir = TestDir::new();
    let bucket = Bucket::start(&dir);
    if bucket.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: no TELAR_PYTHON with moto[server]; `.ci/run test` sets one up");
    }
    Some((dir, bucket?))
}

fn command(dir: &TestDir, bucket: &Bucket, flags: &str) -> Command {
    let mut command = dir.command("coordinator", flags);
    bucket.introduce(&mut command);
    command
}

fn coordinator(dir: &TestDir, bucket: &Bucket, flags: &str) -> Process {
    dir.start("coordinator", command(dir, bucket, &format!("{flags} --json")))
}

/// The mirrored files of a run folder.
fn run_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for below in ["", "checkpoints", "reconstructions", "codes"] {
        for entry in fs::read_dir(folder.join(below)).expect("a folder of the run") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(folder).expect("it is below").to_str().expect("text").to_owned();
            // What is made of the lines again, and the log, stay where they are.
            let is_mirrored = ![".lock", "run.log", "curves.svg"].contains(&name.as_str());
            if path.is_file() && is_mirrored {
                files.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn assert_same_files(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, content) in expected {
        assert!(&found[name] == content, "{name} differs: {} and {} bytes", found[name].len(), content.len());
    }
}

/// Steps of the whole lines of a file of lines.
fn line_steps(content: &[u8]) -> Vec<u64> {
    let text = String::from_utf8(content.to_vec()).expect("text");
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is cut");
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["step"].as_u64().expect("a step"))
        .collect()
}

/// Whoever resumes from any of the checkpoints finds all lines up to its step.
fn assert_lines_reach_checkpoints(objects: &BTreeMap<String, Vec<u8>>) {
    let steps = objects.get("steps.jsonl").map_or_else(Vec::new, |content| line_steps(content));
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    for name in objects.keys().filter(|name| name.starts_with("checkpoints/")) {
        let step: u64 =
            name["checkpoints/step-".len()..].strip_suffix(".safetensors").expect("a name").parse().expect("a step");
        assert!(steps.len() as u64 >= step, "{name} is there, and lines up to {}", steps.len());
    }
}

fn check_mirrored_and_resumed(
    dir: &TestDir,
    url: &str,
    start: impl Fn(&str) -> Process,
    objects: impl Fn() -> BTreeMap<String, Vec<u8>>,
) {
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let half = flags.replace("--epochs 2", "--epochs 1");
    let mirrored = format!("{half} --workers 2 --checkpoint-every 50 --keep 2 --mirror {url} --run-dir first");
    let end = start(&mirrored).end();
    assert_eq!((&end["mirror"]["url"], &end["mirror"]["step"]), (&url.into(), &138.into()), "{end}");
    let first = dir.run("first", &end);
    assert_eq!(end["mirror"]["missing"], Value::Array(Vec::new()));
    assert_same_files(&objects(), &run_files(&dir.path("first")));

    // On a machine that has nothing of it.
    let second = start(&format!(
        "--resume {url} --epochs 2 --run-dir second --workers 2 --data small --checkpoint-every 50 --keep 2"
    ));
    let end = second.end();
    let run = dir.run("second", &end);
    run.assert_same_bits(&expected);
    assert_eq!(run.description["run_id"], first.description["run_id"]);
    assert_eq!(run.description["incarnation"], 2);
    assert_eq!(end["mirror"]["step"], N_SHORT_STEPS);
    assert_eq!(run.description["mirror"], end["mirror"]);
    let (mirrored, local) = (objects(), run_files(&dir.path("second")));
    assert_same_files(&mirrored, &local);
    assert_eq!(local.keys().filter(|name| name.starts_with("checkpoints/")).count(), 2);
}

#[test]
fn s3_mirror_has_same_files_and_resumes_run() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let start = |flags: &str| coordinator(&dir, &bucket, flags);
    check_mirrored_and_resumed(&dir, "s3://bucket/runs/one", start, || bucket.objects("runs/one"));
}

#[test]
fn folder_mirror_has_same_files_and_resumes_run() {
    let dir = TestDir::new();
    let folder = dir.path("mirror");
    let start = |flags: &str| dir.coordinator(flags);
    check_mirrored_and_resumed(&dir, &format!("file://{}", folder.display()), start, || run_files(&folder));
}

/// The goal: an outage at the start and another one in the middle hold no step up, and leave nothing missing.
#[test]
fn mirror_outage_delays_no_step_and_is_caught_up() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}").replace("--epochs 2", "--epochs 2000");
    bucket.gate().set(Passage::Shut);
    let mirror = "--mirror s3://bucket/run --run-dir run --checkpoint-every 10 --workers 2";
    let run = coordinator(&dir, &bucket, &format!("{flags} {mirror}"));
    run.wait_for_line(Stream::Err, "cannot reach s3://bucket/run");
    run.wait_for_line(Stream::Out, r#""state":"failing""#);
    let step = run.wait_for_checkpoint(100);
    assert!(bucket.objects("run").is_empty());
    bucket.gate().set(Passage::Open);
    run.wait_for_line(Stream::Out, r#""state":"caught up""#);
    run.wait_for_line(Stream::Err, "checkpoint mirrored");

    bucket.gate().set(Passage::Shut);
    run.wait_for_nth_line(Stream::Out, r#""state":"failing""#, 2);
    let later = run.wait_for_checkpoint(step + 200);
    run.wait_for_checkpoint(later + 200);
    bucket.gate().set(Passage::Open);
    run.wait_for_nth_line(Stream::Out, r#""state":"caught up""#, 2);
    run.signal("INT");
    let end = run.end();
    assert_eq!(end["mirror"]["step"], end["step"]);
    // Each state once, however often it was tried.
    assert_eq!(run.lines(Stream::Out, r#""state":"failing""#).len(), 2);
    assert_same_files(&bucket.objects("run"), &run_files(&dir.path("run")));
    let steps = line_steps(&bucket.objects("run")["steps.jsonl"]);
    assert!(steps.len() as u64 > later + 200);
}

/// The goal: no step waits for a store that takes bytes ever more slowly, in the end none.
#[test]
fn stalled_upload_delays_no_step() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}").replace("--epochs 2", "--epochs 2000");
    let run = coordinator(
        &dir,
        &bucket,
        &format!("{flags} --mirror s3://bucket/run --run-dir run --checkpoint-every 10 --workers 2"),
    );
    run.wait_for_line(Stream::Err, "checkpoint mirrored");
    bucket.gate().hold_after("/bucket/run/checkpoints/step-", 200_000);
    bucket.gate().wait_until_held();
    let before = bucket.objects("run");
    let n_mirrored = run.lines(Stream::Err, "checkpoint mirrored").len();
    let n_saved = run.lines(Stream::Err, "checkpoint saved").len();
    run.wait_for_nth_line(Stream::Err, "checkpoint saved", n_saved + 50); // 500 steps
    assert_eq!(run.lines(Stream::Err, "checkpoint mirrored").len(), n_mirrored);
    assert_same_files(&bucket.objects("run"), &before);
    assert_lines_reach_checkpoints(&before);
    bucket.gate().set(Passage::Open);
    run.wait_for_nth_line(Stream::Err, "checkpoint mirrored", n_mirrored + 2);
    run.signal("INT");
    assert_eq!(run.end()["mirror"]["missing"], Value::Array(Vec::new()));
    assert_same_files(&bucket.objects("run"), &run_files(&dir.path("run")));
}

/// A run whose first checkpoint is mirrored, and that trains as soon as it has a worker, whose address is given.
fn run_before_its_first_step(dir: &TestDir, bucket: &Bucket, flags: &str) -> (Process, String) {
    let mirror = "--mirror s3://bucket/run --run-dir run --launch external --listen 127.0.0.1:0";
    let run = coordinator(dir, bucket, &format!("{flags} {mirror}"));
    run.wait_for_mirrored(0);
    let address = run.begin()["address"].as_str().expect("an address").to_owned();
    (run, address)
}

/// A coordinator that is killed while it uploads, on a machine that is lost with it.
fn check_killed(held_at: &str, n_bytes: usize) {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (first, address) = run_before_its_first_step(&dir, &bucket, &format!("{flags} --checkpoint-every 10"));
    bucket.gate().hold_after(held_at, n_bytes);
    let worker = dir.worker("worker", &address);
    bucket.gate().wait_until_held();
    first.kill();
    drop(worker);
    fs::remove_dir_all(dir.path("run")).expect("a folder");
    bucket.gate().set(Passage::Open);
    let objects = bucket.objects("run");
    assert_lines_reach_checkpoints(&objects);

    let second = coordinator(&dir, &bucket, "--resume s3://bucket/run --run-dir run --data small --workers 2");
    let end = second.end();
    let run = dir.run("run", &end);
    run.assert_same_bits(&expected);
    assert_eq!(run.description["incarnation"], 2);
    assert_eq!(end["mirror"]["step"], N_SHORT_STEPS);
}

#[test]
fn run_killed_during_checkpoint_upload_resumes() {
    check_killed("/bucket/run/checkpoints/step-", 300_000);
}

#[test]
fn run_killed_during_line_upload_resumes() {
    check_killed("PUT /bucket/run/steps.jsonl", 700);
}

#[test]
fn run_killed_between_two_uploads_resumes() {
    check_killed("PUT /bucket/run/history.jsonl", 0);
}

/// The goal: the same command on a machine that may have lost everything begins, goes on, and never begins anew.
#[test]
fn auto_resume_prefers_folder_over_mirror() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}");
    let flags = flags.replace("--epochs 2", "--epochs 3");
    let expected = dir.reference(&flags);
    let again =
        format!("{flags} --workers 2 --checkpoint-every 50 --run-dir run --resume auto --mirror s3://bucket/run");
    bucket.gate().set(Passage::Shut);
    let refused = coordinator(&dir, &bucket, &again);
    refused.check_end(69, &["cannot reach s3://bucket/run"]);
    assert!(!dir.path("run/run.json").exists());
    bucket.gate().set(Passage::Open);

    let epochs = |n_epochs: &str| again.replace("--epochs 3", &format!("--epochs {n_epochs}"));
    let first = coordinator(&dir, &bucket, &epochs("1"));
    assert_eq!((&first.begin()["step"], &first.end()["mirror"]["step"]), (&0.into(), &138.into()));
    fs::remove_dir_all(dir.path("run")).expect("a folder");
    let second = coordinator(&dir, &bucket, &epochs("2"));
    assert_eq!((&second.begin()["step"], &second.end()["mirror"]["step"]), (&138.into(), &276.into()));
    // The folder is there, so the store need not be.
    bucket.gate().set(Passage::Shut);
    let third = coordinator(&dir, &bucket, &again);
    assert_eq!(third.begin()["step"], 276);
    third.wait_for_line(Stream::Err, "cannot reach s3://bucket/run");
    bucket.gate().set(Passage::Open);
    let end = third.end();
    let run = dir.run("run", &end);
    run.assert_same_bits(&expected);
    assert_eq!(run.description["incarnation"], 3);
    assert_eq!(end["mirror"]["step"], 414);
}

#[test]
fn damaged_checkpoint_at_mirror_is_skipped() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let half = flags.replace("--epochs 2", "--epochs 1");
    let mirrored = format!("{half} --workers 2 --checkpoint-every 50 --mirror s3://bucket/run --run-dir first");
    assert_eq!(coordinator(&dir, &bucket, &mirrored).end()["mirror"]["step"], 138);
    let name = "checkpoints/step-00000138.safetensors";
    let content = fs::read(dir.path("first").join(name)).expect("a checkpoint");
    bucket.put(&format!("run/{name}"), &content[..content.len() / 2]);

    let second =
        coordinator(&dir, &bucket, "--resume s3://bucket/run --epochs 2 --run-dir second --data small --workers 2");
    second.wait_for_line(Stream::Err, "checkpoint skipped");
    let end = second.end();
    assert_eq!(second.begin()["step"], 100);
    dir.run("second", &end).assert_same_bits(&expected);
}

/// The goal: the wait for a store that does not come back ends, with what is missing there and what to do.
#[test]
fn signal_ends_final_wait_for_mirror() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (run, address) = run_before_its_first_step(&dir, &bucket, &flags);
    bucket.gate().set(Passage::Shut);
    let _worker = dir.worker("worker", &address);
    run.wait_for_line(Stream::Out, r#""state":"finishing""#);
    run.signal("TERM");
    run.check_end(
        69,
        &["the mirror s3://bucket/run lacks", "checkpoints/step-00000276.safetensors", "the run folder is whole"],
    );
    let end = run.last_json();
    assert_eq!(end["outcome"], "completed");
    let missing: Vec<&str> =
        end["mirror"]["missing"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(missing.contains(&"run.json") && missing.contains(&"steps.jsonl"), "{end}");
    dir.run("run", &end).assert_same_bits(&expected);
}

/// The goal: no run's files take the place of another one's, and a run that cannot be mirrored is refused before the training.
#[test]
fn unusable_mirror_is_refused_with_advice() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN} --workers 2");
    let check = |flags: &str, exit_code, parts: &[&str]| {
        dir.start("coordinator", command(&dir, &bucket, flags)).check_end(exit_code, parts);
    };
    let one = format!("{flags} --max-steps 3 --mirror s3://bucket/one --run-dir one");
    assert_eq!(coordinator(&dir, &bucket, &one).end()["mirror"]["step"], 3);
    let two = coordinator(&dir, &bucket, &format!("{flags} --max-steps 3 --run-dir two")).end();
    assert_eq!(two["mirror"], Value::Null);

    let taken = "expected no run at s3://bucket/one, found run";
    check(&format!("{flags} --mirror s3://bucket/one --run-dir three"), 73, &[taken, "--resume s3://bucket/one"]);
    assert!(!dir.path("three").exists(), "a folder was made for a run that never began");
    let resumed = "--resume two --max-steps 5 --data small --workers 2";
    check(&format!("{resumed} --mirror s3://bucket/one"), 73, &["at s3://bucket/one, found run"]);
    check("--resume s3://bucket/one --run-dir two --data small", 73, &["expected no run in two", "`--resume two`"]);
    check("--resume s3://bucket/nowhere --data small", 65, &["expected a run to resume at s3://bucket/nowhere"]);
    check(&format!("{flags} --mirror s3://missing/one"), 69, &["expected a bucket at s3://missing/one", "create it"]);
    check(&format!("{flags} --mirror ftp://bucket/one"), 64, &["expected the URL of an object store as --mirror"]);
    let mut without_http = command(&dir, &bucket, &format!("{flags} --mirror s3://bucket/new"));
    without_http.env_remove("AWS_ALLOW_HTTP");
    dir.start("coordinator", without_http).check_end(64, &["AWS_ALLOW_HTTP=true"]);
    check("--resume s3:///one", 64, &["expected the URL of an object store as --resume"]);
    let same = format!("file://{}", dir.path("same").display());
    fs::create_dir(dir.path("same")).expect("a folder");
    check(&format!("{flags} --mirror {same} --run-dir same"), 64, &["elsewhere than in the run folder"]);
}

/// The goal: a mirror that is free takes a run that was begun without one, and files that need several requests come back.
#[test]
fn run_started_without_mirror_is_mirrored_completely() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN} --workers 2");
    coordinator(&dir, &bucket, &format!("{flags} --max-steps 3 --run-dir run")).succeed();
    let large: Vec<u8> = (0..=250).cycle().take(12_000_000).collect();
    fs::write(dir.path("run/reconstructions/epoch-99.png"), &large).expect("a file");
    let resumed = "--resume run --max-steps 5 --data small --workers 2 --mirror s3://bucket/run";
    assert_eq!(coordinator(&dir, &bucket, resumed).end()["mirror"]["step"], 5);
    assert_same_files(&bucket.objects("run"), &run_files(&dir.path("run")));
    let again = "--resume s3://bucket/run --max-steps 7 --data small --workers 2";
    let end = coordinator(&dir, &bucket, again).end();
    assert_eq!((&end["step"], &end["weights"]), (&7.into(), &"runs/denoising-001/model.safetensors".into()));
    assert!(fs::read(dir.path("runs/denoising-001/reconstructions/epoch-99.png")).expect("a file") == large);
}

/// The goal: a coordinator that lost its machine for a while does not overwrite what the next one has made.
#[test]
fn replaced_coordinator_stops_uploading() {
    let Some((dir, bucket)) = place_with_bucket() else { return };
    let flags = format!("--arch denoising {SHORT_RUN}").replace("--epochs 2", "--epochs 2000");
    let old = coordinator(
        &dir,
        &bucket,
        &format!("{flags} --workers 1 --checkpoint-every 50 --mirror s3://bucket/run --run-dir old"),
    );
    old.wait_for_mirrored(50);
    let new = coordinator(
        &dir,
        &bucket,
        "--resume s3://bucket/run --run-dir new --data small --workers 1 --checkpoint-every 50",
    );
    old.wait_for_line(Stream::Out, r#""state":"given up""#);
    old.signal("INT");
    old.check_end(69, &["incarnation 2 of this run mirrors to s3://bucket/run, and this is incarnation 1"]);
    // The old one has mirrored until the new one began, and the new one from there on.
    let step =
        |name: &String| name.strip_prefix("checkpoints/step-")?.strip_suffix(".safetensors")?.parse::<u64>().ok();
    let newest = bucket.objects("run").keys().filter_map(step).max().expect("a checkpoint");
    new.wait_for_mirrored(newest + 1);
    new.signal("INT");
    let end = new.end();
    assert_eq!(end["mirror"]["step"], end["step"]);
    assert_lines_reach_checkpoints(&bucket.objects("run"));
    wait_until("the objects are those of the new one", UPLOAD_WAIT_MAX, || {
        bucket.objects("run")["run.json"] == fs::read(dir.path("new/run.json")).expect("a file")
    });
}

/// Files at the mirror of a run without a checkpoint do not keep that run from being restarted.
#[test]
fn restarted_run_replaces_its_files_at_mirror() {
    let dir = TestDir::new();
    let mirror = format!("file://{}", dir.path("mirror").display());
    let flags = format!("--arch denoising {SHORT_RUN} --max-steps 3 --workers 1 --run-dir run --mirror {mirror}");
    let begun =
        dir.coordinator(&format!("{} --launch external --listen unix:socket", flags.replace("--workers 1", "")));
    begun.wait_for_mirrored(0);
    begun.kill();
    for folder in ["run", "mirror"] {
        fs::remove_dir_all(dir.path(folder).join("checkpoints")).expect("a folder");
    }
    assert_eq!(dir.coordinator(&flags).end()["step"], 3);
    let description = |folder: &str| fs::read_to_string(dir.path(folder).join("run.json")).expect("a file");
    assert_eq!(description("run"), description("mirror"));
    // Another folder's run is none of its business.
    dir.fail("coordinator", &flags.replace("--run-dir run", "--run-dir other"), 73, &["expected no run at"]);
}
