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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from codekiln.corpus.steps.step import Draft, Step

_TAGGED = re.compile(
    r"\A<\| (?P<element>\w+)(?P<begin>(?: \S+)*) \|>\n(?P<body>.*)\n<\|/ (?P=element)(?P<end>(?: \S+)*) \|>\n?\Z",
    re.DOTALL,
)
VALUE = re.compile(r"[^\s|=]+")  # what an attribute can hold


@dataclass(frozen=True, kw_only=True)
class FileTags(Step):
    """Puts each document between InCoder's file tags, with the attributes `ext` and `filename`.

    `ext` of a notebook has the language of its kernel: ".ipynb:python".

    Where each attribute is, and their order, depend on `seed` and the document only. In the paper, files of GitHub and GitLab
    also have `source`, and those of GitHub `dstars`; local folders know neither. It is the last step: others see the text
    without tags.
    """

    seed: int = 0

    def edit_document(self, draft: Draft) -> None:
        path = PurePosixPath(draft.path)
        ext = f"{path.suffix}:{draft.kernel}" if draft.kernel else path.suffix
        attributes = {"ext": ext, "filename": path.name}
        known = {name: value for name, value in attributes.items() if VALUE.fullmatch(value)}
        digest = hashlib.sha256(f"{self.seed}:{draft.path}:{draft.text}".encode(errors="surrogatepass")).digest()
        draft.text = render_tags(draft.text, known, np.random.default_rng(int.from_bytes(digest[:8])))


@dataclass(frozen=True, kw_only=True)
class LanguagePrefix(Step):
    """Puts the name of the language before each document, as a line of its own: "Python".

    CodeGen did so when it trained on several languages (section 2.3). Its format is not published; this one is Codekiln's.
    """

    def edit_document(self, draft: Draft) -> None:
        draft.text = f"{draft.language}\n{draft.text}"


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
