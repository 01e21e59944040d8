//! What must not happen whatever a hub answers or a cache holds: a path out of the cache, a token that gets elsewhere, a socket while
//! offline.

mod fake_hub;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fake_hub::{COMMIT, FakeHub, REPO, Reply, noise};
use firebrick_hub::{Error, Hub};

const SECRET: &str = "hf_verysecrettoken";

/// A folder with the cache in it, and what else is there.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(home.0.path().join("cache")).unwrap();
        std::fs::write(home.0.path().join("secret"), "a file of somebody else").unwrap();
        home
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn hub(&self, hub: &FakeHub) -> Hub {
        Hub::from_variables(|_| None).cache(self.cache()).endpoint(&hub.endpoint).retry_pause(Duration::ZERO)
    }

    fn resolve(&self, hub: &FakeHub) -> Result<PathBuf, Error> {
        self.hub(hub).resolve(REPO, &mut |_| ())
    }

    /// Nothing was written beside the cache or changed there.
    #[track_caller]
    fn check_untouched(&self) {
        let entries: BTreeSet<OsString> =
            self.0.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(entries, ["cache", "secret"].map(OsString::from).into());
        assert_eq!(std::fs::read_to_string(self.0.path().join("secret")).unwrap(), "a file of somebody else");
    }
}

#[test]
fn hostile_names_in_a_listing_are_refused() {
    let names = [
        "../x",
        "../../secret",
        "..",
        ".",
        "",
        "/",
        "/etc/x",
        "x/../../y",
        "x/..",
        "x//y",
        "./x",
        "x/.",
        "x/",
        "..\\x",
        "a\\b",
        "C:\\x",
        "c:x",
        "a\0b",
        "a\nb",
        "\u{1b}[2J",
        "//host/share",
        "\\\\host\\share",
        "../config.json",
        "1_Pooling/../../../secret",
        "~\\x",
        "\r",
        "x/./y",
        "a/\0",
        "z:/x",
        "....\\x",
        "\t",
        "../",
        "/..",
        "a/../b",
    ];
    for name in names {
        let (home, hub) = (Home::new(), FakeHub::tiny(100));
        hub.list(name);
        let error = home.resolve(&hub).unwrap_err();
        assert!(matches!(error, Error::Hostile { what: "a file", .. }), "{name:?}: {error}");
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
        assert_eq!(home.cache().read_dir().unwrap().count(), 0, "{name:?}");
        home.check_untouched();
    }
}

