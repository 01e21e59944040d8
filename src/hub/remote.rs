//! The three questions put to a hub: which files a repo has, what one of them is, and its bytes from some point on.
//! Nothing here knows the cache.
//!
//! Redirects are followed here and not by the HTTP client, because the hub answers for a large file with its hash *and* a redirect to
//! another host, which must not get the token.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use crate::environment::{Environment, Token};
use crate::error::Error;
use crate::name::{RepoId, is_component, is_inside};

/// Until a connection stands, and the longest silence on one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
/// Bytes that a listing may have: a hundred for each of 300,000 files.
const MAX_LISTING_BYTES: u64 = 32_000_000;

/// A repo on a hub.
pub(crate) struct Remote<'a> {
    agent: Agent,
    endpoint: &'a str,
    host: String,
    token: Option<&'a Token>,
    repo: String,
}

/// What a repo has at a revision.
pub(crate) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What a file is, before its bytes.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub etag: String,
    pub size: u64,
}

/// Bytes on their way.
pub(crate) struct Transfer {
    /// Where in the file they begin: not where they were asked from, if the hub does not do that.
    pub start: u64,
    pub reader: ureq::BodyReader<'static>,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> Remote<'a> {
    pub fn new(environment: &'a Environment, id: &RepoId) -> Result<Self, Error> {
        let uri: Uri = environment.endpoint.parse().map_err(|_| Error::Endpoint)?;
        let host = uri.host().ok_or(Error::Endpoint)?.to_owned();
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(Error::Endpoint);
        }
        let builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .timeout_per_write(Some(SILENCE_TIMEOUT))
            .user_agent(concat!("firebrick/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity");
        // A proxy cannot reach what is on this machine.
        let is_local = matches!(&*host, "localhost" | "127.0.0.1" | "[::1]");
        let config = if is_local { builder.proxy(None).build() } else { builder.build() };
        let token = environment.token.as_ref();
        Ok(Self { agent: config.into(), endpoint: &environment.endpoint, host, token, repo: id.repo() })
    }

    /// The hub's host, for people.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The commit of a revision, and its files.
    pub fn list(&self, revision: &str) -> Result<Listing, Error> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, self.repo, escape(revision, ""));
        let what = "the list of files";
        let (response, _) = self.send(Method::GET, &url, None, what)?;
        self.check_status(&response, Some(revision), what)?;
        let reader = response.into_body().into_with_config().limit(MAX_LISTING_BYTES).reader();
        let malformed = |problem: String| Error::Answer {
            repo: self.repo.clone(),
            host: self.host.clone(),
            what: what.to_owned(),
            problem,
        };
        let info: RepoInfo = serde_json::from_reader(reader).map_err(|error| match error.is_io() {
            true => self.network(&self.host, what, &error),
            false => malformed(format!("something else: {error}")),
        })?;
        self.check_component("a commit", &info.sha)?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        if let Some(name) = files.iter().find(|name| !is_inside(name)) {
            return Err(self.hostile("a file", name));
        }
        Ok(Listing { commit: info.sha, files })
    }

    /// What a file is.
    pub fn metadata(&self, commit: &str, file: &str) -> Result<Metadata, Error> {
        let (response, etag) = self.send(Method::HEAD, &self.url(commit, file), None, file)?;
        let is_redirect = response.status().is_redirection();
        if !is_redirect {
            self.check_status(&response, None, file)?;
        }
        let answer = |problem: &str| Error::Answer {
            repo: self.repo.clone(),
            host: self.host.clone(),
            what: file.to_owned(),
            problem: problem.to_owned(),
        };
        if let Some(actual) = header(&response, "x-repo-commit") {
            self.check_component("a commit", actual)?;
            if actual != commit {
                return Err(answer("another commit than was asked for"));
            }
        }
        let etag = etag.ok_or_else(|| answer("no etag"))?;
        self.check_component("an etag", &etag)?;
        // The length of a redirect says nothing about the file's.
        let length = header(&response, "content-length").filter(|_| !is_redirect);
        let size = header(&response, "x-linked-size").or(length).and_then(|size| size.parse().ok());
        Ok(Metadata { etag, size: size.ok_or_else(|| answer("no size"))? })
    }

    /// The bytes of a file from `start` on; `None` if it is not the file any more that `metadata` describes.
    pub fn read(&self, commit: &str, file: &str, metadata: &Metadata, start: u64) -> Result<Option<Transfer>, Error> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let (response, etag) = self.send(Method::GET, &self.url(commit, file), range.as_deref(), file)?;
        self.check_status(&response, None, file)?;
        if etag.is_some_and(|etag| etag != metadata.etag) {
            return Ok(None);
        }
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header(&response, "content-range").and_then(|range| range.strip_prefix("bytes "));
                let first = range.and_then(|range| range.split('-').next()).and_then(|first| first.parse().ok());
                // Bytes from who knows where are of no use.
                if first != Some(start) {
                    return Err(Error::Answer {
                        repo: self.repo.clone(),
                        host: self.host.clone(),
                        what: file.to_owned(),
                        problem: "another part than was asked for".to_owned(),
                    });
                }
                start
            }
            _ => 0,
        };
        Ok(Some(Transfer { start, reader: response.into_body().into_reader() }))
    }

    fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.endpoint, self.repo, escape(commit, ""), escape(file, "/"))
    }

    /// Sends a request wherever redirects lead, and says which etag the hub itself gave on the way: that of what it links to, before that
    /// of its answer. A HEAD stops at the answer that describes the file.
    fn send(
        &self,
        method: Method,
        url: &str,
        range: Option<&str>,
        what: &str,
    ) -> Result<(Response<Body>, Option<String>), Error> {
        let mut url: Uri = url.parse().map_err(|_| Error::Endpoint)?;
        let home = url.clone();
        let mut linked_etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let is_home = origin(&url) == origin(&home);
            let mut request = ureq::http::Request::builder().method(method.clone()).uri(&url);
            if let Some(range) = range {
                request = request.header("range", range);
            }
            if let Some(token) = self.token.filter(|_| is_home) {
                request = request.header("authorization", token.header()?);
            }
            let host = url.host().unwrap_or_default().to_owned();
            let request = request.body(()).map_err(|_| Error::Endpoint)?;
            let response = self.agent.run(request).map_err(|error| self.network(&host, what, &error))?;
            if is_home {
                linked_etag = header(&response, "x-linked-etag").map(clean_etag).or(linked_etag);
            }
            let next = header(&response, "location").filter(|_| response.status().is_redirection());
            let Some(next) = next.map(|location| join(&url, location)) else {
                let own_etag = header(&response, "etag").filter(|_| is_home).map(clean_etag);
                return Ok((response, linked_etag.or(own_etag)));
            };
            let next = next.filter(|next| next.scheme_str() == Some("https") || home.scheme_str() == Some("http"));
            let next = next.ok_or_else(|| Error::Answer {
                repo: self.repo.clone(),
                host: host.clone(),
                what: what.to_owned(),
                problem: "a redirect to an address that cannot be used".to_owned(),
            })?;
            let is_described = linked_etag.is_some() && header(&response, "x-linked-size").is_some();
            let is_described = is_described || origin(&next) != origin(&home);
            if method == Method::HEAD && is_described {
                return Ok((response, linked_etag));
            }
            url = next;
        }
        let (host, problem) = (self.host.clone(), "redirects without end".to_owned());
        Err(Error::Answer { repo: self.repo.clone(), host, what: what.to_owned(), problem })
    }

    fn check_status(&self, response: &Response<Body>, revision: Option<&str>, what: &str) -> Result<(), Error> {
        let (repo, host) = (self.repo.clone(), self.host.clone());
        let code = header(response, "x-error-code").unwrap_or_default();
        Err(match (response.status().as_u16(), revision) {
            (200..300, _) => return Ok(()),
            // The hub does not say whether a repo is private or does not exist.
            (401, _) if code == "RepoNotFound" && self.token.is_none() => Error::NoRepo { repo, host },
            (status @ (401 | 403), _) => Error::Denied { repo, host, status, with_token: self.token.is_some() },
            (404, Some(revision)) if code == "RevisionNotFound" => {
                Error::NoRevision { repo, revision: revision.to_owned(), host }
            }
            (404, Some(_)) => Error::NoRepo { repo, host },
            (404, None) => Error::NoFile { repo, file: what.to_owned() },
            (status, _) => Error::Status { repo, host, what: what.to_owned(), status },
        })
    }

    /// A failed connection. What a client says about it may quote an address, whose query may be a signature: it is not repeated.
    pub fn network(&self, host: &str, what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
        let said = error.to_string();
        let words = said.split_whitespace().map(|word| if word.contains("://") { "(address)" } else { word });
        let reason = words.collect::<Vec<_>>().join(" ");
        Error::Network { repo: self.repo.clone(), host: host.to_owned(), what: what.to_owned(), reason }
    }

    fn check_component(&self, what: &'static str, name: &str) -> Result<(), Error> {
        if is_component(name) { Ok(()) } else { Err(self.hostile(what, name)) }
    }

    fn hostile(&self, what: &'static str, name: &str) -> Error {
        let name = name.chars().take(200).collect::<String>().escape_debug().to_string();
        Error::Hostile { repo: self.repo.clone(), what, name }
    }
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

fn clean_etag(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

fn origin(url: &Uri) -> (Option<&str>, Option<&str>, Option<u16>) {
    let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
    (url.scheme_str(), url.host(), url.port_u16().or(Some(default)))
}

/// Where a redirect leads.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let absolute = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{}{location}", base.authority()?),
        _ => location.to_owned(),
    };
    absolute.parse().ok().filter(|uri: &Uri| uri.scheme().is_some() && uri.host().is_some())
}

/// Percent-encodes all but what no URL minds, and `keep`.
fn escape(text: &str, keep: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.as_bytes().contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_may_be_relative() {
        let base: Uri = "https://a.b:444/c/d?e".parse().unwrap();
        let joined = |location: &str| join(&base, location).map(|uri| uri.to_string());
        assert_eq!(joined("/x?y").as_deref(), Some("https://a.b:444/x?y"));
        assert_eq!(joined("//c.d/x").as_deref(), Some("https://c.d/x"));
        assert_eq!(joined("http://c.d/x").as_deref(), Some("http://c.d/x"));
        assert_eq!(joined("x"), None);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escape("1_Pooling/a b?.json", "/"), "1_Pooling/a%20b%3F.json");
    }
}
