"""Where files that are derived from a model directory are kept: the user's cache."""

import hashlib
import os
from pathlib import Path


def model_cache_path(kind: str, folder: Path, *facts: object) -> Path:
    """A path in the user's cache for what was derived from the model in `folder`.

    It changes if a weight file or a JSON file of the folder does, or one of `facts`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    lines = [str(folder.resolve())]
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json"):
            status = path.stat()
            lines.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    key = hashlib.sha256("\n".join([*lines, *map(str, facts)]).encode()).hexdigest()[:24]
    parent = cache / "codekiln" / kind
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return parent / key
