#!/usr/bin/env bash
# setup.sh [DIR]: the Python environment of the benchmark's peers, made once and reused while what it was made from is unchanged.
# DIR defaults to the folder `peers` in Firebrick's cache. The last line printed is the path of its interpreter.
# PyPI's torch is the CUDA build on Linux: expect about 6 GB of disk. Where llama.cpp does not build, its peer says so and the others work;
# DIR/llama.log has the reason, and the next run tries again. FIREBRICK_LLAMA_CPP=0 leaves it out: it takes half an hour.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-${FIREBRICK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick}/peers}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# Two runs at once must not install over each other. (macOS has no flock: there, do not.)
if command -v flock >/dev/null; then
  exec 9>"$folder.lock"
  flock 9
fi

digest() {
  python3 - "$@" <<'PYTHON'
import hashlib, sys
digest = hashlib.sha256(sys.version.encode())
for path in sys.argv[1:]:
    digest.update(open(path, "rb").read())
print(digest.hexdigest())
PYTHON
}

python=$folder/bin/python
stamp=$folder/installed.sha256
wanted=$(digest "$here/requirements.txt" "$here/requirements-no-deps.txt" "$here/setup.sh")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! "$python" -c '' 2>/dev/null; then
  rm -f "$stamp" # a broken-off install must not look finished
  python3 -m venv "$folder"
  "$python" -m pip install --progress-bar off -r "$here/requirements.txt"
  "$python" -m pip install --progress-bar off --no-deps -r "$here/requirements-no-deps.txt"
  "$python" -c 'import torch, transformers, peft, gguf, mlx.core, sentence_transformers, onnxruntime, onnxscript'
  echo "$wanted" >"$stamp"
fi

# One compiler at a time, and behind whatever else runs: others may be measuring on this machine.
stamp=$folder/llama.sha256
wanted=$(digest "$here/requirements.txt" "$here/requirements-llama.txt")
if [ "${FIREBRICK_LLAMA_CPP:-1}" != 0 ] && [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -f "$stamp"
  if CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-1} nice -n 15 "$python" -m pip install --progress-bar off --verbose \
    -r "$here/requirements-llama.txt" >"$folder/llama.log" 2>&1 && "$python" -c 'import llama_cpp' 2>>"$folder/llama.log"; then
    echo "$wanted" >"$stamp"
  else
    echo "llama.cpp was not built and its peer will answer that it is not there: see $folder/llama.log" >&2
  fi
fi
echo "$python"
