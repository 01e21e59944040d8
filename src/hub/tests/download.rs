//! Downloads that break off, lie or change, against a hub on this machine.

mod fake_hub;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake_hub::{COMMIT, FakeHub, REPO, Reply, etag, noise};
use firebrick_hub::{Error, Event, Hub};

const WEIGHTS: &str = "model.safetensors";

fn client(hub: &FakeHub, cache: &Path) -> Hub {
    Hub::from_variables(|_| None).cache(cache).endpoint(&hub.endpoint).retry_pause(Duration::ZERO)
}

fn resolve(hub: &FakeHub, cache: &Path) -> Result<std::path::PathBuf, Error> {
    client(hub, cache).resolve(REPO, &mut |_| ())
}

fn check_snapshot(hub: &FakeHub, snapshot: &Path) {
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        assert!(std::fs::read(snapshot.join(name)).unwrap() == hub.file(name), "{name}");
    }
}

/// Nothing in the cache looks as if it were the weights.
fn check_no_weights(cache: &Path) {
    let repo = cache.join("models--org--tiny");
    assert!(!repo.join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    assert!(!repo.join("refs/main").exists());
}

fn blob(hub: &FakeHub, cache: &Path, ending: &str) -> std::path::PathBuf {
    cache.join("models--org--tiny/blobs").join(format!("{}{ending}", etag(WEIGHTS, &hub.file(WEIGHTS))))
}

#[test]
fn a_model_is_downloaded_once_in_the_layout_of_huggingface_hub() {
    let (hub, cache) = (FakeHub::tiny(100_000), tempfile::tempdir().unwrap());
    let snapshot = resolve(&hub, cache.path()).unwrap();
    let repo = cache.path().join("models--org--tiny");
    assert_eq!(snapshot, repo.join("snapshots").join(COMMIT));
    check_snapshot(&hub, &snapshot);
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(repo.join(".no_exist").join(COMMIT).join("generation_config.json").exists());
    assert!(repo.join(".no_exist").join(COMMIT).join("1_Pooling/config.json").exists());
    assert!(cache.path().join(".locks/models--org--tiny").is_dir());
    for name in ["README.md", "pytorch_model.bin"] {
        assert!(!snapshot.join(name).exists() && hub.sent(name) == 0, "{name}");
    }
    #[cfg(unix)]
    {
        let link = std::fs::read_link(snapshot.join(WEIGHTS)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag(WEIGHTS, &hub.file(WEIGHTS))));
    }
    let connections = hub.connections();
    for name in [REPO.to_owned(), format!("{REPO}@main"), format!("{REPO}@{COMMIT}")] {
        assert_eq!(client(&hub, cache.path()).resolve(&name, &mut |_| ()).unwrap(), snapshot);
    }
    assert_eq!(hub.connections(), connections, "what is in the cache is not asked for");
}

