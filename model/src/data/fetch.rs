//! Downloads of the Fashion-MNIST files: with progress, with resumption of what an earlier run
//! left half done, and with the SHA-256 check that alone decides whether what arrived is used.
//!
//! Not here: reading the files, choosing the folder, and drawing the progress.

mod error;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

pub use error::FetchError;

use engine::files::create_folder;

/// How long the name look-up may take, and then again how long the connection may.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may stay silent. The whole download has no limit, for slow lines.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// How much is read at once: enough to make the calls few, little enough for smooth progress.
const CHUNK_BYTES: usize = 64 * 1024;

/// A file as it is known before it is downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// The name of the file, both below the mirror and in the folder.
    pub name: &'static str,
    /// The length in bytes.
    pub n_bytes: u64,
    /// The SHA-256 of the whole file, as 64 lower-case hexadecimal digits.
    pub sha256: &'static str,
}

/// The four official files.
pub const FILES: [RemoteFile; 4] = [
    RemoteFile {
        name: "train-images-idx3-ubyte.gz",
        n_bytes: 26_421_880,
        sha256: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    },
    RemoteFile {
        name: "train-labels-idx1-ubyte.gz",
        n_bytes: 29_515,
        sha256: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    },
    RemoteFile {
        name: "t10k-images-idx3-ubyte.gz",
        n_bytes: 4_422_102,
        sha256: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    },
    RemoteFile {
        name: "t10k-labels-idx1-ubyte.gz",
        n_bytes: 5_148,
        sha256: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
];

/// Where the files are looked for, in order. Both are untrusted: the SHA-256 decides.
pub const MIRRORS: [&str; 2] = [
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
];

/// What a download tells while it goes on.
pub trait FetchProgress {
    /// A body of `name` begins to arrive: `already` of its `n_bytes` bytes were there before.
    /// One file may begin several times, once for each try.
    fn begin(&mut self, name: &str, n_bytes: u64, already: u64);
    /// Another `n_bytes` bytes arrived.
    fn advance(&mut self, n_bytes: u64);
    /// The body ended, whole or not.
    fn end(&mut self);
}

/// What [`fetch`] did, as file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchReport {
    /// The files that were downloaded.
    pub fetched: Vec<String>,
    /// The files that were whole before, or that another process brought meanwhile.
    pub already_there: Vec<String>,
}

/// Brings every one of `files` that `folder` lacks, from the first of `mirrors` (addresses of
/// folders) that has it, and makes `folder` where needed. Files already whole are left alone.
///
/// What has arrived of a file lies in `NAME.part`, from which a later call goes on. Two processes
/// may fetch into one folder: the second waits for the first, on the file `.lock`, which stays.
///
/// # Errors
///
/// [`FetchError::Corrupted`] before any download if a file is there with the wrong content,
/// [`FetchError::AllMirrorsFailed`] with one error for each mirror, and [`FetchError::Read`] or
/// [`FetchError::Write`] if the folder does not allow it.
pub fn fetch(
    folder: &Path,
    files: &[RemoteFile],
    mirrors: &[String],
    progress: &mut dyn FetchProgress,
) -> Result<FetchReport, FetchError> {
    let mut report = FetchReport::default();
    let mut lacking = Vec::new();
    for file in files {
        if is_whole(folder, file)? {
            report.already_there.push(file.name.to_owned());
        } else {
            lacking.push(file);
        }
    }
    // A folder that lacks nothing may be read-only, so no lock is taken in it.
    if lacking.is_empty() {
        return Ok(report);
    }
    let _lock = lock(folder)?;
    let agent = agent();
    for file in lacking {
        // Another process may have brought the file while this one waited for the lock.
        if is_whole(folder, file)? {
            report.already_there.push(file.name.to_owned());
        } else {
            fetch_from_any(&agent, folder, file, mirrors, progress)?;
            report.fetched.push(file.name.to_owned());
        }
    }
    Ok(report)
}

/// Tries the mirrors one after the other.
fn fetch_from_any(
    agent: &Agent,
    folder: &Path,
    file: &RemoteFile,
    mirrors: &[String],
    progress: &mut dyn FetchProgress,
) -> Result<(), FetchError> {
    let mut tries = Vec::new();
    for mirror in mirrors {
        let url = format!("{}/{}", mirror.trim_end_matches('/'), file.name);
        let part = folder.join(format!("{}.part", file.name));
        let source = Source { agent, file, url, part };
        match source.fetch(folder, progress) {
            Err(error) if !error.is_local() => tries.push(error),
            result => return result,
        }
    }
    let name = file.name.to_owned();
    Err(FetchError::AllMirrorsFailed { name, tries })
}

