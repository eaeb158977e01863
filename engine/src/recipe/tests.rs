//! Recipes from flags, from files, and resumed.

use std::sync::Arc;

use clap::Parser;
use proptest::prelude::*;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    recipe: RecipeArgs,
}

fn args(flags: &str) -> RecipeArgs {
    let line = Line::try_parse_from(std::iter::once("train").chain(flags.split_whitespace()));
    line.expect("flags that are known").recipe
}

/// A task that is trained by SGD at 1, for ten epochs.
fn spec() -> TaskSpec {
    TaskSpec {
        name: "words",
        settings: serde_json::json!({ "noise": "dropout:0.5" }),
        layout: Arc::new(ParamLayout::of_tensors([("w".to_owned(), vec![2])])),
        metrics: &[],
        samples: "texts",
        evaluation_batch: 500,
        defaults: Defaults { learning_rate: 1.0, ..Defaults::default() },
    }
}

fn recipe(flags: &str, shards: u32) -> Result<Recipe, RecipeError> {
    Recipe::new(args(flags), &spec(), shards)
}

#[test]
fn omitted_flags_use_task_defaults() {
    let found = recipe("", 1).expect("the task's recipe");
    assert_eq!((found.epochs.get(), found.batch_size.get(), found.shuffle), (10, 32, true));
    assert_eq!(found.optimizer, Optimizer::sgd(1.0, 0.0, false));
    let learning_rate = |flags| recipe(flags, 1).expect(flags).optimizer.learning_rate.to_string();
    assert_eq!(learning_rate("--optimizer adamw"), "0.001");
    assert_eq!(learning_rate("--optimizer adamw --learning-rate 0.5"), "0.5");
}

#[test]
fn weight_decay_with_frozen_parameters_is_refused() {
    let mut spec = spec();
    spec.layout = Arc::new(ParamLayout::with_frozen_for_tests());
    let new = |flags| Recipe::new(args(flags), &spec, 1).map(drop).map_err(|error| error.to_string());
    assert_eq!(new("--optimizer adam"), Ok(()));
    let error = new("--optimizer adamw").expect_err("weight decay");
    assert!(error.contains("such as frozen, found 0.01; write `--weight-decay 0`"), "{error}");
}

#[test]
fn older_recipe_format_is_read() {
    let text = r#"{"architecture":"denoising","epochs":3,"batch_size":32,"shards":4,"sgd":{"learning_rate":1.0,
        "momentum":0.0,"nesterov":false},"noise":"gaussian:0.2","shuffle":true,"seed":42,"max_steps":null,"init_from":null}"#;
    let found: Recipe = serde_json::from_str(text).expect("an older recipe");
    assert_eq!((found.task.as_str(), found.epochs.get()), ("denoising", 3));
    assert_eq!(found.settings, serde_json::json!({ "noise": "gaussian:0.2" }));
}

#[test]
fn cut_describes_shard_sizes() {
    let check = |shards, words: &str| assert_eq!(recipe("", shards).expect("a recipe").cut(), words);
    check(1, "1 shard x 32");
    check(4, "4 shards x 8");
    check(3, "3 shards of 10 or 11");
}

#[test]
fn invalid_recipe_is_refused_with_advice() {
    let check = |flags: &str, shards, part: &str| {
        let text = recipe(flags, shards).expect_err(flags).to_string();
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    };
    check("--batch-size 0", 1, "write for example `--batch-size 32`");
    check("--epochs 0", 1, "write for example `--epochs 10`");
    check("--max-steps 0", 1, "--max-steps 25");
    check("", 0, "--shards 4");
    check("--batch-size 4", 8, "found --shards 8 with --batch-size 4");
    check("--learning-rate 0", 1, "--learning-rate above 0 and finite, found 0");
    check("--learning-rate nan", 1, "found NaN");
    check("--momentum 1", 1, "from 0 to below 1, found 1");
    check("--nesterov", 1, "--momentum 0.9 --nesterov");
    check("--weight-decay -1", 1, "--weight-decay from 0, found -1");
    check("--optimizer adam --epsilon 1e-46", 1, "--epsilon from 1.2e-38 to 1, found 0.000000");
    check("--clip-norm 0", 1, "--clip-norm above 0 and finite, found 0; write for example `--clip-norm 1`");
    check("--beta1 0.5", 1, "expected --beta1 with --optimizer adam or adamw only, found it with sgd");
    check("--optimizer adam --momentum 0.5", 1, "--momentum with --optimizer sgd only, found it with adam");
    check("--optimizer adamw --beta2 1", 1, "--beta2 from 0 to below 1, found 1");
    check("--optimizer adamw --learning-rate 0", 1, "write for example `--learning-rate 0.001`");
}

