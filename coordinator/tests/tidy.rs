//! What each crate must not contain or depend on: rules that the compiler does not check.

use std::collections::{BTreeMap, BTreeSet};
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
    check("proto", &["engine", "model", "coordinator", "worker", "burn"]);
    check("engine", &["proto", "model", "coordinator", "worker", "telar", "tokio", "tonic"]);
    check("model", &["proto", "coordinator", "worker", "telar", "tokio", "tonic"]);
    check("coordinator", &["worker", "telar"]);
    check("worker", &["coordinator", "telar"]);
    check("telar", &["model"]);
}

/// The goal: what both programs agree on needs no runtime, but where either makes a connection with TLS.
#[test]
fn protocol_has_no_io_but_connector() {
    let source = project().join("proto/src");
    let connector = source.join("tls/client.rs");
    let words = ["tokio", "tokio_rustls", "hyper_util"];
    assert!(!lines_with(&connector, &words).is_empty(), "the connector has moved");
    let files = sources(&source).into_iter().filter(|path| *path != connector);
    let found: Vec<String> = files.flat_map(|path| lines_before_tests_with(&path, &words)).collect();
    assert!(found.is_empty(), "the protocol knows of a runtime:\n{}", found.join("\n"));
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

/// The path of a module in its crate; none for the crate itself.
type Module = Vec<String>;

/// Which module refers to which of its siblings, and the first reference that does.
type References = BTreeMap<Module, BTreeMap<Module, String>>;

/// The modules of the crate whose sources are in a folder, and their files. Programs below `bin` are crates of their own.
fn modules(folder: &Path) -> BTreeMap<Module, PathBuf> {
    let module_of = |path: &Path| {
        let path = path.strip_prefix(folder).expect("a file of the folder").with_extension("");
        let mut module: Module = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        module.pop_if(|last| ["lib", "main", "mod"].contains(&last.as_str()));
        module
    };
    let files = sources(folder).into_iter().filter(|path| !path.starts_with(folder.join("bin")));
    files.map(|path| (module_of(&path), path)).collect()
}

/// The paths of some code that lead out of its module, with `use` trees taken apart.
fn outward_paths(code: &str) -> Vec<String> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(start) = ["crate::", "super::"].iter().filter_map(|word| rest.find(word)).min() {
        let is_whole_word = !rest[..start].ends_with(is_part);
        rest = &rest[start..];
        let mut end = rest.find(|character| !is_part(character) && character != ':').unwrap_or(rest.len());
        if rest[..end].ends_with("::") && rest[end..].starts_with('{') {
            let mut depth = 0;
            end += rest[end..].find(|character| is_outside(character, &mut depth)).expect("a group ends") + 1;
        }
        if is_whole_word {
            paths.extend(expanded(&rest[..end]));
        }
        rest = &rest[end..];
    }
    paths
}

/// The paths of a `use` tree.
fn expanded(tree: &str) -> Vec<String> {
    let Some((prefix, group)) = tree.trim().split_once('{') else {
        let name = tree.split_whitespace().next(); // without `as`
        return name.map(str::to_owned).into_iter().collect();
    };
    let group = group.strip_suffix('}').expect("a group ends");
    let mut depth = 0;
    let branches = group.split(|character| is_outside(character, &mut depth) && character == ',');
    branches.flat_map(expanded).map(|path| format!("{prefix}{path}")).collect()
}

/// Whether the text is outside of all groups after this character.
fn is_outside(character: char, depth: &mut usize) -> bool {
    match character {
        '{' => *depth += 1,
        '}' => *depth -= 1,
        _ => {}
    }
    *depth == 0
}

/// The module that a path in another module leads to.
fn target(path: &str, from: &Module, modules: &BTreeMap<Module, PathBuf>) -> Module {
    let mut target = from.clone();
    for part in path.split("::") {
        match part {
            "crate" => target.clear(),
            "super" => drop(target.pop()),
            name => target.push(name.to_owned()),
        }
    }
    // The path's end names something in the module.
    while !modules.contains_key(&target) && !target.is_empty() {
        target.pop();
    }
    target
}

