"""Contents that a data set names but does not hold: one compressed object per id, in a bucket or a folder."""

import re
import zlib
from dataclasses import dataclass

from codekiln.corpus.decoding import decode_as
from codekiln.corpus.sources.data_files import read_remote
from codekiln.corpus.sources.files import CannotRead, Reader

_ID = re.compile(r"[0-9a-f]{40}")  # SHA-1 of git
BAD_ID = "blob id of another form"


@dataclass(frozen=True, kw_only=True)
class BlobStore:
    """`url` is a URL of fsspec. The object of a blob is `url/ID`, compressed by gzip.

    The default is the bucket of Software Heritage, which allows reading with an account of AWS (package `s3fs`).
    """

    url: str = "s3://softwareheritage/content"

    def reader(self, blob_id: bytes | str, encoding: str | None, max_bytes: int) -> tuple[Reader, str | None]:
        """The reader of a blob, and None; or the problem of its id."""
        if not isinstance(blob_id, str) or not _ID.fullmatch(blob_id):
            return CannotRead(), BAD_ID
        return ReadBlob(f"{self.url.rstrip('/')}/{blob_id}", encoding, max_bytes), None


@dataclass(frozen=True)
class ReadBlob:
    """Reads at most one byte more than `max_bytes`, however small the object is.

    Raises OSError if there is no such object or it is damaged, UndecodableError if it is not text in its encoding, and
    InvalidFileError if the store cannot be reached.
    """

    url: str
    encoding: str | None
    max_bytes: int

    def __call__(self) -> bytes | str:
        packed = read_remote(self.url, self.max_bytes + 2**20)
        decompressor = zlib.decompressobj(zlib.MAX_WBITS + 16)
        try:
            content = decompressor.decompress(packed, self.max_bytes + 1)
        except zlib.error as error:
            raise OSError(f"{self.url} is damaged") from error
        if len(content) > self.max_bytes:
            return content
        if not decompressor.eof:
            raise OSError(f"{self.url} is truncated")
        return decode_as(content, self.encoding) if self.encoding is not None else content
