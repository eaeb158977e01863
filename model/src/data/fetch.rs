//! Downloads of the Fashion-MNIST files: with progress, with resumption of what an earlier run
//! left half done, and with the SHA-256 check that alone decides whether what arrived is used.
//!
//! Not here: reading the files, choosing the folder, and drawing the progress.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

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

/// Why a file is not there. A `url` is the whole address asked, a length is in bytes, and a hash is
/// a SHA-256 in lower-case hexadecimal.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the fields have the same meaning in all variants, told above")]
pub enum FetchError {
    /// Name look-up, connection or TLS failed, or the server stopped sending.
    #[error(
        "{url} could not be reached or fell silent ({reason}); check the network connection, and \
         run the download again to go on from what has arrived."
    )]
    Network { url: String, reason: String },
    /// The address makes no sense, or what answered there does not speak HTTP.
    #[error(
        "{url} gave no usable HTTP answer ({reason}); check the address of the mirror or use \
         another one."
    )]
    Unusable { url: String, reason: String },
    /// The server does not have the file, or does not give it.
    #[error(
        "{url} answered with HTTP status {status} where 200 or 206 was expected; check the \
         address of the mirror or use another one."
    )]
    Status { url: String, status: u16 },
    /// The body is shorter or longer than the file, by its announcement or in fact. Of one that
    /// goes on too long, only the first byte too many is counted.
    #[error(
        "{url} brought {found} bytes where {expected} were expected; {}.",
        length_advice(*.expected, *.found)
    )]
    Length { url: String, expected: u64, found: u64 },
    /// The length is right and the content is not.
    #[error(
        "{url} brought a file with SHA-256 {found} where {expected} was expected; it was deleted, \
         so use another mirror."
    )]
    Hash { url: String, expected: String, found: String },
    /// Every mirror failed, for the reasons in `tries`, in the order of the mirrors.
    #[error("{name} could not be downloaded from any mirror:{}", one_per_line(.tries))]
    AllMirrorsFailed { name: String, tries: Vec<FetchError> },
    /// The file is in the folder already, with the wrong content.
    #[error(
        "{} has SHA-256 {found} where {expected} was expected; delete it and run the download \
         again.",
        .path.display()
    )]
    Corrupted { path: PathBuf, expected: String, found: String },
    /// The file is in the folder and cannot be read.
    #[error("{} could not be read ({source}); check its permissions.", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file, its partial file, the lock or the folder cannot be written.
    #[error(
        "{} could not be written ({source}); check its permissions and the free space, or choose \
         another folder.",
        .path.display()
    )]
    Write { path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Whether the network is to blame and nothing else: name look-up, connection, TLS or silence,
    /// at every mirror. A caller may then fall back to something that needs no network.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::AllMirrorsFailed { tries, .. } => !tries.is_empty() && tries.iter().all(Self::is_offline),
            _ => false,
        }
    }

    /// Whether this machine is to blame, so that another mirror would not help.
    fn is_local(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }
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

    /// Refuses what is not an answer with the whole file. A wrong announced length is found here,
    /// before the answer costs the bytes that an earlier try has brought.
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
    fs::create_dir_all(folder).map_err(unwritable(folder))?;
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

fn length_advice(expected: u64, found: u64) -> &'static str {
    if found < expected {
        "what has arrived stays in the .part file, so run the download again to go on from there"
    } else {
        "it is another file, so use another mirror"
    }
}

