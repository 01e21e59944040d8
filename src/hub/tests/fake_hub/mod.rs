//! A hub on this machine, with a host for large files beside it as the real one has: what the tests download from. Its answers are
//! those of huggingface.co unless a test changes them.
#![allow(dead_code)] // each test crate uses some of it

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "org/tiny";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the host for large files.
    pub is_cdn: bool,
}

impl Request {
    pub fn is(&self, method: &str, ending: &str) -> bool {
        self.method == method && self.path.ends_with(ending)
    }

    /// Where the range asked for begins.
    pub fn start(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// An answer before it is sent.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    pub cut: Option<usize>,
    /// Silence before the connection ends.
    pub silence: Duration,
    /// A file that the hub has from the next request on.
    pub publish: Option<(String, Vec<u8>)>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, silence: Duration::ZERO, publish: None }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self
    }

    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }

    pub fn silent(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    pub fn publish(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.publish = Some((name.to_owned(), bytes.into()));
        self
    }
}

type Change = Box<dyn FnMut(&Request, Reply) -> Reply + Send>;

struct State {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Names besides those of `files` that the listing has.
    listed: Vec<String>,
    change: Change,
    requests: Vec<Request>,
    connections: usize,
}

/// The hub; it serves until the process ends.
#[derive(Clone)]
pub struct FakeHub {
    pub endpoint: String,
    cdn: String,
    state: Arc<Mutex<State>>,
}

/// Large files are those that Git LFS keeps.
pub fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

/// What the hub calls these bytes.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if is_large(name) {
        digits(&Sha256::digest(bytes))
    } else {
        digits(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
    }
}

impl FakeHub {
    pub fn new<'f>(files: impl IntoIterator<Item = (&'f str, Vec<u8>)>) -> Self {
        let state = State {
            commit: COMMIT.to_owned(),
            files: files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
            listed: Vec::new(),
            change: Box::new(|_, reply| reply),
            requests: Vec::new(),
            connections: 0,
        };
        let (hub, cdn) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let new = Self { endpoint: address(&hub), cdn: address(&cdn), state: Arc::new(Mutex::new(state)) };
        new.serve(hub, false);
        new.serve(cdn, true);
        new
    }

    /// A model of a few files, with `weights` random bytes.
    pub fn tiny(weights: usize) -> Self {
        Self::new([
            ("README.md", b"# Tiny".to_vec()),
            ("config.json", b"{\"model_type\": \"qwen2\"}".to_vec()),
            ("tokenizer.json", b"{}".repeat(1000)),
            ("model.safetensors", noise(weights, 1)),
            ("pytorch_model.bin", noise(100, 2)),
        ])
    }

    /// Changes what is answered from now on.
    pub fn change(&self, change: impl FnMut(&Request, Reply) -> Reply + Send + 'static) {
        self.state.lock().unwrap().change = Box::new(change);
    }

    pub fn put(&self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().files.insert(name.to_owned(), bytes.into());
    }

    pub fn list(&self, name: &str) {
        self.state.lock().unwrap().listed.push(name.to_owned());
    }

    pub fn set_commit(&self, commit: &str) {
        self.state.lock().unwrap().commit = commit.to_owned();
    }

    pub fn file(&self, name: &str) -> Vec<u8> {
        self.state.lock().unwrap().files[name].clone()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// How often the bytes of a file were sent, at least in part.
    pub fn sent(&self, name: &str) -> usize {
        let path = format!("/{}", if is_large(name) { etag(name, &self.file(name)) } else { name.to_owned() });
        self.requests().iter().filter(|request| request.is("GET", &path)).count()
    }

    fn serve(&self, listener: TcpListener, is_cdn: bool) {
        let hub = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = hub.clone();
                hub.state.lock().unwrap().connections += 1;
                // A client may hang up at any time.
                std::thread::spawn(move || hub.answer(stream.unwrap(), is_cdn).ok());
            }
        });
    }

    fn answer(&self, stream: TcpStream, is_cdn: bool) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let request = Request { method, path, headers, is_cdn };
        let reply = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(request.clone());
            let reply = if is_cdn { cdn(&state, &request) } else { self.hub(&state, &request) };
            let mut reply = (state.change)(&request, reply);
            state.files.extend(reply.publish.take());
            reply
        };
        self.send(stream, &request, reply)
    }

    fn send(&self, mut stream: TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", reply.status);
        if !reply.headers.iter().any(|(name, _)| name == "content-length") {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(&reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())])?;
        }
        std::thread::sleep(reply.silence);
        stream.shutdown(Shutdown::Write)?;
        // Not to reset the connection under what was sent.
        stream.read_to_end(&mut Vec::new()).map(|_| ())
    }

    fn hub(&self, state: &State, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let api = format!("/api/models/{REPO}");
        let listing = [format!("{api}/revision/main"), format!("{api}/revision/{}", state.commit), api.clone()];
        if listing.iter().any(|listing| listing == path) {
            let names = state.files.keys().chain(&state.listed);
            let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
            let info = serde_json::json!({"id": REPO, "sha": state.commit, "siblings": siblings});
            return Reply::new(200, info.to_string()).with("content-type", "application/json");
        }
        if path.starts_with(&format!("{api}/tree/")) {
            let entries: Vec<_> = state.files.iter().map(|(name, bytes)| tree_entry(name, bytes)).collect();
            return Reply::new(200, serde_json::json!(entries).to_string()).with("content-type", "application/json");
        }
        let name = [&*state.commit, "main"].iter().find_map(|revision| {
            path.strip_prefix(&format!("/{REPO}/resolve/{revision}/")).and_then(|name| state.files.get_key_value(name))
        });
        let Some((name, bytes)) = name else {
            let code = if path.contains(REPO) { "RevisionNotFound" } else { "RepoNotFound" };
            return Reply::new(404, "{}").with("x-error-code", code).with("x-repo-commit", &state.commit);
        };
        let etag = etag(name, bytes);
        if is_large(name) {
            return Reply::new(302, "elsewhere")
                .with("location", format!("{}/{etag}", self.cdn))
                .with("x-linked-etag", format!("\"{etag}\""))
                .with("x-linked-size", bytes.len())
                .with("x-repo-commit", &state.commit);
        }
        part(bytes, request).with("etag", format!("\"{etag}\"")).with("x-repo-commit", &state.commit)
    }
}

fn cdn(state: &State, request: &Request) -> Reply {
    let found = state.files.iter().find(|(name, bytes)| request.path == format!("/{}", etag(name, bytes)));
    // Its etag is of another kind than the hub's.
    found.map_or(Reply::new(404, ""), |(_, bytes)| part(bytes, request).with("etag", "\"of-the-cdn-2\""))
}

/// As servers do that know ranges.
fn part(bytes: &[u8], request: &Request) -> Reply {
    match request.start() {
        0 => Reply::new(200, bytes),
        start if start >= bytes.len() => Reply::new(416, ""),
        start => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[start..]).with("content-range", range)
        }
    }
}

fn tree_entry(name: &str, bytes: &[u8]) -> serde_json::Value {
    let mut entry = serde_json::json!({"type": "file", "path": name, "size": bytes.len(), "oid": etag("", bytes)});
    if is_large(name) {
        entry["lfs"] = serde_json::json!({"oid": etag(name, bytes), "size": bytes.len(), "pointerSize": 130});
    }
    entry
}

/// Bytes that do not repeat.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}
