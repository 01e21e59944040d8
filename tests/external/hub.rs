//! The Hugging Face cache is one that huggingface_hub and we share.

use std::path::Path;

use firebrick_hub::Hub;

use super::python::script;
use crate::fake_hub::{COMMIT, FakeHub, REPO, etag, noise};

const FILES: [&str; 4] = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"];

fn hub() -> FakeHub {
    let hub = FakeHub::tiny(200_000);
    hub.put(".gitattributes", "*.safetensors filter=lfs diff=lfs merge=lfs -text\n");
    hub.put("1_Pooling/config.json", "{\"pooling_mode\": \"mean\"}");
    hub
}

fn client(hub: &FakeHub, cache: &Path) -> Hub {
    Hub::from_variables(|_| None).cache(cache).endpoint(&hub.endpoint)
}

fn python(verb: &str, hub: &FakeHub, cache: &Path) {
    let sums = FILES.map(|name| format!("{name}={}", etag("x.bin", &hub.file(name))));
    let arguments = [verb, &hub.endpoint, cache.to_str().unwrap(), REPO, COMMIT];
    script("hub_cache.py", arguments.into_iter().chain(sums.iter().map(String::as_str)));
}

#[test]
#[ignore = "needs Python: FIREBRICK_PYTHON"]
fn a_cache_that_python_wrote_is_ours_without_a_socket() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    python("download", &hub, cache.path());
    let connections = hub.connections();
    assert!(connections > 0);
    for name in [REPO.to_owned(), format!("{REPO}@{COMMIT}")] {
        let snapshot = client(&hub, cache.path()).resolve(&name, &mut |_| ()).unwrap();
        for name in FILES {
            assert!(std::fs::read(snapshot.join(name)).unwrap() == hub.file(name), "{name}");
        }
    }
    assert_eq!(hub.connections(), connections);
}

#[test]
#[ignore = "needs Python: FIREBRICK_PYTHON"]
fn a_cache_that_we_wrote_is_pythons_without_a_socket() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    client(&hub, cache.path()).resolve(REPO, &mut |_| ()).unwrap();
    let connections = hub.connections();
    python("read", &hub, cache.path());
    assert_eq!(hub.connections(), connections);
}

#[test]
#[ignore = "needs Python: FIREBRICK_PYTHON"]
fn python_and_we_at_once_download_once() {
    for round in 0..3 {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        hub.put("model.safetensors", noise(5_000_000, round));
        std::thread::scope(|scope| {
            scope.spawn(|| python("download", &hub, cache.path()));
            // Until Python is there; it takes a second to start.
            while hub.connections() == 0 {
                std::thread::yield_now();
            }
            client(&hub, cache.path()).resolve(REPO, &mut |_| ()).unwrap();
        });
        assert_eq!(hub.sent("model.safetensors"), 1);
        python("read", &hub, cache.path());
    }
}
