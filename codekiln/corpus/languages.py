"""The language of a file: the 28 of the InCoder paper (section 3.1), and prose. Its name decides, and sometimes the content."""

import re
from functools import cache
from posixpath import splitext

_EXTENSIONS = {
    "C": ".c .h",
    "C++": ".cc .cpp .cxx .hh .hpp .hxx",
    "CSS": ".css",
    "C#": ".cs",
    "Common Lisp": ".lisp .lsp .cl",
    "Dart": ".dart",
    "Forth": ".forth .fth .4th",
    "Go": ".go",
    "HTML": ".html .htm",
    "Haskell": ".hs",
    "Java": ".java",
    "JavaScript": ".js .mjs .cjs .jsx",
    "Julia": ".jl",
    "Jupyter": ".ipynb",
    "Kotlin": ".kt .kts",
    "Lua": ".lua",
    "Matlab": ".m",
    "PHP": ".php",
    "Perl": ".pl .pm",
    "Python": ".py",
    "R": ".r",
    "Ruby": ".rb",
    "Rust": ".rs",
    "SQL": ".sql",
    "Scala": ".scala",
    "Shell": ".sh .bash",
    "Swift": ".swift",
    "TypeScript": ".ts .tsx",
}
# Text files in code repositories, for training on natural language.
_PROSE_EXTENSIONS = {"Markdown": ".md .markdown", "reStructuredText": ".rst", "Text": ".txt"}
_LANGUAGE_OF = {
    extension: language
    for language, extensions in (_EXTENSIONS | _PROSE_EXTENSIONS).items()
    for extension in extensions.split()
}
LANGUAGES, PROSE = tuple(_EXTENSIONS), tuple(_PROSE_EXTENSIONS)
# Names of Linguist that differ from those above by more than upper and lower case, as data sets use them.
_KNOWN = {name.lower(): name for name in (*LANGUAGES, *PROSE)} | {
    "jupyter notebook": "Jupyter",
    "c-sharp": "C#",
    "cpp": "C++",
}

# Extensions that several languages share: the first expression that is in the beginning of the file decides. The languages on
# the right that are not among the 28 are read by no source. The signs are those of GitHub's Linguist (heuristics.yml).
_OBJECTIVE_C = r"^[ \t]*(@(interface|class|protocol|property|end|synchronised|selector|implementation)\b|#import\s)"
_CPP = (
    r"^[ \t]*(#[ \t]*include[ \t]*<(cstdint|string|vector|map|list|array|bitset|queue|stack|iostream|memory|algorithm|utility)>"
    r"|template[ \t]*<|class[ \t]+\w+[^;\n]*(\{|:|$)|namespace\b|using[ \t]+(namespace|\w+[ \t]*=)|(public|protected|private):)"
    r"|\bstd::\w|\b(constexpr|nullptr)\b|\bconst_cast<|\bstatic_cast<"
)
_AMBIGUOUS = {
    ".h": ((_OBJECTIVE_C, "Objective-C"), (_CPP, "C++")),
    ".m": (
        (_OBJECTIVE_C, "Objective-C"),
        (r"^[ \t]*:-", "Mercury"),
        (r"^[ \t]*\w+[ \t]*;[ \t]*\w+.*[\"']\^|^\w+\(.*\)[ \t]+;", "M"),
        (r"\*\)\s*$|^[ \t]*\(\*|\bModule\[|\w\[\w*_", "Mathematica"),
    ),
    ".pl": ((r"^[ \t]*:-|^[a-z]\w*(\([^()\n]*\))?[ \t]*:-", "Prolog"),),
    ".pm": ((r"^[ \t]*(use v6\b|unit (module|class)\b)", "Raku"), (r"^/\*[ \t]*XPM[ \t]*\*/", "X PixMap")),
    ".ts": ((r"\A\s*<\?xml|<TS\b|<!DOCTYPE TS>", "Qt translation"),),
    ".cs": ((r"^![\w\s]+methodsFor: ", "Smalltalk"),),
    ".cl": ((r"\b__kernel\b|\bkernel[ \t]+void\b|\b__global\b|\bget_global_id\(", "OpenCL"),),
    ".r": ((r"(?i)^[ \t]*rebol\b", "Rebol"),),
    ".php": ((r"\A\s*<\?hh\b", "Hack"),),
}
_RULES = {
    extension: tuple((re.compile(sign, re.MULTILINE), name) for sign, name in rules)
    for extension, rules in _AMBIGUOUS.items()
}
_SIGN_CHARACTERS = 20_000  # in which signs are looked for


def language_of(path: str) -> str | None:
    """The language of a file extension, in upper or lower case; None for unknown ones."""
    return _LANGUAGE_OF.get(splitext(path)[1].lower())


def known_language(name: str) -> str:
    """The language that a data set calls `name`, in the spelling of `LANGUAGES`; the same name for others.

    >>> known_language("Jupyter Notebook"), known_language("python"), known_language("Zig")
    ('Jupyter', 'Python', 'Zig')
    """
    return _KNOWN.get(name.lower(), name)


def may_be(path: str, languages: tuple[str, ...]) -> bool:
    """Whether a file may be in one of the languages, by its name: the content may decide."""
    return splitext(path)[1].lower() in _extensions_of(languages)


@cache
def _extensions_of(languages: tuple[str, ...]) -> frozenset[str]:
    """The extensions of files that may be in one of the languages."""
    return frozenset(
        extension
        for extension, language in _LANGUAGE_OF.items()
        if language in languages or any(name in languages for _, name in _RULES.get(extension, ()))
    )


def detect_language(path: str, text: str) -> str:
    """The language of a file by its extension, and by its content where several languages share one; "" for unknown ones."""
    beginning = text[:_SIGN_CHARACTERS]
    rules = _RULES.get(splitext(path)[1].lower(), ())
    return next((name for sign, name in rules if sign.search(beginning)), language_of(path) or "")
