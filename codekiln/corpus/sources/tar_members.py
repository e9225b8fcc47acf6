"""Members of a tar archive as a stream. Nothing is written to the disk, and no header of more than 64 KB is held in memory.

The headers are read here, because `tarfile` holds extended headers of any size.
"""

import math
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing

from codekiln.corpus.sources.data_files import DataFile
from codekiln.corpus.sources.members import LINK, SPARSE, UNKNOWN_MEMBER, Member
from codekiln.corpus.sources.streams import DAMAGED, Stream, StreamError

_BLOCK = 512
_MAX_HEADER_BYTES = 64 * 2**10
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_TOO_LONG = ""  # a key that no header has
_PAX_LENGTH = re.compile(rb"(\d{1,6}) ")


def tar_members(
    file: DataFile, max_bytes: int, is_wanted: Callable[[str], bool], *, max_stream_bytes: float = math.inf
) -> Iterator[Member]:
    """The files whose names are wanted, links and devices, in order; then the damage of the archive, if any.

    Members of more than `max_bytes`, and those with a problem, are skipped and have no content. Nothing is read after
    `max_stream_bytes`.
    """
    with closing(Stream(file, max_bytes=max_stream_bytes)) as stream:
        try:
            yield from _members(stream, max_bytes, is_wanted)
        except StreamError as error:
            yield Member("", 0, problem=str(error))
        except tarfile.HeaderError:
            yield Member("", 0, problem=DAMAGED)


def _members(stream: Stream, max_bytes: int, is_wanted: Callable[[str], bool]) -> Iterator[Member]:
    extended: dict[str, bytes] = {}  # of the next member
    while (block := stream.read(_BLOCK)).strip(b"\0"):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in _EXTENDED:
            extended |= _read_extended(header, stream)
            continue
        name = extended["path"].decode("utf-8", "surrogateescape") if "path" in extended else header.name
        size = _size(extended.get("size"), header.size)
        if header.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(block, stream)
        is_folder = header.type == tarfile.DIRTYPE
        problem = _problem(header, extended)
        extended = {}
        is_listed = not is_folder and (problem is not None or is_wanted(name))
        # Links and folders have no content, whatever their header says.
        n_content = 0 if is_folder or header.type in _LINKS else size
        if is_listed and problem is None and size <= max_bytes:
            yield Member(name, size, stream.read(_padded(size))[:size])
        else:
            stream.skip(_padded(n_content))
            if is_listed:
                yield Member(name, n_content, problem=problem)
    while stream.read_block():  # the checksum of a compressed stream comes last
        pass


def _problem(header: tarfile.TarInfo, extended: dict[str, bytes]) -> str | None:
    """Why a member is no plain file."""
    if _TOO_LONG in extended:
        return UNKNOWN_MEMBER
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended):
        return SPARSE
    if header.type in _LINKS:
        return LINK
    return None if header.type in (*_REGULAR, tarfile.DIRTYPE) else UNKNOWN_MEMBER


def _read_extended(header: tarfile.TarInfo, stream: Stream) -> dict[str, bytes]:
    """What an extended header declares. One that is too long, or does not matter, is skipped."""
    size = _size(None, header.size)
    if header.type not in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        stream.skip(_padded(size))
        return {}
    if size > _MAX_HEADER_BYTES:
        stream.skip(_padded(size))
        return {_TOO_LONG: b""}
    data = stream.read(_padded(size))[:size]
    return _read_pax(data) if header.type == tarfile.XHDTYPE else {"path": data.partition(b"\0")[0]}


def _read_pax(data: bytes) -> dict[str, bytes]:
    """The records `LENGTH KEY=VALUE` of an extended header. Raises StreamError for others."""
    found = {}
    while data.strip(b"\0"):
        match = _PAX_LENGTH.match(data)
        if match is None or not match.end() < int(match[1]) <= len(data):
            raise StreamError(DAMAGED)
        key, is_found, value = data[match.end() : int(match[1]) - 1].partition(b"=")
        if not key or not is_found:
            raise StreamError(DAMAGED)
        found[key.decode("utf-8", "replace")] = value
        data = data[int(match[1]) :]
    return found


def _size(extended: bytes | None, size: int) -> int:
    """The size of a member. Raises StreamError for one that no file has."""
    if extended is not None:
        if not re.fullmatch(rb"\d{1,18}", extended):
            raise StreamError(DAMAGED)
        size = int(extended)
    if not 0 <= size < 2**60:
        raise StreamError(DAMAGED)
    return size


def _skip_sparse_map(block: bytes, stream: Stream) -> None:
    """The map of a sparse file in the old format of GNU continues in further blocks while a flag is set."""
    is_continued = block[482]
    while is_continued:
        is_continued = stream.read(_BLOCK)[504]


def _padded(n_bytes: int) -> int:
    """With the zeros that fill the last block."""
    return -(-n_bytes // _BLOCK) * _BLOCK
