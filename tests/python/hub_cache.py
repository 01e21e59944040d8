"""hub_cache.py download|read ENDPOINT CACHE REPO COMMIT NAME=SHA256...: fills a cache from a hub, or reads what is in it without one."""

import hashlib
import os
import pathlib
import sys

verb, endpoint, cache, repo, commit, *files = sys.argv[1:]
os.environ.update(HF_ENDPOINT=endpoint, HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ["HF_HUB_OFFLINE"] = "1" if verb == "read" else "0"

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache  # noqa: E402
from huggingface_hub.file_download import _CACHED_NO_EXIST  # noqa: E402

local = verb == "read"
sums = dict(file.rsplit("=", 1) for file in files)
for revision in ["main", commit]:
    snapshot = pathlib.Path(snapshot_download(repo, revision=revision, cache_dir=cache, local_files_only=local))
    assert snapshot.name == commit, snapshot
    for name, expected in sums.items():
        path = pathlib.Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache, local_files_only=local))
        assert path == snapshot / name, path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == expected, name
if local:
    for name in ["generation_config.json", "modules.json"]:
        assert try_to_load_from_cache(repo, name, cache_dir=cache) is _CACHED_NO_EXIST, name