/// A run with all flags, and what it says of the flags it is resumed with: its limits then, or the error.
fn check_resumed(flags: &str, shards: Option<u32>, expected: Result<(u32, Option<u64>), &str>) {
    let before = "--epochs 3 --batch-size 16 --learning-rate 0.3 --momentum 0.9 --seed 7 --max-steps 90 \
                  --init-from w.safetensors";
    let before = recipe(before, 4).expect("a recipe");
    let resumed = before.clone().resumed(&args(flags), shards);
    match (resumed, expected) {
        (Ok(resumed), Ok((epochs, max_steps))) => {
            assert_eq!((resumed.epochs.get(), resumed.max_steps), (epochs, max_steps), "`{flags}`");
            assert_eq!(Recipe { epochs: before.epochs, max_steps: before.max_steps, ..resumed }, before, "`{flags}`");
        }
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "`{error}` does not say `{part}`"),
        (resumed, expected) => panic!("`{flags}`: {expected:?} expected, found {resumed:?}"),
    }
}

#[test]
fn resume_may_change_only_run_length() {
    check_resumed("", None, Ok((3, Some(90))));
    check_resumed("--batch-size 16 --learning-rate 0.3 --momentum 0.9", Some(4), Ok((3, Some(90))));
    check_resumed("--seed 7 --epochs 3", None, Ok((3, None)));
    check_resumed("--epochs 5", None, Ok((5, None)));
    check_resumed("--max-steps 120", None, Ok((3, Some(120))));
    check_resumed("--epochs 5 --max-steps 120", None, Ok((5, Some(120))));
}

#[test]
fn patience_may_change_when_run_is_resumed() {
    let before = recipe("--patience 3", 4).expect("a recipe");
    let patience = |flags| before.clone().resumed(&args(flags), None).expect(flags).patience.map(NonZeroU32::get);
    assert_eq!(patience(""), Some(3));
    assert_eq!(patience("--patience 7"), Some(7));
    assert_eq!(patience("--patience 0"), None);
    assert_eq!(recipe("--patience 0", 4).expect("a recipe").patience, None);
    assert_eq!(before.check_validation(1), Ok(()));
    let error = before.check_validation(0).expect_err("nothing to validate").to_string();
    assert!(error.contains("expected no --patience with a data set without validation samples, found 3"), "{error}");
}

#[test]
fn resume_with_length_dependent_schedule_keeps_run_length() {
    let before = |schedule| recipe(&format!("--lr-schedule {schedule} --epochs 3"), 4).expect("a recipe");
    let text = |schedule, flags| before(schedule).resumed(&args(flags), None).map_err(|error| error.to_string());
    assert!(text("step:0.1:2", "--epochs 5").is_ok() && text("cosine", "--epochs 3").is_ok());
    for flags in ["--epochs 5", "--max-steps 7"] {
        let error = text("cosine", flags).expect_err(flags);
        assert!(error.contains("--lr-schedule cosine follow from it"), "{error}");
    }
    let error = text("cosine", "--lr-schedule linear").expect_err("another schedule");
    assert!(error.contains("expected --lr-schedule cosine as in the run"), "{error}");
}

