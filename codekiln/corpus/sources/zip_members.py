"""Members of a zip archive, stored or compressed with Deflate. Nothing is written to the disk.

The list of files is read here in one pass, because `zipfile` holds it in memory, and refuses the whole archive if one name is
not UTF-8.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from codekiln.corpus.sources.data_files import DataFile, RawFile
from codekiln.corpus.sources.members import DAMAGED_MEMBER, ENCRYPTED, LINK, OTHER_METHOD, Member
from codekiln.corpus.sources.streams import BOMB, DAMAGED, FREE_BYTES, MAX_RATIO

_END = struct.Struct("<4s4xHHIIH")  # signature, (disks), members here, members, size and offset of the list, comment
_END64 = struct.Struct("<4sQ12xQQQQ")
_LOCATOR = struct.Struct("<4s4xQ4x")
_ENTRY = struct.Struct("<4sBBHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4s22xHH")
_EXTRA = struct.Struct("<HH")
_MAX_COMMENT_BYTES = 2**16
_LIST_BLOCK_BYTES = 2**18  # more than the largest entry
_READ_BYTES = 2**16
_STORED, _DEFLATED = 0, 8
_UNIX = 3  # the system whose file modes are in the attributes
_KIND_MASK, _FILE, _FOLDER = 0o170000, 0o100000, 0o040000


class _Entry(NamedTuple):
    name: str
    size: int
    compressed_size: int
    checksum: int
    offset: int  # in the file
    method: int
    is_encrypted: bool
    is_special: bool  # a link or a device


def zip_members(file: DataFile, max_bytes: int, is_wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files whose names are wanted, links and devices, in the order of the list; then the damage of the archive, if any.

    Members of more than `max_bytes`, and those with a problem, have no content. Reading stops at the member with which all
    together would have more than 200 times the size of the archive.
    """
    n_total, limit = 0, max(FREE_BYTES, MAX_RATIO * file.n_bytes)
    with file.open() as raw:
        try:
            for entry in _entries(raw):
                if entry.is_special:
                    yield Member(entry.name, entry.size, problem=LINK)
                elif not entry.name.endswith("/") and is_wanted(entry.name):
                    n_total += entry.size
                    if n_total > limit:
                        yield Member(entry.name, entry.size, problem=BOMB)
                        return
                    yield _read_member(raw, entry, max_bytes)
        except _DamagedError:
            yield Member("", 0, problem=DAMAGED)


class _DamagedError(Exception):
    """The archive cannot be read further."""


def _entries(raw: RawFile) -> Iterator[_Entry]:
    """The list of files. Raises _DamagedError if it is damaged."""
    position, stop, shift = _find_list(raw)
    while position < stop:
        raw.seek(position)
        data = raw.read(_LIST_BLOCK_BYTES)
        at = 0
        while position + at < stop and at + _ENTRY.size <= len(data):
            entry, n_bytes = _parse_entry(data, at, shift)
            if at + n_bytes > len(data):
                break
            yield entry
            at += n_bytes
        if at == 0:
            raise _DamagedError
        position += at


def _find_list(raw: RawFile) -> tuple[int, int, int]:
    """Begin and end of the list of files, and how many bytes precede the archive. Raises _DamagedError."""
    n_bytes = raw.seek(0, 2)
    begin = max(0, n_bytes - _END.size - _LOCATOR.size - _END64.size - _MAX_COMMENT_BYTES)
    raw.seek(begin)
    tail = raw.read(n_bytes - begin)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise _DamagedError
    _, _, _, size, offset, _ = _END.unpack_from(tail, at)
    at64 = at - _LOCATOR.size - _END64.size
    if at64 >= 0 and tail.startswith(b"PK\6\7", at - _LOCATOR.size) and tail.startswith(b"PK\6\6", at64):
        _, _, _, _, size, offset = _END64.unpack_from(tail, at64)
        at = at64
    stop = begin + at
    shift = stop - size - offset
    if size > stop or shift < 0:
        raise _DamagedError
    return stop - size, stop, shift


def _parse_entry(data: bytes, at: int, shift: int) -> tuple[_Entry, int]:
    """An entry of the list, and its bytes. Raises _DamagedError."""
    fields = _ENTRY.unpack_from(data, at)
    signature, system, flags, method = fields[0], fields[2], fields[4], fields[5]
    checksum, compressed_size, size, n_name, n_extra, n_comment = fields[8:14]
    attributes, offset = fields[16], fields[17]
    if signature != b"PK\1\2":
        raise _DamagedError
    name_at = at + _ENTRY.size
    name = data[name_at : name_at + n_name].decode("utf-8", "surrogateescape")
    extra = data[name_at + n_name : name_at + n_name + n_extra]
    size, compressed_size, offset = _with_zip64(extra, size, compressed_size, offset)
    kind = (attributes >> 16) & _KIND_MASK if system == _UNIX else 0
    entry = _Entry(
        name=name,
        size=size,
        compressed_size=compressed_size,
        checksum=checksum,
        offset=offset + shift,
        method=method,
        is_encrypted=bool(flags & 1),
        is_special=kind not in (0, _FILE, _FOLDER),
    )
    return entry, _ENTRY.size + n_name + n_extra + n_comment


def _with_zip64(extra: bytes, *values: int) -> Iterator[int]:
    """The values, and from the extra field of Zip64 those that need more than 32 bits. Raises _DamagedError."""
    large: list[int] = []
    while len(extra) >= _EXTRA.size:
        kind, n_bytes = _EXTRA.unpack_from(extra)
        if kind == 1:
            data = extra[_EXTRA.size : _EXTRA.size + n_bytes]
            large = [int.from_bytes(data[k : k + 8], "little") for k in range(0, len(data) - 7, 8)]
        extra = extra[_EXTRA.size + n_bytes :]
    for value in values:
        if value != 2**32 - 1:
            yield value
        elif large:
            yield large.pop(0)
        else:
            raise _DamagedError


def _read_member(raw: RawFile, entry: _Entry, max_bytes: int) -> Member:
    problem = ENCRYPTED if entry.is_encrypted else None
    if entry.method not in (_STORED, _DEFLATED):
        problem = problem or OTHER_METHOD
    if problem is not None or entry.size > max_bytes:
        return Member(entry.name, entry.size, problem=problem)
    try:
        content = _decompress(raw, entry)
    except (_DamagedError, zlib.error):
        return Member(entry.name, entry.size, problem=DAMAGED_MEMBER)
    return Member(entry.name, entry.size, content)


def _decompress(raw: RawFile, entry: _Entry) -> bytes:
    """Exactly the declared bytes. Raises _DamagedError or zlib.error."""
    raw.seek(entry.offset)
    local = raw.read(_LOCAL.size)
    if len(local) < _LOCAL.size or not local.startswith(b"PK\3\4"):
        raise _DamagedError
    _, n_name, n_extra = _LOCAL.unpack(local)
    raw.seek(entry.offset + _LOCAL.size + n_name + n_extra)
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
    parts, n_bytes, left = [], 0, entry.compressed_size
    while left and n_bytes <= entry.size:
        block = raw.read(min(left, _READ_BYTES))
        if not block:
            raise _DamagedError
        left -= len(block)
        # One byte more than declared is enough to see that it is wrong.
        part = block if decompressor is None else decompressor.decompress(block, entry.size + 1 - n_bytes)
        parts.append(part)
        n_bytes += len(part)
    content = b"".join(parts)
    if len(content) != entry.size or zlib.crc32(content) != entry.checksum:
        raise _DamagedError
    return content
