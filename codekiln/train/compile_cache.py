"""Where torch.compile keeps its code: in the user's own cache folder, which nobody else may write.

The cache is unpickled and its libraries are loaded, so a user who can write to it runs code as this user. It is
therefore never inside a run or a model folder, which may come from a stranger. Entries are keyed by PyTorch: by the
compiled graph, the settings and the versions.
"""

import grp
import os
import pwd
import stat
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from codekiln.errors import ConfigError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def use_private_compile_cache() -> Path:
    """Makes torch.compile use a folder of the user's cache, or the one that TORCHINDUCTOR_CACHE_DIR names.

    Raises ConfigError if another user can write it.
    """
    # PyTorch writes its own default into the variable: a folder of a known name in /tmp, which anybody can create first.
    if os.environ.get(VARIABLE, default_cache_dir()) != default_cache_dir():
        folder = Path(os.environ[VARIABLE])
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(cache).expanduser().absolute() / "codekiln" / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_private(folder)
    os.environ[VARIABLE] = str(folder)
    return folder


def _require_private(folder: Path) -> None:
    resolved = folder.resolve()
    for path in (resolved, *resolved.parents):
        status = path.stat()
        # In a folder with the sticky bit, like /tmp, nobody can replace what another user owns.
        is_protected = path != resolved and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.getuid()) or (_is_open_to_others(status) and not is_protected):
            raise ConfigError(
                f"the cache of compiled code, {folder}, can be changed by other users ({path} belongs to user "
                f"{status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}), who could run code as you: "
                f"make {path} writable for you alone, set {VARIABLE} to a private folder, or use --no-compile"
            )


def _is_open_to_others(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(status.st_gid)


def _is_private_group(group: int) -> bool:
    """Whether nobody but this user and root is in a group, as in the group of their own that most systems give users."""
    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem}
    except KeyError:
        return False
    members |= {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    return members <= {0, os.getuid()}
