"""The language of a file by its extension: the 28 of the InCoder paper (section 3.1), and prose."""

from pathlib import PurePosixPath

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


def language_of(path: str) -> str | None:
    """The language of a file extension, in upper or lower case; None for unknown ones."""
    return _LANGUAGE_OF.get(PurePosixPath(path).suffix.lower())
