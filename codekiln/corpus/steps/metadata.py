"""Metadata in the text of documents: InCoder's tags (section 3.1 and appendix A.2), and CodeGen's name of the language.

    <| file ext=.py |>
    def count_words(filename):
        …
    <|/ file filename=string_utils.py |>

Each attribute is in the opening tag with probability one half, and otherwise in the closing one, so that a model learns to use
an attribute that it is given and to predict one that it is not.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.compute as pc

from codekiln.corpus.bins import bin_of, percentile_bins
from codekiln.corpus.scratch import Scratch, cached_by_file
from codekiln.corpus.sources.files import STACK_EXCHANGE
from codekiln.corpus.steps.step import Step
from codekiln.files import read_json, write_json

_TAGGED = re.compile(
    r"\A<\| (?P<element>\w+)(?P<begin>(?: \S+)*) \|>\n(?P<body>.*)\n<\|/ (?P=element)(?P<end>(?: \S+)*) \|>\n?\Z",
    re.DOTALL,
)
GITHUB, GITLAB = "github", "gitlab"
VALUE = re.compile(r"[^\s|=]+")  # what an attribute can hold


@dataclass(frozen=True, kw_only=True)
class FileTags(Step):
    """Puts each file between InCoder's tags, with the attributes `ext`, `filename`, `source` and `dstars`.

    `ext` of a notebook has the language of its kernel: ".ipynb:python". `source` is that of files from GitHub and GitLab, and
    `dstars` the percentile bin of the stars of a repository on GitHub, where they are known. Where each attribute is, and their
    order, depend on `seed` and the document only. Steps see the text without tags. Threads of Stack Exchange have their own.
    """

    seed: int = 0

    def check_corpus(self, scratch: Scratch) -> None:
        stars: dict[str, int] = {}
        for unit in range(scratch.n_units):
            for batch in scratch.batches(unit, ["source", "repository", "stars"]):
                is_known = pc.and_(pc.is_valid(batch.column("stars")), pc.equal(batch.column("source"), GITHUB))
                known = batch.filter(is_known)
                stars.update(
                    zip(known.column("repository").to_pylist(), known.column("stars").to_pylist(), strict=True)
                )
        write_json(_edges_path(scratch), {"edges": percentile_bins(Counter(stars.values()))})

    def finish_document(self, document: Mapping[str, Any], text: str, scratch: Scratch) -> str:
        source, stars, kernel = (document[name] for name in ("source", "stars", "kernel"))
        if source == STACK_EXCHANGE:
            return text
        path = PurePosixPath(document["path"])
        attributes = {"ext": f"{path.suffix}:{kernel}" if kernel else path.suffix, "filename": path.name}
        if source in (GITHUB, GITLAB):
            attributes["source"] = source
        if source == GITHUB and stars is not None:
            attributes["dstars"] = str(bin_of(stars, _edges(_edges_path(scratch))))
        known = {name: value for name, value in attributes.items() if VALUE.fullmatch(value)}
        digest = hashlib.sha256(f"{self.seed}:{path}:{text}".encode(errors="surrogatepass")).digest()
        return render_tags(text, known, np.random.default_rng(int.from_bytes(digest[:8])))


def _edges_path(scratch: Scratch) -> Path:
    return scratch.folder / "star-bins.json"


@cached_by_file(maxsize=1)
def _edges(path: Path) -> tuple[int, ...]:
    return tuple(read_json(path)["edges"])


@dataclass(frozen=True, kw_only=True)
class LanguagePrefix(Step):
    """Puts the name of the language before each document, as a line of its own: "Python".

    CodeGen did so when it trained on several languages (section 2.3). Its format is not published; this one is Codekiln's.
    """

    def finish_document(self, document: Mapping[str, Any], text: str, scratch: Scratch) -> str:
        return f"{document['language']}\n{text}"


def render_tags(text: str, attributes: Mapping[str, str], rng: np.random.Generator, element: str = "file") -> str:
    """The text between an opening and a closing tag, each attribute in one of them. `element` is the first word of both."""
    names = list(attributes)
    order = [names[at] for at in rng.permutation(len(names))]
    is_first = rng.random(len(names)) < 0.5
    begin, end = (
        "".join(f" {name}={attributes[name]}" for name, first in zip(order, is_first, strict=True) if first == wanted)
        for wanted in (True, False)
    )
    return f"<| {element}{begin} |>\n{text}\n<|/ {element}{end} |>\n"


def parse_tags(text: str, element: str = "file") -> tuple[str, dict[str, str]]:
    """The inverse of `render_tags`: the text inside, and the attributes of both tags. Text without these tags has none."""
    match = _TAGGED.match(text)
    if match is None or match["element"] != element:
        return text, {}
    pairs = (part.split("=", 1) for part in (match["begin"] + match["end"]).split())
    return match["body"], {pair[0]: pair[-1] for pair in pairs}
