"""Removes what programs left in their folder, however deep it is and whatever its modes are."""

import os
import stat
from itertools import count


def clear(folder: str) -> None:
    """Removes everything in a folder. Never follows a link. Raises OSError if something stays.

    Folders in folders are moved up first, because paths of a deep tree can be too long for the kernel.
    """
    numbers = count()
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                place = os.path.join(path, inner)
                if stat.S_ISDIR(os.lstat(place).st_mode):
                    os.chmod(place, 0o700)
                    moved = next(moved for n in numbers if not os.path.lexists(moved := os.path.join(folder, f"{n}")))
                    os.rename(place, moved)
                else:
                    os.unlink(place)
            os.rmdir(path)