#[test]
fn received_recipe_is_validated_like_flags() {
    let sent = recipe("--optimizer adamw --lr-schedule cosine --warmup-steps 5 --clip-norm 0.7", 4);
    let sent = sent.expect("a recipe");
    assert_eq!(Recipe::from_json(&sent.to_json()), Ok(sent.clone()));
    let check = |change: fn(&mut Value), part: &str| {
        let mut value: Value = serde_json::from_slice(&sent.to_json()).expect("JSON");
        change(&mut value);
        let error = Recipe::from_json(value.to_string().as_bytes()).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    check(|value| value["batch_size"] = 0.into(), "expected a recipe as JSON, found invalid value: integer `0`");
    check(|value| value["shards"] = 99.into(), "found --shards 99 with --batch-size 32");
    check(|value| value["optimizer"]["learning_rate"] = 0.into(), "--learning-rate above 0 and finite");
    check(|value| value["optimizer"]["name"] = "lion".into(), "unknown variant `lion`");
    check(|value| value["lr_schedule"]["decay"] = "square".into(), "found `square`");
}

#[test]
fn resume_with_other_flags_is_refused() {
    let whole = "expected --batch-size 16 as in the run that is resumed, found --batch-size 64; leave it out, or start a \
                 new run";
    check_resumed("--batch-size 64", None, Err(whole));
    check_resumed("", Some(2), Err("--shards 4 as in the run that is resumed, found --shards 2"));
    check_resumed("--learning-rate 0.30000004", None, Err("--learning-rate 0.3 as"));
    check_resumed("--momentum 0", None, Err("found --momentum 0;"));
    check_resumed("--nesterov", None, Err("expected no --nesterov as in the run that is resumed, found --nesterov"));
    check_resumed("--no-shuffle", None, Err("expected no --no-shuffle"));
    check_resumed("--seed 42", None, Err("--seed 7 as"));
    check_resumed("--init-from w.safetensors", None, Err("expected no --init-from"));
    check_resumed("--epochs 0", None, Err("write for example `--epochs 10`"));
    check_resumed("--max-steps 0", None, Err("--max-steps 25"));
}

/// Through text, and through a tree of values and text.
fn check_stored(recipe: &Recipe) {
    let text = serde_json::to_string(recipe).expect("a recipe is JSON");
    assert_eq!(&serde_json::from_str::<Recipe>(&text).expect("a recipe"), recipe, "{text}");
    let text = serde_json::to_value(recipe).expect("a recipe is JSON").to_string();
    assert_eq!(&serde_json::from_str::<Recipe>(&text).expect("a recipe"), recipe, "{text}");
    let tree: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(&serde_json::from_value::<Recipe>(tree).expect("a recipe"), recipe, "{text}");
}

#[test]
fn extreme_f32_values_are_stored_exactly() {
    // The first lies so near the middle of two f32 that its shortest decimal, read as f64, gives the other one.
    let odd = [7.038_531e-26, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, 0.1, 1.0 / 3.0, 8.5e7, 1e-45];
    for learning_rate in odd {
        let mut recipe = recipe("--seed 18446744073709551615 --max-steps 18446744073709551615", 1).expect("a recipe");
        recipe.optimizer = Optimizer::sgd(learning_rate, learning_rate, true);
        check_stored(&recipe);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn sgd_values_are_stored_exactly(bits in any::<[u32; 2]>(), seed in any::<u64>(), max_steps in any::<Option<u64>>()) {
        let [learning_rate, momentum] = bits.map(|bits| f32::from_bits(bits >> 1)); // at least 0
        let are_finite = [learning_rate, momentum].iter().all(|value| value.is_finite());
        prop_assume!(are_finite);
        let mut recipe = recipe("", 4).expect("a recipe");
        recipe.optimizer = Optimizer::sgd(learning_rate, momentum, false);
        (recipe.seed, recipe.max_steps) = (seed, max_steps);
        check_stored(&recipe);
    }

    #[test]
    fn adamw_values_are_stored_exactly(bits in any::<[u64; 5]>()) {
        let [weight_decay, beta1, beta2, epsilon, norm] = bits.map(|bits| f64::from_bits(bits >> 1)); // at least 0
        prop_assume!([weight_decay, beta1, beta2, epsilon, norm].iter().all(|value| value.is_finite()));
        let mut recipe = recipe("--optimizer adamw", 4).expect("a recipe");
        let rule = Rule::AdamW(Adam { beta1, beta2, epsilon });
        recipe.optimizer = Optimizer { learning_rate: 0.1, weight_decay, rule };
        recipe.clip_norm = Some(norm);
        check_stored(&recipe);
    }
}
