"""Which language a file is in, by its ending: the 28 of the InCoder paper (section 3.1), and prose."""

from pathlib import PurePosixPath

_ENDINGS = {
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
# What people write beside code, for training on natural language.
_PROSE_ENDINGS = {"Markdown": ".md .markdown", "reStructuredText": ".rst", "Text": ".txt"}
_LANGUAGE_OF = {
    ending: language for language, endings in (_ENDINGS | _PROSE_ENDINGS).items() for ending in endings.split()
}
LANGUAGES, PROSE = tuple(_ENDINGS), tuple(_PROSE_ENDINGS)


def language_of(path: str) -> str | None:
    """The language of a file's ending, in any case; None for the others."""
    return _LANGUAGE_OF.get(PurePosixPath(path).suffix.lower())
