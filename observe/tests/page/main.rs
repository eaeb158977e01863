//! What every page and chart has to be, whatever the run: well-formed, escaped, and within a strict Content-Security-Policy.

mod samples;

use std::collections::BTreeSet;

use observe::chart::curves_svg;
use observe::page::{Fragment, asset, comparison, document, fragments};
use observe::summary::Summary;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use samples::NOW;

fn summaries() -> Vec<Summary> {
    vec![
        samples::empty(),
        samples::running(),
        samples::single_process(),
        samples::language(),
        samples::crowd(),
        samples::failed(),
    ]
}

/// An element's name and its attributes.
type Element = (String, Vec<(String, String)>);

/// All elements of what is rendered, which is written so that it is XML too.
fn elements(markup: &str) -> Vec<Element> {
    let element = |tag: &BytesStart<'_>| {
        let attributes = tag.attributes().map(|attribute| {
            let attribute = attribute.expect("an attribute, in quotes and once");
            let value = String::from_utf8(attribute.value.to_vec()).expect("UTF-8");
            assert!(!value.contains('<'), "{value}");
            (String::from_utf8_lossy(attribute.key.as_ref()).into_owned(), value)
        });
        (String::from_utf8_lossy(tag.name().as_ref()).into_owned(), attributes.collect())
    };
    let mut reader = Reader::from_str(markup);
    let (mut elements, mut depth) = (Vec::new(), 0);
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error} at {}", reader.error_position())) {
            Event::Start(tag) => {
                depth += 1;
                elements.push(element(&tag));
            }
            Event::Empty(tag) => elements.push(element(&tag)),
            Event::End(_) => depth -= 1,
            Event::Comment(comment) => panic!("a comment: {comment:?}"),
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0, "every element is closed");
    elements
}

/// What a Content-Security-Policy of `default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'` lets through.
fn check_policy(elements: &[Element]) {
    let mut ids = BTreeSet::new();
    for (name, attributes) in elements {
        assert_ne!(name, "style");
        for (key, value) in attributes {
            assert!(key != "style" && !key.starts_with("on"), "<{name} {key}={value}>");
            if matches!(key.as_str(), "src" | "href") {
                assert!(value.starts_with(['/', '#']) && !value.starts_with("//"), "<{name} {key}={value}>");
            }
            assert!(key != "id" || ids.insert(value), "the id {value} is there twice");
        }
        let is_loaded = attributes.iter().any(|(key, _)| key == "src");
        assert!(name != "script" || is_loaded, "a script within the page");
    }
    for (name, attributes) in elements {
        for (key, value) in attributes {
            // A part of the page that is empty is not shown, and has no heading to be named by.
            let is_reference = key == "clip-path" || key == "aria-labelledby" && name != "section";
            let id = value.trim_start_matches("url(#").trim_end_matches(')');
            assert!(!is_reference || ids.contains(&id.to_owned()), "<{name} {key}={value}> refers to nothing");
        }
    }
}

#[test]
fn pages_are_well_formed_and_within_the_policy() {
    for summary in summaries() {
        let others = ["a <b> & \"c\"/../d".to_owned()];
        check_policy(&elements(&document(&summary, NOW, &others)));
        check_policy(&elements(&document(&summary, NOW + 1e9, &[])));
        check_policy(&elements(&document(&summary, f64::NAN, &[])));
    }
    check_policy(&elements(&comparison(&summaries())));
    check_policy(&elements(&comparison(&[])));
}

#[test]
fn files_of_curves_are_well_formed() {
    for summary in summaries() {
        let svg = curves_svg(&summary);
        check_policy(&elements(&svg));
        assert!(!svg.contains("var("), "a file has colours of its own");
    }
}

#[test]
fn document_has_each_fragment_in_its_element() {
    for summary in summaries() {
        let document = document(&summary, NOW, &[]);
        for fragment in fragments(&summary, NOW) {
            let Fragment { id, html } = fragment;
            let section = match id {
                // It has cards of its own.
                "pictures" => format!(r#"<div id="{id}" class="cards">{html}</div>"#),
                _ => format!(r#"<section id="{id}" class="card" aria-labelledby="{id}-heading">{html}</section>"#),
            };
            assert!(document.contains(&section), "{id}");
        }
    }
}

#[test]
fn each_picture_has_a_card_and_the_code_space_is_last() {
    let html =
        &fragments(&samples::running(), NOW).into_iter().find(|part| part.id == "pictures").expect("a part").html;
    let headings: Vec<&str> = html.split("<h2 id=").skip(1).filter_map(|rest| rest.split(['>', '<']).nth(1)).collect();
    assert_eq!(headings, ["Attention maps", "Reconstructions", "Code space"]);
    assert_eq!(html.matches("<section class=\"card\"").count(), 3);
    // The newest is large, the others are in a strip below it, the newest of them first.
    assert!(
        html.contains(r#"<img src="/runs/denoising-007/pictures/codes/epoch-03.png" alt="Code space after epoch 3"/>"#)
    );
    let strip = &html[html.find(r#"id="strip.codes""#).expect("a strip")..];
    let [second, first] = ["epoch-02.png", "epoch-01.png"].map(|file| strip.find(file).expect("an earlier picture"));
    assert!(second < first && strip.contains(r#"loading="lazy"/><span>epoch 2</span>"#));
    assert!(!html.contains("strip.attention-maps"), "there is one, and no earlier one");
}

#[test]
fn text_of_peers_is_escaped() {
    let document = document(&samples::running(), NOW, &[samples::HOSTILE.to_owned()]);
    assert!(document.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!document.contains("<script>") && !document.contains("<img src=x"));
}

#[test]
fn any_task_has_a_chart_for_each_of_its_metrics() {
    let curves = fragments(&samples::language(), NOW).swap_remove(1).html;
    for title in ["loss", "perplexity", "next character accuracy", "bits per character"] {
        assert!(curves.contains(&format!("<h3>{title}</h3>")), "{title}");
    }
    assert_eq!(curves.matches("<figure>").count(), 4);
    assert!(curves.contains("validation <b>6.279</b>") && curves.contains("sequences per second"));
}

#[test]
fn run_without_events_says_what_will_come() {
    for fragment in fragments(&samples::empty(), NOW) {
        let says = fragment.html.contains("class=\"nothing\"") || fragment.html.is_empty() || fragment.id == "state";
        assert!(says, "{}: {}", fragment.id, fragment.html);
    }
}

#[test]
fn worker_that_was_killed_is_listed_with_its_reason() {
    let fragments = fragments(&samples::running(), NOW);
    let html = |id: &str| &fragments.iter().find(|fragment| fragment.id == id).expect("a fragment").html;
    assert!(html("workers").contains("the connection was lost: broken pipe"));
    assert!(html("presence").contains("left 14:12:39Z: the connection was lost: broken pipe"));
    assert!(html("faults").contains("<b>2</b> workers left"));
}

#[test]
fn page_needs_no_more_than_its_assets() {
    let style = asset("page.css").expect("the style sheet");
    let script = asset("page.js").expect("the script");
    for text in [style.bytes, script.bytes] {
        let text = std::str::from_utf8(text).expect("UTF-8");
        assert!(
            !text.contains("http:") && !text.contains("https:") && !text.contains("eval") && !text.contains("@import")
        );
    }
    assert!(asset("favicon.svg").is_some() && asset("../Cargo.toml").is_none());
}

#[test]
fn page_stays_small() {
    let document = document(&samples::crowd(), NOW, &[]);
    assert!(document.len() < 400_000, "{} bytes", document.len());
}
