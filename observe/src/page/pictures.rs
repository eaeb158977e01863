//! Pictures of what the network makes, by epoch.

use super::heading;
use crate::summary::Summary;
use crate::text::url_segment;

/// Earlier pictures that are shown: the newest.
const STRIP_MAX: usize = 24;

pub(super) fn html(summary: &Summary) -> String {
    let Some((epoch, file)) = summary.pictures.last() else { return String::new() };
    let link = |file: &str| format!("/runs/{}/pictures/{}", url_segment(&summary.name), url_segment(file));
    let earlier: String = summary
        .pictures
        .iter()
        .rev()
        .skip(1)
        .take(STRIP_MAX)
        .map(|(epoch, file)| {
            let address = link(file);
            format!(
                r#"<li><a id="picture-{epoch}" href="{address}"><img src="{address}" alt="reconstructions after epoch {epoch}" loading="lazy"/><span>epoch {epoch}</span></a></li>"#
            )
        })
        .collect();
    let strip = if earlier.is_empty() {
        String::new()
    } else {
        format!(
            r#"<ul class="strip scroll" id="pictures-scroll" tabindex="0" aria-label="earlier epochs">{earlier}</ul>"#
        )
    };
    let address = link(file);
    format!(
        r#"{}<p class="picture"><a id="picture-{epoch}" href="{address}"><img src="{address}" alt="reconstructions after epoch {epoch}"/></a></p>{strip}"#,
        heading("pictures", "Reconstructions", &format!("{} after epoch {epoch}", super::state::samples(summary)))
    )
}