#[test]
fn hostile_names_of_shards_are_refused() {
    let names = [
        "../x.safetensors",
        "/x.safetensors",
        "a/../../x.safetensors",
        "a\\x.safetensors",
        "c:x.safetensors",
        "CON.safetensors",
        "NUL.safetensors",
        "com1.safetensors",
        "x.safetensors\0",
        "x.bin",
        "",
        "a/x.safetensors",
    ];
    for name in names {
        let index = serde_json::json!({"weight_map": {"w": name}}).to_string().into_bytes();
        let hub = FakeHub::new([("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index)]);
        let home = Home::new();
        let error = home.resolve(&hub).unwrap_err();
        assert!(matches!(error, Error::Index { .. }), "{name:?}: {error}");
        home.check_untouched();
    }
}

#[test]
fn hostile_etags_and_commits_are_refused() {
    let long = "a".repeat(300);
    for value in ["../x", "/etc/x", "..", ".", "a/b", "a\\b", "NUL", "c:x", ".hidden", "a b", "x.", &long] {
        for header in ["etag", "x-linked-etag", "x-repo-commit"] {
            let (home, hub) = (Home::new(), FakeHub::tiny(100));
            let planted = value.to_owned();
            hub.change(move |request, reply| {
                let is_one = reply.headers.iter().any(|(name, _)| name == header) && !request.is_cdn;
                if is_one { reply.with(header, &planted) } else { reply }
            });
            let error = home.resolve(&hub).unwrap_err();
            assert!(matches!(error, Error::Hostile { .. }), "{header}: {value}: {error}");
            home.check_untouched();
        }
        let (home, hub) = (Home::new(), FakeHub::tiny(100));
        hub.set_commit(value);
        assert!(matches!(home.resolve(&hub), Err(Error::Hostile { what: "a commit", .. })), "{value}");
        assert_eq!(home.cache().read_dir().unwrap().count(), 0, "{value}");
    }
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let listings = ["", "{", "[]", "null", "{\"sha\": 1, \"siblings\": []}", "{\"siblings\": []}", "<html>"];
    for listing in listings {
        let (home, hub) = (Home::new(), FakeHub::tiny(100));
        hub.change(
            move |request, reply| if request.path.starts_with("/api") { Reply::new(200, listing) } else { reply },
        );
        let error = home.resolve(&hub).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{listing}: {error}");
    }
    let changes: [fn(Reply) -> Reply; 4] = [
        |reply| reply.without("etag"),
        |reply| reply.with("content-length", "x"),
        |reply| reply.with("x-repo-commit", "f".repeat(40)),
        |_| Reply::new(302, "").with("location", "/round/and/round"),
    ];
    for change in changes {
        let (home, hub) = (Home::new(), FakeHub::tiny(100));
        hub.change(move |request, reply| {
            let round = request.path.contains("round");
            if request.is("HEAD", "config.json") || round { change(reply) } else { reply }
        });
        assert!(home.resolve(&hub).is_err());
    }
}

#[test]
fn statuses_say_what_to_do() {
    let error = |status: u16, code: &'static str, token: bool| {
        let (home, hub) = (Home::new(), FakeHub::tiny(100));
        hub.change(move |_, _| Reply::new(status, "{}").with("x-error-code", code));
        let client = if token { home.hub(&hub).token(SECRET) } else { home.hub(&hub) };
        client.resolve(&format!("{REPO}@v2"), &mut |_| ()).unwrap_err()
    };
    for (status, code) in [(401, "GatedRepo"), (403, "GatedRepo"), (401, "")] {
        let text = error(status, code, false).to_string();
        assert!(text.contains("set HF_TOKEN") && text.contains("127.0.0.1"), "{text}");
        assert!(error(status, code, true).to_string().contains("check HF_TOKEN"));
    }
    assert!(matches!(error(401, "RepoNotFound", false), Error::NoRepo { .. }));
    assert!(matches!(error(404, "RepoNotFound", true), Error::NoRepo { .. }));
    assert!(matches!(error(404, "RevisionNotFound", true), Error::NoRevision { revision, .. } if revision == "v2"));
    assert!(matches!(error(500, "", false), Error::Status { status: 500, .. }));
}

#[test]
fn no_connection_names_the_host() {
    let home = Home::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = Hub::from_variables(|_| None).cache(home.cache()).retry_pause(Duration::ZERO).token(SECRET);
    let error = client.endpoint(&format!("http://127.0.0.1:{port}")).resolve(REPO, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Network { host, .. } if host == "127.0.0.1"), "{error}");
    for endpoint in ["", "huggingface.co", "ftp://x", "http://", "http://a b"] {
        let client = Hub::from_variables(|_| None).cache(home.cache()).endpoint(endpoint);
        assert!(matches!(client.resolve(REPO, &mut |_| ()), Err(Error::Endpoint)), "{endpoint}");
    }
}

#[test]
fn the_token_goes_to_the_hub_only_and_into_no_text() {
    let (home, hub) = (Home::new(), FakeHub::tiny(1000));
    let client = home.hub(&hub).token(SECRET);
    assert!(!format!("{client:?}").contains(SECRET));
    client.resolve(REPO, &mut |_| ()).unwrap();
    let requests = hub.requests();
    let sends = |is_cdn: bool| requests.iter().filter(move |request| request.is_cdn == is_cdn);
    assert!(sends(false).count() > 3 && sends(true).count() > 0);
    assert!(sends(false).all(|request| request.headers["authorization"] == format!("Bearer {SECRET}")));
    assert!(sends(true).all(|request| !request.headers.contains_key("authorization")));

    for status in [400, 401, 403, 404, 416, 429, 500] {
        let (home, hub) = (Home::new(), FakeHub::tiny(1000));
        hub.change(move |request, reply| if request.is_cdn { Reply::new(status, SECRET) } else { reply });
        let error = home.hub(&hub).token(SECRET).resolve(REPO, &mut |_| ()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    }
    let without = Hub::from_variables(|_| None).cache(Home::new().cache()).endpoint(&hub.endpoint);
    without.resolve(REPO, &mut |_| ()).unwrap();
    assert!(!hub.requests().last().unwrap().headers.contains_key("authorization"));
    let unsendable = home.hub(&hub).token("hf_\nsecret").resolve(&format!("{REPO}@v9"), &mut |_| ()).unwrap_err();
    assert!(matches!(unsendable, Error::Token) && !format!("{unsendable:?}").contains("hf_"));
}

#[test]
fn offline_opens_no_socket_and_says_what_is_missing() {
    let home = Home::new();
    let hub = FakeHub::tiny(1000);
    for (name, value) in [("HF_HUB_OFFLINE", "1"), ("HF_HUB_OFFLINE", "Yes"), ("TRANSFORMERS_OFFLINE", "on")] {
        let variable = |asked: &str| (asked == name).then(|| OsString::from(value));
        let client = Hub::from_variables(variable).cache(home.cache()).endpoint(&hub.endpoint);
        let error = client.resolve(&format!("{REPO}@v1"), &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Offline { .. }));
        let text = error.to_string();
        for part in [REPO, "v1", "config.json", "HF_HUB_OFFLINE", home.cache().to_str().unwrap()] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert_eq!(hub.connections(), 0);
    let snapshot = home.resolve(&hub).unwrap();
    let connections = hub.connections();
    let offline = home.hub(&hub).offline(true);
    assert_eq!(offline.resolve(REPO, &mut |_| ()).unwrap(), snapshot);
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    let error = offline.resolve(REPO, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Offline { file, .. } if file == "model.safetensors"), "{error}");
    assert_eq!(hub.connections(), connections);
}

#[test]
fn no_home_is_no_panic() {
    let error = Hub::from_variables(|_| None).resolve(REPO, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NoCache { .. }), "{error}");
    for name in ["", "x", "a/b/c", "../x", "/no/such/folder", "a/..", "a\0b"] {
        let error = Hub::from_variables(|_| None).resolve(name, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{name:?}: {error}");
    }
    let folder = Home::new().cache();
    std::fs::create_dir_all(&folder).unwrap();
    assert_eq!(Hub::from_variables(|_| None).resolve(folder.to_str().unwrap(), &mut |_| ()).unwrap(), folder);
    std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Plants a link at a place of the cache, and puts what was there beside it.
    fn plant(home: &Home, place: &str, target: &Path) {
        let place = home.cache().join(place);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        if place.is_dir() && !place.is_symlink() {
            std::fs::remove_dir_all(&place).unwrap();
        } else if place.symlink_metadata().is_ok() {
            std::fs::remove_file(&place).unwrap();
        }
        symlink(target, place).unwrap();
    }

    #[test]
    fn a_link_out_of_the_cache_is_not_read() {
        let hub = FakeHub::tiny(1000);
        let snapshot = format!("models--org--tiny/snapshots/{COMMIT}");
        for file in ["config.json", "model.safetensors", "README.md", "1_Pooling/config.json"] {
            let home = Home::new();
            home.resolve(&hub).unwrap();
            plant(&home, &format!("{snapshot}/{file}"), &home.0.path().join("secret"));
            for offline in [true, false] {
                let error = home.hub(&hub).offline(offline).resolve(REPO, &mut |_| ()).unwrap_err();
                assert!(matches!(error, Error::Escape { .. }), "{file}: {error}");
            }
            home.check_untouched();
        }
    }

    #[test]
    fn a_link_out_of_the_cache_is_not_written_through() {
        let hub = FakeHub::tiny(1000);
        let blob = fake_hub::etag("model.safetensors", &hub.file("model.safetensors"));
        let outside = tempfile::tempdir().unwrap();
        let folders = [
            "models--org--tiny",
            "models--org--tiny/blobs",
            "models--org--tiny/snapshots",
            "models--org--tiny/refs",
            "models--org--tiny/.no_exist",
            ".locks",
            ".locks/models--org--tiny",
        ];
        for folder in folders {
            let home = Home::new();
            plant(&home, folder, outside.path());
            let error = home.resolve(&hub).unwrap_err();
            assert!(matches!(error, Error::Escape { .. }), "{folder}: {error}");
            assert_eq!(outside.path().read_dir().unwrap().count(), 0, "{folder}");
        }
        let files = [
            format!("models--org--tiny/blobs/{blob}.incomplete"),
            format!(".locks/models--org--tiny/{blob}.lock"),
            "models--org--tiny/refs/main".to_owned(),
        ];
        for file in files {
            let home = Home::new();
            plant(&home, &file, &home.0.path().join("secret"));
            home.resolve(&hub).unwrap();
            home.check_untouched();
        }
        let home = Home::new();
        plant(&home, &format!("models--org--tiny/blobs/{blob}"), &home.0.path().join("secret"));
        assert!(matches!(home.resolve(&hub), Err(Error::Escape { .. })));
        home.check_untouched();
    }

    #[test]
    fn a_cache_that_is_itself_a_link_is_followed() {
        let (home, hub) = (Home::new(), FakeHub::tiny(1000));
        let link = home.0.path().join("link");
        symlink(home.cache(), &link).unwrap();
        let client = home.hub(&hub).cache(&link);
        let snapshot = client.resolve(REPO, &mut |_| ()).unwrap();
        assert_eq!(client.offline(true).resolve(REPO, &mut |_| ()).unwrap(), snapshot);
    }

    #[test]
    fn a_link_to_a_deleted_blob_is_mended() {
        let (home, hub) = (Home::new(), FakeHub::tiny(1000));
        let snapshot = home.resolve(&hub).unwrap();
        for name in ["model.safetensors", "config.json"] {
            std::fs::remove_file(snapshot.join(name).canonicalize().unwrap()).unwrap();
            assert_eq!(home.resolve(&hub).unwrap(), snapshot);
            assert!(std::fs::read(snapshot.join(name)).unwrap() == hub.file(name));
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let (home, hub) = (Home::new(), FakeHub::tiny(1000));
        let file = home.cache().join("models--org--tiny");
        std::fs::write(&file, "").unwrap();
        let error = home.resolve(&hub).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(&file)), "{error}");
        // Who may everything is not refused.
        std::fs::remove_file(&file).unwrap();
        std::fs::set_permissions(home.cache(), PermissionsExt::from_mode(0o555)).unwrap();
        if std::fs::write(home.cache().join("x"), "").is_err() {
            assert!(matches!(home.resolve(&hub), Err(Error::Io { .. })));
        }
        std::fs::set_permissions(home.cache(), PermissionsExt::from_mode(0o755)).unwrap();
    }
}