#[test]
fn shards_folders_and_adapters_are_downloaded() {
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let hub = FakeHub::new([
        ("config.json", b"{}".to_vec()),
        ("modules.json", b"[]".to_vec()),
        ("1_Pooling/config.json", b"{ }".to_vec()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model-1.safetensors", noise(5000, 1)),
        ("model-2.safetensors", noise(5000, 2)),
        ("model-3.safetensors", noise(5000, 3)),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = resolve(&hub, cache.path()).unwrap();
    for name in ["1_Pooling/config.json", "model-1.safetensors", "model-2.safetensors"] {
        assert!(std::fs::read(snapshot.join(name)).unwrap() == hub.file(name), "{name}");
    }
    assert!(!snapshot.join("model-3.safetensors").exists());

    let adapter = FakeHub::new([
        ("adapter_config.json", b"{}".to_vec()),
        ("adapter_model.safetensors", noise(500, 1)),
        ("optimizer.pt", noise(10, 1)),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = resolve(&adapter, cache.path()).unwrap();
    assert!(snapshot.join("adapter_model.safetensors").exists() && !snapshot.join("optimizer.pt").exists());
    assert_eq!(client(&adapter, cache.path()).offline(true).resolve(REPO, &mut |_| ()).unwrap(), snapshot);
}

#[test]
fn a_download_cut_anywhere_goes_on_where_it_stopped() {
    let size = 300_000;
    let hub = FakeHub::tiny(size);
    let mut random = noise(8 * 100, 7);
    for round in 0..100 {
        let cache = tempfile::tempdir().unwrap();
        let cuts: Vec<usize> = random.drain(..8).map(|byte| (usize::from(byte) * size) / 200).collect();
        let (mut left, asked) = (cuts.clone(), Arc::new(Mutex::new(Vec::new())));
        let log = asked.clone();
        hub.change(move |request, reply| {
            if !request.is_cdn {
                return reply;
            }
            log.lock().unwrap().push((request.start(), reply.status));
            match left.pop() {
                Some(cut) => reply.cut(cut),
                None => reply,
            }
        });
        let snapshot = resolve(&hub, cache.path()).unwrap_or_else(|error| panic!("{round}: {cuts:?}: {error}"));
        check_snapshot(&hub, &snapshot);
        let asked = asked.lock().unwrap();
        assert!(asked.is_sorted(), "no byte was asked for twice: {asked:?}");
        assert!(asked.iter().all(|(start, status)| *status == if *start == 0 { 200 } else { 206 }));
    }
}

#[test]
fn the_next_call_goes_on_where_the_last_one_failed() {
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    let mut served = 0;
    hub.change(move |request, reply| {
        served += usize::from(request.is_cdn);
        match (request.is_cdn, served) {
            (true, 1) => reply.cut(123_456),
            (true, _) => Reply::new(503, "busy"),
            _ => reply,
        }
    });
    let error = resolve(&hub, cache.path()).unwrap_err();
    assert!(matches!(error, Error::Status { status: 503, .. }), "{error}");
    check_no_weights(cache.path());
    let kept = blob(&hub, cache.path(), ".incomplete").metadata().unwrap().len() as usize;
    assert!((1..=123_456).contains(&kept), "{kept}");
    let offline = client(&hub, cache.path()).offline(true).resolve(REPO, &mut |_| ());
    assert!(matches!(offline, Err(Error::Offline { .. })), "what is incomplete is never used");

    let starts = Arc::new(Mutex::new(Vec::new()));
    let log = starts.clone();
    hub.change(move |request, reply| {
        log.lock().unwrap().extend(request.is_cdn.then(|| request.start()));
        reply
    });
    check_snapshot(&hub, &resolve(&hub, cache.path()).unwrap());
    assert_eq!(*starts.lock().unwrap(), [kept]);
}

#[test]
fn a_hub_that_ignores_ranges_sends_all_again() {
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    let weights = hub.file(WEIGHTS);
    let mut served = 0;
    hub.change(move |request, reply| {
        served += usize::from(request.is_cdn);
        match (request.is_cdn, served) {
            (true, 1) => reply.cut(200_000),
            (true, _) => Reply::new(200, weights.clone()),
            _ => reply,
        }
    });
    check_snapshot(&hub, &resolve(&hub, cache.path()).unwrap());
}

#[test]
fn what_an_earlier_version_of_the_file_left_is_dropped() {
    for left in [noise(1000, 99), noise(500_000, 99)] {
        let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
        let incomplete = blob(&hub, cache.path(), ".incomplete");
        std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        std::fs::write(incomplete, left).unwrap();
        check_snapshot(&hub, &resolve(&hub, cache.path()).unwrap());
    }
}

#[test]
fn a_short_body_is_never_final() {
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    let short = hub.file(WEIGHTS)[..1000].to_vec();
    hub.change(move |request, reply| if request.is_cdn { Reply::new(200, short.clone()) } else { reply });
    let error = resolve(&hub, cache.path()).unwrap_err();
    assert!(matches!(error, Error::Size { expected: 300_000, received: 1000, .. }), "{error}");
    check_no_weights(cache.path());
}

#[test]
fn a_long_body_is_never_final() {
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    let long = [hub.file(WEIGHTS), vec![0; 10]].concat();
    hub.change(move |request, reply| if request.is_cdn { Reply::new(200, long.clone()) } else { reply });
    let error = resolve(&hub, cache.path()).unwrap_err();
    assert!(matches!(error, Error::Size { expected: 300_000, .. }), "{error}");
    check_no_weights(cache.path());
}

#[test]
fn damaged_bytes_are_never_final() {
    for name in [WEIGHTS, "config.json"] {
        let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
        let path = format!("/{}", if name == WEIGHTS { etag(name, &hub.file(name)) } else { name.to_owned() });
        hub.change(move |request, mut reply| {
            if request.is("GET", &path) {
                let middle = reply.body.len() / 2;
                reply.body[middle] ^= 1;
            }
            reply
        });
        let error = resolve(&hub, cache.path()).unwrap_err();
        let expected = etag(name, &hub.file(name));
        assert!(
            matches!(&error, Error::Hash { file, expected: hash, .. } if file == name && *hash == expected),
            "{error}"
        );
        check_no_weights(cache.path());
        assert!(!blob(&hub, cache.path(), ".incomplete").exists(), "the next attempt begins anew");
        hub.change(|_, reply| reply);
        check_snapshot(&hub, &resolve(&hub, cache.path()).unwrap());
    }
}

#[test]
fn a_pointer_instead_of_the_file_is_recognised() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 300000\n";
    // Once where the hub knows better, once where it believes that the pointer is the file.
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    hub.change(move |request, reply| if request.is_cdn { Reply::new(200, pointer) } else { reply });
    let error = resolve(&hub, cache.path()).unwrap_err();
    assert!(matches!(&error, Error::Pointer { file, .. } if file == WEIGHTS), "{error}");
    check_no_weights(cache.path());
    let (hub, cache) = (FakeHub::tiny(10), tempfile::tempdir().unwrap());
    hub.put(WEIGHTS, pointer);
    assert!(matches!(resolve(&hub, cache.path()), Err(Error::Pointer { .. })));
    check_no_weights(cache.path());
}

#[test]
fn a_file_that_changes_midway_is_begun_anew() {
    let (hub, cache) = (FakeHub::tiny(300_000), tempfile::tempdir().unwrap());
    let newer = noise(250_000, 42);
    let (mut served, publish) = (0, newer.clone());
    hub.change(move |request, reply| {
        served += usize::from(request.is_cdn);
        if request.is_cdn && served == 1 { reply.cut(100_000).publish(WEIGHTS, &*publish) } else { reply }
    });
    let snapshot = resolve(&hub, cache.path()).unwrap();
    assert!(std::fs::read(snapshot.join(WEIGHTS)).unwrap() == newer);
    check_snapshot(&hub, &snapshot);
}

#[test]
fn a_file_that_always_changes_is_given_up() {
    let (hub, cache) = (FakeHub::tiny(1000), tempfile::tempdir().unwrap());
    let mut count = 0_u64;
    hub.change(move |request, reply| {
        count += 1;
        let is_weights = request.path.ends_with(WEIGHTS);
        if is_weights { reply.with("x-linked-etag", format!("{count:064x}")) } else { reply }
    });
    assert!(matches!(resolve(&hub, cache.path()), Err(Error::Changed { .. })));
    check_no_weights(cache.path());
}

#[test]
fn progress_adds_up_to_the_size() {
    let (hub, cache) = (FakeHub::tiny(1_000_000), tempfile::tempdir().unwrap());
    let mut served = 0;
    hub.change(move |request, reply| {
        served += usize::from(request.is_cdn);
        if request.is_cdn && served == 1 { reply.cut(400_000) } else { reply }
    });
    let (mut seen, mut begun) = (Vec::new(), 0);
    let progress = &mut |event: Event<'_>| match event {
        Event::Received { file, bytes, total } => seen.push((file.to_owned(), bytes, total)),
        Event::Begun { repo, commit, files, .. } => {
            begun += 1;
            assert_eq!((repo, commit, files), (REPO, COMMIT, 3));
        }
        _ => {}
    };
    client(&hub, cache.path()).resolve(REPO, progress).unwrap();
    assert_eq!(begun, 1);
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        let size = hub.file(name).len() as u64;
        let of_file: Vec<_> = seen.iter().filter(|(file, ..)| file == name).collect();
        assert!(of_file.is_sorted() && of_file.iter().all(|(.., total)| *total == size), "{of_file:?}");
        assert_eq!((of_file[0].1, of_file[of_file.len() - 1].1), (0, size));
    }
}

#[test]
fn a_branch_that_moves_leads_to_its_new_commit_only_when_that_is_here() {
    let (hub, cache) = (FakeHub::tiny(1000), tempfile::tempdir().unwrap());
    let first = resolve(&hub, cache.path()).unwrap();
    let newer = "f".repeat(40);
    hub.set_commit(&newer);
    hub.put(WEIGHTS, noise(2000, 5));
    assert_eq!(resolve(&hub, cache.path()).unwrap(), first, "what is cached is used");
    let second = client(&hub, cache.path()).resolve(&format!("{REPO}@{newer}"), &mut |_| ()).unwrap();
    assert!(second.ends_with(&newer) && std::fs::read(second.join(WEIGHTS)).unwrap() == noise(2000, 5));
    assert_eq!(hub.sent("tokenizer.json"), 1, "a blob serves several commits");
}

#[test]
fn a_snapshot_without_a_tokenizer_is_asked_about_once_and_used_anyway() {
    let hub = FakeHub::new([("config.json", b"{}".to_vec()), (WEIGHTS, noise(1000, 1))]);
    // As transformers leaves it, which was not asked for a tokenizer: nobody noted that there is none.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("models--org--tiny/snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(cache.path().join("models--org--tiny/refs")).unwrap();
    std::fs::write(cache.path().join("models--org--tiny/refs/main"), COMMIT).unwrap();
    for name in ["config.json", WEIGHTS] {
        std::fs::write(snapshot.join(name), hub.file(name)).unwrap();
    }
    let nowhere = client(&hub, cache.path()).endpoint("http://127.0.0.1:1");
    assert_eq!(nowhere.resolve(REPO, &mut |_| ()).unwrap(), snapshot);
    assert_eq!(client(&hub, cache.path()).offline(true).resolve(REPO, &mut |_| ()).unwrap(), snapshot);
    assert_eq!(hub.connections(), 0);
    assert_eq!(resolve(&hub, cache.path()).unwrap(), snapshot);
    assert_eq!(hub.connections(), 1, "what is there is not downloaded");
    assert_eq!(resolve(&hub, cache.path()).unwrap(), snapshot);
    assert_eq!(hub.connections(), 1, "there is no tokenizer, and that was noted");
}

#[test]
fn the_hubs_redirects_to_itself_are_followed() {
    let (hub, cache) = (FakeHub::tiny(1000), tempfile::tempdir().unwrap());
    hub.change(|request, reply| {
        // A repo that was renamed, and a small file whose redirect says everything already.
        if request.path.starts_with("/api") && !request.path.contains('?') {
            Reply::new(307, "").with("location", format!("{}?moved", request.path))
        } else if request.is("HEAD", "tokenizer.json") {
            Reply::new(307, "")
                .with("location", "/elsewhere")
                .with("x-linked-etag", &reply.headers[0].1)
                .with("x-linked-size", reply.body.len())
        } else {
            reply
        }
    });
    check_snapshot(&hub, &resolve(&hub, cache.path()).unwrap());
    let went = |ending: &str| hub.requests().iter().any(|request| request.path.ends_with(ending));
    assert!(went("?moved") && !went("/elsewhere"));
}

#[test]
fn an_asynchronous_program_may_call() {
    let (hub, cache) = (FakeHub::tiny(1000), tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let snapshot = runtime.block_on(async { resolve(&hub, cache.path()) }).unwrap();
    check_snapshot(&hub, &snapshot);
}