fn one_per_line(tries: &[FetchError]) -> String {
    if tries.is_empty() {
        return " no mirror was named, so name one.".to_owned();
    }
    tries.iter().map(|error| format!("\n- {error}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
    const TEN: &str = "abcdefghij";
    const WRONG: &str = "zyxwvutsrqponmlkjihgfedcba";
    const WRONG_SHA256: &str = "93ba56cccdc19890b8d31b4f0e9d81f3eff202ed3c130bd98b39fc160b6554ed";
    const FILE: RemoteFile = RemoteFile {
        name: "letters",
        n_bytes: 26,
        sha256: "71c480df93d6ae2f1efad1447c66c9525e316218cf51fc8d9ed832f2daf18b73",
    };

    /// The replies by the names the tests use; any other name is a status without a body.
    fn reply(name: &str) -> String {
        let (status, header, body) = match name {
            "whole" => ("200", "Content-Length: 26", LETTERS),
            "wrong" => ("200", "Content-Length: 26", WRONG),
            "cut" => ("200", "Content-Length: 26", TEN),
            "rest" => ("206", "Content-Range: bytes 10-25/26", &LETTERS[10..]),
            "other-rest" => ("206", "Content-Range: bytes 10-98/99", LETTERS),
            "page" => ("200", "Content-Length: 18", "<p>Please pay.</p>"),
            "moved" => ("302", "Location: /moved", ""),
            "chunked" | "long" => ("200", "Transfer-Encoding: chunked", ""),
            status => (status, "Content-Length: 0", ""),
        };
        let body = match name {
            "chunked" => format!("1a\r\n{LETTERS}\r\n0\r\n\r\n"),
            "long" => format!("1b\r\n{LETTERS}!\r\n0\r\n\r\n"),
            _ => body.to_owned(),
        };
        format!("HTTP/1.1 {status} \r\nConnection: close\r\n{header}\r\n\r\n{body}")
    }

    /// Gives one connection after the other the next of the replies, and notes the folder and the
    /// range of each request. After the last reply it refuses connections.
    struct Server {
        mirrors: [String; 2],
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn new(replies: &str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let requests = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&requests);
            let replies: Vec<_> = replies.split_whitespace().map(reply).collect();
            thread::spawn(move || {
                for (reply, connection) in replies.into_iter().zip(listener.incoming()) {
                    let mut connection = connection.unwrap();
                    noted.lock().unwrap().push(read_request(&connection));
                    // A client that has seen enough may have gone.
                    let _ = connection.write_all(reply.as_bytes());
                }
            });
            let mirrors = ["1/", "2"].map(|folder| format!("http://{address}/{folder}"));
            Self { mirrors, requests }
        }

        fn requests(&self) -> String {
            self.requests.lock().unwrap().join(" ")
        }
    }

    fn read_request(connection: &TcpStream) -> String {
        let lines = BufReader::new(connection).lines().map(Result::unwrap);
        let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let path = lines[0].split(' ').nth(1).unwrap();
        let mut ranges = lines.iter().filter_map(|line| line.strip_prefix("range: bytes="));
        let range = ranges.next().unwrap_or("all");
        format!("{}:{range}", path.trim_end_matches("/letters"))
    }

    /// What was told: for each body the bytes there before it and after it.
    #[derive(Default)]
    struct Told {
        now: (u64, u64),
        ended: Vec<String>,
    }

    impl FetchProgress for Told {
        fn begin(&mut self, name: &str, n_bytes: u64, already: u64) {
            assert_eq!((name, n_bytes), (FILE.name, FILE.n_bytes));
            self.now = (already, already);
        }
        fn advance(&mut self, n_bytes: u64) {
            self.now.1 += n_bytes;
        }
        fn end(&mut self) {
            self.ended.push(format!("{}-{}", self.now.0, self.now.1));
        }
    }

    fn fetch_letters(folder: &Path, mirrors: &[String]) -> Result<FetchReport, FetchError> {
        fetch(folder, &[FILE], mirrors, &mut Told::default())
    }

    fn folder_with(name: &str, content: &str) -> TempDir {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        folder
    }

    fn content(folder: &TempDir, name: &str) -> Option<String> {
        fs::read_to_string(folder.path().join(name)).ok()
    }

    #[test]
    fn the_right_bytes_arrive_in_the_end() {
        // The partial file before, the replies, the requests, and the progress told.
        let cases = [
            ("", "whole", "/1:all", "0-26"),
            ("", "chunked", "/1:all", "0-26"),
            (TEN, "rest", "/1:10-", "10-26"),
            (TEN, "moved rest", "/1:10- /moved:10-", "10-26"),
            ("", "cut rest", "/1:all /2:10-", "0-10 10-26"),
            (TEN, "whole", "/1:10-", "0-26"),
            (TEN, "416 whole", "/1:10- /1:all", "0-26"),
            (TEN, "other-rest whole", "/1:10- /1:all", "0-26"),
            ("0123456789", "rest whole", "/1:10- /1:all", "10-26 0-26"),
            (LETTERS, "", "", ""),
            (WRONG, "whole", "/1:all", "0-26"),
            ("abcdefghijklmnopqrstuvwxyz!", "whole", "/1:all", "0-26"),
            ("", "wrong whole", "/1:all /2:all", "0-26 0-26"),
            ("", "404 whole", "/1:all /2:all", "0-26"),
        ];
        for case @ (part, replies, requests, told) in cases {
            let folder = folder_with("letters.part", part);
            let server = Server::new(replies);
            let mut progress = Told::default();
            let report = fetch(folder.path(), &[FILE], &server.mirrors, &mut progress);
            assert_eq!(report.unwrap().fetched, ["letters"], "{case:?}");
            assert_eq!(content(&folder, "letters").as_deref(), Some(LETTERS), "{case:?}");
            assert_eq!(content(&folder, "letters.part"), None, "{case:?}");
            assert_eq!(server.requests(), requests, "{case:?}");
            assert_eq!(progress.ended.join(" "), told, "{case:?}");
        }
    }

    #[test]
    fn a_failure_says_why_at_each_mirror_and_keeps_only_what_may_be_right() {
        // The partial file before, the replies, what is said of each, and the partial file after.
        let cases = [
            ("", "cut 404", ["10 bytes where 26", "status 404"], Some(TEN)),
            ("", "wrong wrong", [WRONG_SHA256, FILE.sha256], None),
            ("", "long long", ["27 bytes where 26", "27 bytes"], None),
            (TEN, "page 500", ["18 bytes where 26", "status 500"], Some(TEN)),
            (TEN, "nonsense 403", ["no usable", "status 403"], Some(TEN)),
            ("", "rest 206", ["status 206", "status 206"], Some("")),
        ];
        for (part, replies, said, part_after) in cases {
            let folder = folder_with("letters.part", part);
            let server = Server::new(replies);
            let error = fetch_letters(folder.path(), &server.mirrors).unwrap_err();
            let message = error.to_string();
            let lines: Vec<_> = message.lines().collect();
            assert!(lines[0].starts_with("letters could not"), "{message}");
            assert!(lines[1].contains("/1/letters") && lines[1].contains(said[0]), "{message}");
            assert!(lines[2].contains("/2/letters") && lines[2].contains(said[1]), "{message}");
            assert!(!error.is_offline(), "{message}");
            let left = content(&folder, "letters.part");
            assert_eq!(left.as_deref(), part_after, "{message}");
            assert_eq!(content(&folder, "letters"), None, "{message}");
        }
    }

    #[test]
    fn a_cut_download_goes_on_in_the_next_call() {
        let folder = TempDir::new().unwrap();
        let server = Server::new("cut rest");
        let mirror = &server.mirrors[..1];
        let error = fetch_letters(folder.path(), mirror).unwrap_err();
        assert!(error.to_string().contains("stays in the .part file"), "{error}");
        assert_eq!(fetch_letters(folder.path(), mirror).unwrap().fetched, ["letters"]);
        assert_eq!(server.requests(), "/1:all /1:10-");
    }

    #[test]
    fn only_a_network_that_carries_nothing_counts_as_offline() {
        let folder = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let [answering, _] = Server::new("404").mirrors;
        let cases = [(vec![closed.clone(), closed.clone()], true), (vec![closed, answering], false), (vec![], false)];
        for (mirrors, offline) in cases {
            let error = fetch_letters(folder.path(), &mirrors).unwrap_err();
            assert_eq!(error.is_offline(), offline, "{error}");
        }
    }

    #[test]
    fn a_file_that_is_there_is_used_or_reported_but_never_replaced() {
        let server = Server::new("whole");
        let folder = folder_with("letters", LETTERS);
        let report = fetch_letters(folder.path(), &server.mirrors).unwrap();
        assert_eq!(report.already_there, ["letters"]);
        assert!(report.fetched.is_empty());
        assert_eq!(content(&folder, ".lock"), None, "the folder may be read-only");

        let folder = folder_with("letters", WRONG);
        let error = fetch_letters(folder.path(), &server.mirrors).unwrap_err();
        assert!(matches!(error, FetchError::Corrupted { .. }), "{error}");
        assert!(error.to_string().contains(WRONG_SHA256), "{error}");
        assert_eq!(content(&folder, "letters").as_deref(), Some(WRONG));
        assert_eq!(server.requests(), "");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let folder = folder_with("file", "");
        fs::create_dir(folder.path().join("letters.part")).unwrap();
        let below_a_file = folder.path().join("file").join("below");
        for (place, named) in [(folder.path(), "letters.part"), (&below_a_file, "below")] {
            let server = Server::new("whole whole");
            let error = fetch_letters(place, &server.mirrors).unwrap_err();
            assert!(matches!(error, FetchError::Write { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn of_two_at_once_only_one_downloads() {
        let folder = TempDir::new().unwrap();
        let server = Server::new("whole");
        let reports = thread::scope(|scope| {
            let run = || fetch_letters(folder.path(), &server.mirrors).unwrap();
            [scope.spawn(run), scope.spawn(run)].map(|thread| thread.join().unwrap())
        });
        let n_fetched: usize = reports.iter().map(|report| report.fetched.len()).sum();
        let n_there: usize = reports.iter().map(|report| report.already_there.len()).sum();
        assert_eq!((n_fetched, n_there), (1, 1));
        assert_eq!(server.requests(), "/1:all");
    }
}
