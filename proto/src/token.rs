//! The secret that a worker sends with each call, and that the coordinator compares. It is read from a file, so that it
//! stands in no process list and no environment, and it can be printed by no means.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use tonic::codegen::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use tracing::warn;

/// Bytes of the shortest token: 128 bits even if they are written as hexadecimal digits.
pub const TOKEN_BYTES_MIN: usize = 32;
/// Bytes of the longest token, which has to fit into a header.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// How a header with a token begins (RFC 6750, section 2.1).
const SCHEME: &str = "Bearer ";

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The header that carries it. It is marked as sensitive, which keeps it out of logs and of HTTP/2's tables.
    header: HeaderValue,
}

/// A file that holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token in {}: {source}; name another file with --token-file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is too short or too long.
    #[error(
        "expected a token of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} bytes in {}, found {found}; make one with `openssl rand \
         -hex 32`", path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes found, without space around them.
        found: usize,
    },
    /// It holds what a header cannot.
    #[error(
        "expected a token of printable ASCII characters without space between them in {}, found others; make one with \
         `openssl rand -hex 32`", path.display()
    )]
    Characters {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads a file. Space around the token, such as a line's end, does not belong to it.
    ///
    /// # Errors
    /// If it cannot be read, or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let mut bytes = Vec::new();
        let file = File::open(path).and_then(|file| {
            warn_if_readable_by_others(path, &file)?;
            file.take(2 * TOKEN_BYTES_MAX as u64).read_to_end(&mut bytes)
        });
        file.map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        let token = bytes.trim_ascii();
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(TokenError::Length { path: path.to_owned(), found: token.len() });
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Characters { path: path.to_owned() });
        }
        let mut header = HeaderValue::from_bytes(&[SCHEME.as_bytes(), token].concat())
            .expect("printable ASCII can stand in a header");
        header.set_sensitive(true);
        Ok(Self { header })
    }

    /// The secret itself, for what compares it by other means.
    pub fn expose(&self) -> &str {
        let header = self.header.to_str().expect("printable ASCII");
        header.strip_prefix(SCHEME).expect("it begins with the scheme")
    }

    /// Adds it to the headers of a call.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        headers.insert(AUTHORIZATION, self.header.clone());
    }

    /// Whether the headers of a call carry it. How long this takes tells nothing but whether the lengths are equal.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let found = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
        found.ct_eq(self.header.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token")
    }
}

/// Warns about a secret that every user of this machine can read.
pub(crate) fn warn_if_readable_by_others(path: &Path, file: &File) -> std::io::Result<()> {
    const READABLE_BY_OTHERS: u32 = 0o004;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & READABLE_BY_OTHERS != 0 {
        let (path, mode) = (path.display(), format!("{mode:04o}"));
        warn!(%path, mode, "every user of this machine can read this secret; write `chmod 600 {path}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn read(content: &str) -> Result<Token, TokenError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("token");
        std::fs::write(&path, content).expect("a file");
        Token::read(&path)
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).expect("a header"))])
    }

    #[test]
    fn only_matching_bearer_token_is_accepted() {
        let token = read(&format!("  {SECRET}\n")).expect("a token");
        let mut sent = HeaderMap::new();
        assert!(!token.is_in(&sent), "none was sent");
        token.add_to(&mut sent);
        assert!(token.is_in(&sent) && sent[AUTHORIZATION].is_sensitive());
        assert!(token.is_in(&headers(&format!("Bearer {SECRET}"))));
        let longer = format!("{SECRET}0");
        for other in [SECRET, "Bearer ", &format!("bearer {SECRET}"), &format!("Bearer {longer}"), "Bearer 0123"] {
            assert!(!token.is_in(&headers(other)), "{other}");
        }
    }

    #[test]
    fn token_is_not_printed() {
        let token = read(SECRET).expect("a token");
        let mut sent = HeaderMap::new();
        token.add_to(&mut sent);
        assert!(![format!("{token:?}"), format!("{sent:?}")].iter().any(|text| text.contains(SECRET)));
    }

    #[test]
    fn invalid_token_file_error_hides_content() {
        let check = |content: &str, part: &str| {
            let text = read(content).expect_err("no token").to_string();
            assert!(text.contains(part) && text.contains("/token"), "{text}");
            assert!(content.len() < 8 || !text.contains(&content[..8]), "{text}");
        };
        check("", "found 0");
        check(&SECRET[1..], "found 31");
        check(&format!("{}\n\n", &SECRET[1..]), "found 31");
        check(&SECRET.repeat(200), "expected a token of 32 to 4096 bytes");
        check(&format!("{SECRET} {SECRET}"), "printable ASCII");
        check(&format!("{SECRET}ü"), "printable ASCII");
        let missing = Token::read(Path::new("/nowhere/token")).expect_err("no file").to_string();
        assert!(missing.starts_with("cannot read the token in /nowhere/token"), "{missing}");
    }
}