/// What the files of a crate refer to, tests apart. A reference counts for the two modules below the common parent of both
/// ends, since a module stands for all that is below it; between a module and its parent it does not count.
fn references(folder: &Path) -> References {
    let modules = modules(folder);
    let mut references = References::new();
    for (module, file) in modules.iter().filter(|(module, _)| !module.iter().any(|part| part == "tests")) {
        let text = fs::read_to_string(file).expect("a file of the project");
        let before_tests = text.split("mod tests {").next().unwrap_or_default();
        let code: String =
            before_tests.lines().flat_map(|line| line.split("//").next().into_iter().chain(["\n"])).collect();
        for path in outward_paths(&code) {
            let target = target(&path, module, &modules);
            let n_common = module.iter().zip(&target).take_while(|(one, other)| one == other).count();
            if n_common < module.len().min(target.len()) {
                let [from, to] = [module, &target].map(|module| module[..=n_common].to_vec());
                let reference = || format!("{} has {path}", file.strip_prefix(project()).unwrap_or(file).display());
                references.entry(from).or_default().entry(to).or_insert_with(reference);
            }
        }
    }
    references
}

/// Whether a cycle can be reached from a module; `path` leads to the module, and is the cycle then.
fn leads_to_cycle<'a>(
    module: &'a Module,
    references: &'a References,
    path: &mut Vec<&'a Module>,
    visited: &mut BTreeSet<&'a Module>,
) -> bool {
    if let Some(start) = path.iter().position(|earlier| *earlier == module) {
        path.drain(..start);
        return true;
    }
    if !visited.insert(module) {
        return false;
    }
    path.push(module);
    let mut targets = references.get(module).into_iter().flat_map(BTreeMap::keys);
    let is_found = targets.any(|target| leads_to_cycle(target, references, path, visited));
    if !is_found {
        path.pop();
    }
    is_found
}

/// A line for each reference of a cycle, if there is one.
fn cycle(references: &References) -> Option<String> {
    let (mut path, mut visited) = (Vec::new(), BTreeSet::new());
    let is_found = references.keys().any(|module| leads_to_cycle(module, references, &mut path, &mut visited));
    let line = |(from, to): (&&Module, &&Module)| {
        format!("{} -> {}: {}\n", from.join("::"), to.join("::"), references[*from][*to])
    };
    is_found.then(|| path.iter().zip(path.iter().cycle().skip(1)).map(line).collect())
}

/// The goal: a file can be read with those below it alone, and moved to another crate with them.
#[test]
fn files_of_a_crate_have_no_cycle() {
    let crates = [
        "proto/src",
        "engine/src",
        "model/src",
        "model/src/bin/autoencoder",
        "coordinator/src",
        "worker/src",
        "telar/src",
        "tests/peers/src",
    ];
    let found = crates.iter().filter_map(|folder| cycle(&references(&project().join(folder))));
    let found: Vec<String> = found.collect();
    assert!(
        found.is_empty(),
        "files refer to each other in a circle; move what they share below them:\n{}",
        found.join("\n")
    );
}

#[test]
fn use_trees_are_taken_apart() {
    let code =
        "use crate::{a::B, c::{self, D as E}};\nuse super::super::f;\nlet g = crate::h::<I>(mycrate::j, burn::k);";
    let expected = ["crate::a::B", "crate::c::self", "crate::c::D", "super::super::f", "crate::h::"];
    assert_eq!(outward_paths(code), expected);
}

#[test]
fn cycle_is_found_and_told() {
    let module = |name: &str| vec![name.to_owned()];
    let reference = |from, to| (module(from), BTreeMap::from([(module(to), format!("{from}.rs has crate::{to}"))]));
    let chain = [reference("a", "b"), reference("b", "c"), reference("c", "d")];
    assert_eq!(cycle(&References::from(chain.clone())), None);
    let circle: References = chain.into_iter().chain([reference("d", "b")]).collect();
    let expected = "b -> c: b.rs has crate::c\nc -> d: c.rs has crate::d\nd -> b: d.rs has crate::b\n";
    assert_eq!(cycle(&circle).as_deref(), Some(expected));
}