/// One file at one mirror.
struct Source<'a> {
    agent: &'a Agent,
    file: &'a RemoteFile,
    url: String,
    part: PathBuf,
}

impl Source<'_> {
    /// Goes on with the partial file, or begins it, until the file is in its place.
    fn fetch(&self, folder: &Path, progress: &mut dyn FetchProgress) -> Result<(), FetchError> {
        let already = self.bytes_in_part();
        let start = if already < self.file.n_bytes { self.download(already, progress)? } else { already };
        match self.place_if_right(folder) {
            // What lay there before may be the wrong part, and this mirror innocent.
            Err(FetchError::Hash { .. }) if start > 0 => {
                self.download(0, progress)?;
                self.place_if_right(folder)
            }
            result => result,
        }
    }

    /// How far an earlier try came. A file that is too long, or that cannot be looked at, counts
    /// as nothing: opening it for writing empties it or says what is wrong.
    fn bytes_in_part(&self) -> u64 {
        match fs::metadata(&self.part) {
            Ok(metadata) if metadata.len() <= self.file.n_bytes => metadata.len(),
            _ => 0,
        }
    }

    /// Completes the partial file, from byte `already` on if the mirror agrees and else from the
    /// beginning, and returns where the download began.
    fn download(&self, already: u64, progress: &mut dyn FetchProgress) -> Result<u64, FetchError> {
        let (response, start) = self.request(already)?;
        let mut part = self.open_part(start).map_err(unwritable(&self.part))?;
        let body = response.into_body().into_reader();
        progress.begin(self.file.name, self.file.n_bytes, start);
        let result = self.copy(body, &mut part, start, progress);
        progress.end();
        result.map(|()| start)
    }

    /// Asks for the bytes from `already` on, and returns the answer with the place of its first
    /// byte in the file.
    fn request(&self, already: u64) -> Result<(Response<Body>, u64), FetchError> {
        let mut response = self.send(already)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&response, already) => {
                return Ok((response, already));
            }
            // The mirror has another file in mind, so only the whole one helps.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if already > 0 => {
                response = self.send(0)?;
            }
            _ => {}
        }
        self.check_whole(&response)?;
        Ok((response, 0))
    }

    fn send(&self, from: u64) -> Result<Response<Body>, FetchError> {
        let mut request = self.agent.get(&self.url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| self.failed(&error))
    }

    /// Whether a partial answer was asked for and holds exactly the bytes from `already` on.
    fn continues(&self, response: &Response<Body>, already: u64) -> bool {
        let n_bytes = self.file.n_bytes;
        let expected = format!("bytes {already}-{}/{n_bytes}", n_bytes - 1);
        let found = response.headers().get("Content-Range");
        already > 0 && found.is_some_and(|found| found.as_bytes() == expected.as_bytes())
    }

    /// Refuses an answer that does not hold the whole file. A wrong announced length is found here,
    /// before the answer costs the bytes of an earlier attempt.
    fn check_whole(&self, response: &Response<Body>) -> Result<(), FetchError> {
        if response.status() != StatusCode::OK {
            let (url, status) = (self.url.clone(), response.status().as_u16());
            return Err(FetchError::Status { url, status });
        }
        match response.body().content_length() {
            Some(announced) if announced != self.file.n_bytes => Err(self.wrong_length(announced)),
            _ => Ok(()),
        }
    }

    /// Opens the partial file for writing at byte `start`, which becomes its end.
    fn open_part(&self, start: u64) -> io::Result<File> {
        let mut part = open_for_writing(&self.part)?;
        part.set_len(start)?;
        part.seek(SeekFrom::Start(start))?;
        Ok(part)
    }

    /// Writes what arrives, and never more than the file may hold.
    fn copy(
        &self,
        mut body: impl Read,
        part: &mut File,
        start: u64,
        progress: &mut dyn FetchProgress,
    ) -> Result<(), FetchError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut found = start;
        while found < self.file.n_bytes {
            let n_read = self.receive(&mut body, &mut chunk, found)?;
            let written = part.write_all(&chunk[..n_read]);
            written.map_err(unwritable(&self.part))?;
            found += n_read as u64;
            progress.advance(n_read as u64);
        }
        // Every byte is there, so how the body ends matters no more, unless it goes on.
        if matches!(body.read(&mut chunk[..1]), Ok(1)) {
            fs::remove_file(&self.part).map_err(unwritable(&self.part))?;
            return Err(self.wrong_length(found + 1));
        }
        Ok(())
    }

    /// Reads the next bytes after the first `found`: at least one, and no more than the file lacks.
    fn receive(&self, body: &mut impl Read, chunk: &mut [u8], found: u64) -> Result<usize, FetchError> {
        match body.take(self.file.n_bytes - found).read(chunk) {
            Ok(n_read) if n_read > 0 => Ok(n_read),
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(self.failed(&error.into())),
            // A cut connection is a body that is too short.
            _ => Err(self.wrong_length(found)),
        }
    }

    /// Gives the finished partial file its name if its SHA-256 is right, else deletes it.
    fn place_if_right(&self, folder: &Path) -> Result<(), FetchError> {
        let found = sha256(&self.part).map_err(unreadable(&self.part))?;
        if found == self.file.sha256 {
            let target = folder.join(self.file.name);
            return self.place(folder, &target).map_err(unwritable(&target));
        }
        fs::remove_file(&self.part).map_err(unwritable(&self.part))?;
        Err(FetchError::Hash { url: self.url.clone(), expected: self.file.sha256.to_owned(), found })
    }

    /// Brings the content to the disk before the name and then the name too, so that the name
    /// never promises what a power cut has taken away.
    fn place(&self, folder: &Path, target: &Path) -> io::Result<()> {
        File::options().append(true).open(&self.part)?.sync_all()?;
        fs::rename(&self.part, target)?;
        // Only Unix lets a folder be opened as a file.
        if cfg!(unix) {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn wrong_length(&self, found: u64) -> FetchError {
        FetchError::Length { url: self.url.clone(), expected: self.file.n_bytes, found }
    }

    /// Tells a network that does not carry from a server that does not make sense.
    fn failed(&self, error: &ureq::Error) -> FetchError {
        use ureq::Error as E;
        let (url, reason) = (self.url.clone(), error.to_string());
        match error {
            E::HostNotFound
            | E::ConnectionFailed
            | E::ConnectProxyFailed(_)
            | E::Io(_)
            | E::Timeout(_)
            | E::Tls(_)
            | E::Rustls(_) => {}
            _ => return FetchError::Unusable { url, reason },
        }
        FetchError::Network { url, reason }
    }
}

fn agent() -> Agent {
    Agent::config_builder()
        .timeout_resolve(Some(CONNECT_LIMIT))
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_per_read(Some(STALL_LIMIT))
        .timeout_per_write(Some(STALL_LIMIT))
        // Each status is judged here, and the files are compressed already: a server that packed
        // or unpacked them on the way would break the lengths and the ranges.
        .http_status_as_error(false)
        .accept_encoding("identity")
        .build()
        .new_agent()
}

/// Waits until no other process fetches into `folder`. Dropping the file ends the lock.
fn lock(folder: &Path) -> Result<File, FetchError> {
    create_folder(folder).map_err(|error| unwritable(folder)(error.source))?;
    let path = folder.join(".lock");
    let file = open_for_writing(&path).map_err(unwritable(&path))?;
    file.lock().map_err(unwritable(&path))?;
    Ok(file)
}

/// Opens a file, or makes it, and leaves its content as it is.
fn open_for_writing(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).write(true).truncate(false).open(path)
}

/// Whether the file is there with the right content. A wrong file may be the only copy of
/// something, so it is neither used nor deleted but reported.
fn is_whole(folder: &Path, file: &RemoteFile) -> Result<bool, FetchError> {
    let path = folder.join(file.name);
    match sha256(&path) {
        Ok(found) if found == file.sha256 => Ok(true),
        Ok(found) => {
            let expected = file.sha256.to_owned();
            Err(FetchError::Corrupted { path, expected, found })
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(unreadable(&path)(error)),
    }
}

/// The SHA-256 of a whole file in lower-case hexadecimal.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n_read) => hasher.update(&chunk[..n_read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Read { path: path.to_owned(), source }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Write { path: path.to_owned(), source }
}
