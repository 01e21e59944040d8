#!/usr/bin/env bash
# setup.sh [DIR]: the Python environment of the tests, made once and reused while what it was made from is unchanged.
# DIR defaults to the folder `python` in Firebrick's cache. The last line printed is the path of its interpreter.
# PyPI's torch is the CUDA build on Linux: expect about 6 GB of disk.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-${FIREBRICK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick}/python}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# Two runs at once must not install over each other. (macOS has no flock: there, do not.)
if command -v flock >/dev/null; then
  exec 9>"$folder.lock"
  flock 9
fi

wanted=$(python3 - "$here/requirements.txt" "$here/requirements-no-deps.txt" "$here/setup.sh" <<'PYTHON'
import hashlib, sys
digest = hashlib.sha256(sys.version.encode())
for path in sys.argv[1:]:
    digest.update(open(path, "rb").read())
print(digest.hexdigest())
PYTHON
)
stamp=$folder/installed.sha256
python=$folder/bin/python
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! "$python" -c '' 2>/dev/null; then
  rm -f "$stamp" # a broken-off install must not look finished
  python3 -m venv "$folder"
  "$python" -m pip install --progress-bar off -r "$here/requirements.txt"
  "$python" -m pip install --progress-bar off --no-deps -r "$here/requirements-no-deps.txt"
  "$python" -c 'import torch, transformers, peft, gguf, mlx.core'
  echo "$wanted" >"$stamp"
fi
echo "$python"
