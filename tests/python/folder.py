"""Building a model folder whole or not at all. What goes into the folder is the caller's."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

STAMP = "made_from.sha256"


def build_folder(out: Path, recipe: str, build: Callable[[Path], None]) -> None:
    """Fills `out` with `build`, unless it already holds what the same script made from the same `recipe`.

    The work is done beside `out` and renamed into place, so a folder that exists is complete. A folder that
    this function did not make is never touched.
    """
    source = b"".join(Path(path).read_bytes() for path in (__file__, sys.argv[0]))
    wanted = hashlib.sha256(source + recipe.encode()).hexdigest()
    stamp = out / STAMP
    if out.exists() and any(out.iterdir()):
        if not stamp.exists():
            sys.exit(f"error: {out} exists and was not made by this script")
        if stamp.read_text() == wanted:
            print(f"{out}: up to date")
            return
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made = work / "new"
        made.mkdir()
        build(made)
        (made / STAMP).write_text(wanted)
        if out.exists():
            os.rename(out, work / "old")
        os.rename(made, out)
    finally:
        shutil.rmtree(work)
    print(f"{out}: made")
