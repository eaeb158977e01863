//! Files that the page needs, within the program.

/// A file at `/assets/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Its media type.
    pub content_type: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
}

/// The file of that name, if the page has it: `page.css`, `page.js` or `favicon.svg`.
pub fn asset(name: &str) -> Option<Asset> {
    let (content_type, bytes): (_, &[u8]) = match name {
        "page.css" => ("text/css; charset=utf-8", include_bytes!("../../assets/page.css")),
        "page.js" => ("text/javascript; charset=utf-8", include_bytes!("../../assets/page.js")),
        "favicon.svg" => ("image/svg+xml", include_bytes!("../../assets/favicon.svg")),
        _ => return None,
    };
    Some(Asset { content_type, bytes })
}
