//! Pictures of what the network makes, by epoch: a card for each of a task's pictures, and the code space after them.

use events::{PictureFile, PictureName};

use super::heading;
use crate::summary::Summary;
use crate::text::{escape, url_segment};

/// Earlier pictures that are shown: the newest.
const STRIP_MAX: usize = 24;

pub(super) fn html(summary: &Summary) -> String {
    let is_codes = |(name, _): &(&PictureName, &Vec<u32>)| **name == PictureName::CODES;
    let tasks = summary.pictures.iter().filter(|entry| !is_codes(entry));
    let cards = tasks.chain(summary.pictures.iter().filter(is_codes));
    cards.map(|(name, epochs)| card(summary, *name, epochs)).collect()
}

/// The newest picture of a name, and earlier ones below. A name has no dots in it, so that no two elements have one id.
fn card(summary: &Summary, name: PictureName, epochs: &[u32]) -> String {
    let Some((&newest, earlier)) = epochs.split_last() else { return String::new() };
    let title = name.title();
    let shown = |epoch: u32, attributes: &str, caption: &str| {
        let file = PictureFile { name, epoch };
        let address = format!("/runs/{}/pictures/{}", url_segment(&summary.name), file.path());
        format!(
            r#"<a id="picture.{name}.{epoch}" href="{address}"><img src="{address}" alt="{} after epoch {epoch}"{attributes}/>{caption}</a>"#,
            escape(&title)
        )
    };
    let strip: String = earlier
        .iter()
        .rev()
        .take(STRIP_MAX)
        .map(|&epoch| {
            let caption = format!("<span>epoch {epoch}</span>");
            format!("<li>{}</li>", shown(epoch, r#" loading="lazy""#, &caption))
        })
        .collect();
    let strip = if strip.is_empty() {
        strip
    } else {
        format!(
            r#"<ul class="strip scroll" id="strip.{name}" tabindex="0" aria-label="{}, earlier epochs">{strip}</ul>"#,
            escape(&title)
        )
    };
    format!(
        r#"<section class="card" aria-labelledby="pictures.{name}-heading">{}<p class="picture">{}</p>{strip}</section>"#,
        heading(&format!("pictures.{name}"), &title, &format!("after epoch {newest}")),
        shown(newest, "", "")
    )
}
