//! Where the tensors of a file go in a network that has other names for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A prefix of names in a file, and what stands for it in the network: `encoder=net.encoder`. A prefix ends where a part of a name
/// does, before a dot or at the end. An empty one is of all names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PrefixMapping {
    from: String,
    to: String,
}

/// A text that is no mapping of prefixes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected FROM=TO, the prefix of names in the file and the one in the network, found `{found}`; write for example \
     `--init-map encoder=net.encoder`, or `--init-map module=` to leave a prefix out"
)]
pub struct PrefixMappingError {
    found: String,
}

impl FromStr for PrefixMapping {
    type Err = PrefixMappingError;

    fn from_str(text: &str) -> Result<Self, PrefixMappingError> {
        let is_prefix = |part: &str| part.is_empty() || part.split('.').all(|name| !name.is_empty());
        match text.split_once('=') {
            Some((from, to)) if from != to && is_prefix(from) && is_prefix(to) && !to.contains('=') => {
                Ok(Self { from: from.to_owned(), to: to.to_owned() })
            }
            Some(_) | None => Err(PrefixMappingError { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for PrefixMapping {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={}", self.from, self.to)
    }
}

impl From<PrefixMapping> for String {
    fn from(mapping: PrefixMapping) -> Self {
        mapping.to_string()
    }
}

impl TryFrom<String> for PrefixMapping {
    type Error = PrefixMappingError;

    fn try_from(text: String) -> Result<Self, PrefixMappingError> {
        text.parse()
    }
}

impl PrefixMapping {
    /// What of a name follows the prefix, from the dot on.
    fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        match name.strip_prefix(&self.from)? {
            rest if self.from.is_empty() || rest.is_empty() || rest.starts_with('.') => Some(rest),
            _ => None,
        }
    }

    /// The network's name of a tensor whose name in the file begins with the prefix.
    fn apply(&self, name: &str) -> Option<String> {
        let rest = self.rest(name)?;
        let rest = if self.to.is_empty() || self.from.is_empty() { rest.trim_start_matches('.') } else { rest };
        let dot = if self.from.is_empty() && !self.to.is_empty() { "." } else { "" };
        Some(format!("{}{dot}{rest}", self.to))
    }
}

/// Mappings that cannot be followed for a file and a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unmapped {
    /// No name in the file begins with its prefix, or none of these names is the network's.
    Unused {
        /// The mapping.
        mapping: PrefixMapping,
        /// What was looked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Two tensors of the file go to one of the network.
    Twice {
        /// The network's.
        name: String,
        /// The file's.
        sources: [String; 2],
    },
}

/// For names of the network, those of the file whose tensors they get. Of several mappings that a name begins with, those with the
/// longest prefix hold; a name that begins with none stays as it is.
pub(super) fn sources(
    found: &[String],
    known: &[&str],
    mappings: &[PrefixMapping],
) -> Result<BTreeMap<String, String>, Unmapped> {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut used = vec![false; mappings.len()];
    for name in found {
        let matching = mappings.iter().filter(|mapping| mapping.rest(name).is_some());
        let longest = matching.map(|mapping| mapping.from.len()).max();
        let mut targets = Vec::new();
        for (mapping, is_used) in
            mappings.iter().zip(&mut used).filter(|(mapping, _)| Some(mapping.from.len()) == longest)
        {
            if let Some(target) = mapping.apply(name) {
                *is_used |= known.contains(&target.as_str());
                targets.push(target);
            }
        }
        if targets.is_empty() {
            targets.push(name.clone());
        }
        for target in targets.into_iter().filter(|target| known.contains(&target.as_str())) {
            if let Some(other) = sources.insert(target.clone(), name.clone()) {
                return Err(Unmapped::Twice { name: target, sources: [other, name.clone()] });
            }
        }
    }
    let Some((mapping, _)) = mappings.iter().zip(used).find(|(_, is_used)| !is_used) else { return Ok(sources) };
    let below = || found.iter().filter(|name| mapping.rest(name).is_some());
    let longer = |name: &String| {
        mappings.iter().find(|other| other.from.len() > mapping.from.len() && other.rest(name).is_some())
    };
    let (expected, found) = match (below().find(|name| longer(name).is_none()), below().find_map(longer)) {
        (Some(name), _) => {
            let target = mapping.apply(name).unwrap_or_default();
            (format!("the network's tensors to include {target}"), prefixes(known.iter().copied()))
        }
        (None, Some(longer)) => (
            format!("tensors below {} that no longer prefix is for", mapping.from),
            format!("only those that {longer} is for"),
        ),
        (None, None) => (format!("tensors below {}", mapping.from), prefixes(found.iter().map(String::as_str))),
    };
    Err(Unmapped::Unused { mapping: mapping.clone(), expected, found })
}

/// The names up to their last dots, each once: `encoder.conv1, encoder.conv2, head`.
fn prefixes<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let prefixes: BTreeSet<&str> = names.map(|name| name.rsplit_once('.').map_or(name, |(prefix, _)| prefix)).collect();
    let shown: Vec<&str> = prefixes.iter().copied().take(8).collect();
    format!("{}{}", shown.join(", "), if prefixes.len() > shown.len() { ", …" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(found: &[&str], known: &[&str], mappings: &[&str]) -> Result<Vec<(String, String)>, Unmapped> {
        let found: Vec<String> = found.iter().map(|&name| name.to_owned()).collect();
        let mappings: Vec<PrefixMapping> = mappings.iter().map(|text| text.parse().expect("a mapping")).collect();
        sources(&found, known, &mappings).map(|sources| sources.into_iter().collect())
    }

    #[test]
    fn names_are_mapped_by_their_longest_prefix() {
        let check = |found: &[&str], known: &[&str], mappings: &[&str], expected: &[(&str, &str)]| {
            let expected: Vec<(String, String)> =
                expected.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
            assert_eq!(mapped(found, known, mappings), Ok(expected), "{mappings:?}");
        };
        check(&["a.w", "b.w"], &["a.w"], &[], &[("a.w", "a.w")]);
        let known = ["net.encoder.w", "encoder.w", "head.w"];
        check(
            &["encoder.w", "head.w"],
            &known,
            &["encoder=net.encoder"],
            &[("head.w", "head.w"), ("net.encoder.w", "encoder.w")],
        );
        // A part of a name is no prefix.
        check(
            &["enc.w", "encoder.w"],
            &["e.w", "encoder.w"],
            &["enc=e"],
            &[("e.w", "enc.w"), ("encoder.w", "encoder.w")],
        );
        // A whole name, all names, and none.
        check(&["scale"], &["norm.scale"], &["scale=norm.scale"], &[("norm.scale", "scale")]);
        check(&["w", "b"], &["net.w"], &["=net"], &[("net.w", "w")]);
        check(&["module.net.w"], &["net.w"], &["module="], &[("net.w", "module.net.w")]);
        // The longer prefix holds, in whichever order they are given.
        for mappings in [["a=x", "a.b=y"], ["a.b=y", "a=x"]] {
            check(&["a.b.w", "a.c.w"], &["x.b.w", "x.c.w", "y.w"], &mappings, &[("x.c.w", "a.c.w"), ("y.w", "a.b.w")]);
        }
        // One source for two places, and two that change places.
        check(
            &["e.w"],
            &["student.w", "teacher.w"],
            &["e=student", "e=teacher"],
            &[("student.w", "e.w"), ("teacher.w", "e.w")],
        );
        check(&["a.w", "b.w"], &["a.w", "b.w"], &["a=b", "b=a"], &[("a.w", "b.w"), ("b.w", "a.w")]);
    }

    #[test]
    fn mapping_without_effect_names_what_is_there() {
        let check = |mappings: &[&str], expected: &str, found: &str| {
            let error = mapped(&["encoder.conv1.w", "decoder.w"], &["net.encoder.conv1.w", "head.w"], mappings);
            match error.expect_err("no effect") {
                Unmapped::Unused { expected: first, found: second, .. } => {
                    assert_eq!((first.as_str(), second.as_str()), (expected, found));
                }
                other @ Unmapped::Twice { .. } => panic!("{other:?}"),
            }
        };
        check(&["enc=net.encoder"], "tensors below enc", "decoder, encoder.conv1");
        check(&["encoder=net"], "the network's tensors to include net.conv1.w", "head, net.encoder.conv1");
        check(
            &["encoder=net.encoder", "encoder.conv1=net.encoder.conv1"],
            "tensors below encoder that no longer prefix is for",
            "only those that encoder.conv1=net.encoder.conv1 is for",
        );
        let error = mapped(&["a.w", "b.w"], &["b.w"], &["a=b"]).expect_err("two sources");
        let sources = ["a.w", "b.w"].map(str::to_owned);
        assert_eq!(error, Unmapped::Twice { name: "b.w".to_owned(), sources });
    }

    #[test]
    fn text_that_is_no_mapping_is_refused() {
        for text in ["", "encoder", "=", "a=a", "a.=b", ".a=b", "a=b=c", "a..b=c"] {
            let error = text.parse::<PrefixMapping>().expect_err(text).to_string();
            assert!(error.contains(&format!("found `{text}`; write for example `--init-map")), "{error}");
        }
    }
}
