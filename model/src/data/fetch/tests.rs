//! Downloads from a small server of the tests' own, which cuts, lies and redirects as each test asks.

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

/// The reported progress: for each body the bytes there before it and after it.
#[derive(Default)]
struct ProgressLog {
    now: (u64, u64),
    ended: Vec<String>,
}

impl FetchProgress for ProgressLog {
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
    fetch(folder, &[FILE], mirrors, &mut ProgressLog::default())
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
fn download_recovers_from_bad_replies_and_partial_files() {
    // The partial file before, the replies, the requests, and the reported progress.
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
    for case @ (part, replies, requests, ranges) in cases {
        let folder = folder_with("letters.part", part);
        let server = Server::new(replies);
        let mut progress = ProgressLog::default();
        let report = fetch(folder.path(), &[FILE], &server.mirrors, &mut progress);
        assert_eq!(report.unwrap().fetched, ["letters"], "{case:?}");
        assert_eq!(content(&folder, "letters").as_deref(), Some(LETTERS), "{case:?}");
        assert_eq!(content(&folder, "letters.part"), None, "{case:?}");
        assert_eq!(server.requests(), requests, "{case:?}");
        assert_eq!(progress.ended.join(" "), ranges, "{case:?}");
    }
}

#[test]
fn failed_download_reports_each_mirror_and_keeps_valid_part() {
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
fn interrupted_download_resumes_in_next_call() {
    let folder = TempDir::new().unwrap();
    let server = Server::new("cut rest");
    let mirror = &server.mirrors[..1];
    let error = fetch_letters(folder.path(), mirror).unwrap_err();
    assert!(error.to_string().contains("stays in the .part file"), "{error}");
    assert_eq!(fetch_letters(folder.path(), mirror).unwrap().fetched, ["letters"]);
    assert_eq!(server.requests(), "/1:all /1:10-");
}

#[test]
fn error_is_offline_only_if_no_mirror_answers() {
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
fn existing_file_is_used_or_reported_but_never_replaced() {
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
fn unwritable_download_folder_is_named_in_error() {
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
fn concurrent_fetches_download_once() {
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