#[test]
fn files_are_copied_where_links_are_not_wanted() {
    let (home, hub) = (Home::new(), FakeHub::tiny(1000));
    let variable = |name: &str| (name == "HF_HUB_DISABLE_SYMLINKS").then(|| OsString::from("1"));
    let client = Hub::from_variables(variable).cache(home.cache()).endpoint(&hub.endpoint);
    let snapshot = client.resolve(REPO, &mut |_| ()).unwrap();
    for name in ["config.json", "model.safetensors"] {
        assert!(snapshot.join(name).symlink_metadata().unwrap().is_file(), "{name}");
        assert!(std::fs::read(snapshot.join(name)).unwrap() == hub.file(name), "{name}");
    }
    assert_eq!(client.offline(true).resolve(REPO, &mut |_| ()).unwrap(), snapshot);
}

#[test]
fn many_at_once_download_once() {
    for round in 0..50 {
        let home = Home::new();
        let hub = FakeHub::new([("config.json", b"{}".to_vec()), ("model.safetensors", noise(200_000, round))]);
        std::thread::scope(|scope| {
            let both: Vec<_> = (0..4).map(|_| scope.spawn(|| home.resolve(&hub).unwrap())).collect();
            for thread in both {
                let snapshot = thread.join().unwrap();
                assert!(std::fs::read(snapshot.join("model.safetensors")).unwrap() == noise(200_000, round));
            }
        });
        assert_eq!((hub.sent("model.safetensors"), hub.sent("config.json")), (1, 1), "round {round}");
        let blobs = home.cache().join("models--org--tiny/blobs").read_dir().unwrap();
        assert_eq!(blobs.count(), 2, "nothing incomplete is left");
    }
}
