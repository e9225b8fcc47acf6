"""Repository context: other files before the prompt, in the format that the model was trained with.

Qwen2.5-Coder (its technical report, section 3.2.2, and its examples):

    <|repo_name|>NAME\\n<|file_sep|>PATH\\nTEXT\\n<|file_sep|>PATH\\n<|fim_prefix|>prefix<|fim_suffix|>suffix<|fim_middle|>

StarCoder2 (arXiv 2402.19173, section 5.1), where the path of a file with a hole belongs to its prefix:

    <repo_name>NAME<file_sep>PATH\\nTEXT\\n<file_sep><fim_prefix>PATH\\nprefix<fim_suffix>suffix<fim_middle>

StarCoder (arXiv 2305.06161, section 5.1), where each file is a document:

    <reponame>NAME<filename>PATH\\nTEXT<|endoftext|><fim_prefix><reponame>NAME<filename>PATH\\nprefix<fim_suffix>suffix<fim_middle>

InCoder (section 3.1), where each file is a document between tags, which are text:

    <|endoftext|><| file ext=.py filename=PATH |>\\nTEXT\\n<|/ file |>\\n<|endoftext|><| file ext=.py filename=PATH |>\\nprefix…

For all other models the files are documents of plain text, with the ids of the end and beginning of a document between them:
the place where these models saw the beginning of another document in training. Comments with paths are not used, because
they were not trained.

The files come first in all formats, and do not depend on the text around the hole: while a user types, the prompt begins with
the same ids, and they are not read again.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import CausalMask
from codekiln.tokenizer.special_tokens import QWEN_REPOSITORY, STARCODER2_REPOSITORY, STARCODER_REPOSITORY

_ATTRIBUTE = re.compile(r"[^\s|=]+")  # what an attribute of InCoder's tags can hold


@dataclass(frozen=True)
class ContextFile:
    """Another file of a repository. `path` is relative to the repository."""

    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RepositoryContext:
    """Other files, the most relevant ones last, the path of the file with the hole, and the name of the repository.

    Names that are empty are left out of the prompt.
    """

    files: tuple[ContextFile, ...]
    path: str = ""
    repository: str = ""


@dataclass(frozen=True)
class ContextIds:
    """Ids before the prompt, which begin the sequence, and those before the prefix in the prompt. Without files, none."""

    before: tuple[int, ...] = ()
    header: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.header)


@dataclass(frozen=True)
class _Layout:
    """The parts of a format: the beginning, a file, and what follows the files before the prompt and before the prefix."""

    begin: list[int]
    file: Callable[[ContextFile], list[int]]
    end: list[int]
    header: list[int]


def context_ids(tokenizer: Tokenizer, context: RepositoryContext | None, max_tokens: int) -> ContextIds:
    """The last files that fit into `max_tokens`, and as many lines as fit of the file before them.

    Empty if there is no file, or no room for a line of one.
    """
    if context is None or not context.files:
        return ContextIds()
    layout = _layout(tokenizer, context)
    room = max_tokens - len(layout.begin) - len(layout.end) - len(layout.header)
    kept: list[int] = []
    for file in reversed(context.files):
        ids = layout.file(file)
        is_whole = len(ids) <= room
        if not is_whole:
            ids = _first_lines(tokenizer, layout, file, room)
        kept = ids + kept
        room -= len(ids)
        if not is_whole:
            break
    if not kept:
        return ContextIds()
    return ContextIds((*layout.begin, *kept, *layout.end), tuple(layout.header))


def _first_lines(tokenizer: Tokenizer, layout: _Layout, file: ContextFile, room: int) -> list[int]:
    """The ids of a file with as many of its first lines as fit; none if not one does."""
    n_tokens = room
    while n_tokens > 0:
        text = (
            tokenizer.decode_bytes(tokenizer.encode(file.text)[:n_tokens]).rpartition(b"\n")[0].decode(errors="replace")
        )
        if not text:
            return []
        ids = layout.file(replace(file, text=text + "\n"))
        if len(ids) <= room:
            return ids
        n_tokens -= len(ids) - room
    return []


def _layout(tokenizer: Tokenizer, context: RepositoryContext) -> _Layout:
    special = tokenizer.special_tokens
    path, repository = context.path, context.repository
    encode = tokenizer.encode
    if special.keys() >= set(QWEN_REPOSITORY):
        name_id, file_id = (special[token] for token in QWEN_REPOSITORY)
        begin = [name_id, *encode(f"{repository}\n")] if repository else []
        end = [file_id, *encode(f"{path}\n" if path else "")]
        return _Layout([*tokenizer.bos_ids, *begin], lambda file: [file_id, *encode(_with_path(file))], end, [])
    header = encode(f"{path}\n" if path else "")
    if special.keys() >= set(STARCODER2_REPOSITORY):
        name_id, file_id = (special[token] for token in STARCODER2_REPOSITORY)
        begin = [name_id, *encode(repository)] if repository else []
        return _Layout(
            [*tokenizer.bos_ids, *begin], lambda file: [file_id, *encode(_with_path(file))], [file_id], header
        )
    if special.keys() >= set(STARCODER_REPOSITORY):
        name_id, file_id = (special[token] for token in STARCODER_REPOSITORY)
        begin = [name_id, *encode(repository)] if repository else []
        header = [*begin, file_id, *header] if path else begin
        return _Layout(
            [], lambda file: [*begin, file_id, *encode(_with_path(file)), tokenizer.eos_id], tokenizer.bos_ids, header
        )
    is_tagged = isinstance(tokenizer.infill_format, CausalMask)
    bos_ids = tokenizer.bos_ids
    eos_ids = [] if tokenizer.eos_id in bos_ids else [tokenizer.eos_id]

    def document(file: ContextFile) -> list[int]:
        text = f"{_tag(file.path)}\n{file.text}\n<|/ file |>\n" if is_tagged else file.text
        return [*bos_ids, *tokenizer.encode_document(text), *eos_ids]

    return _Layout([], document, bos_ids, encode(f"{_tag(path)}\n") if is_tagged and path else [])


def _with_path(file: ContextFile) -> str:
    text = file.text if file.text.endswith("\n") else f"{file.text}\n"
    return f"{file.path}\n{text}" if file.path else text


def _tag(path: str) -> str:
    """InCoder's opening tag of a file. Values that a tag cannot hold are left out."""
    name = PurePosixPath(path)
    attributes = {"ext": name.suffix, "filename": name.name}
    return f"<| file{''.join(f' {k}={v}' for k, v in attributes.items() if _ATTRIBUTE.fullmatch(v))} |>"
