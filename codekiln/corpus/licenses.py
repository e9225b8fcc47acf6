"""The license that a repository declares, and whether it is permissive."""

import re
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from codekiln.extras import import_optional

UNKNOWN = "unknown"

# The InCoder paper (section 3.1) keeps MIT, Apache-2.0, BSD-2-Clause and BSD-3-Clause.
INCODER_LICENSES = frozenset({"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause"})

# InCoder also has StackOverflow, whose posts are under these.
STACK_EXCHANGE_LICENSES = frozenset({"CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0"})

# Codekiln's set: licenses that require no more than a notice. LicenseRef-BSD is a BSD license with an unknown number of
# clauses.
PERMISSIVE = INCODER_LICENSES | {
    "0BSD",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "HPND",
    "ISC",
    "LicenseRef-BSD",
    "MIT-0",
    "MIT-CMU",
    "NCSA",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "WTFPL",
    "Zlib",
    "ZPL-2.1",
}

# License texts that Python packages use instead of SPDX expressions, in lower case and without punctuation.
_FREE_TEXT = {
    "mit": "MIT",
    "mit license": "MIT",
    "the mit license": "MIT",
    "expat": "MIT",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2 0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2 0": "Apache-2.0",
    "apache 2 0 license": "Apache-2.0",
    "apache license version 2 0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2 0": "Apache-2.0",
    "asl 2": "Apache-2.0",
    "bsd": "LicenseRef-BSD",
    "bsd license": "LicenseRef-BSD",
    "modified bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "bsd 3 clause license": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "3 clause bsd license": "BSD-3-Clause",
    "bsd 2 clause": "BSD-2-Clause",
    "bsd 2 clause license": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "isc license": "ISC",
    "isc license iscl": "ISC",
    "psf": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "unlicense": "Unlicense",
    "the unlicense": "Unlicense",
    "the unlicense unlicense": "Unlicense",
    "zlib libpng license": "Zlib",
    "boost software license 1 0 bsl 1 0": "BSL-1.0",
    "mozilla public license 2 0 mpl 2 0": "MPL-2.0",
    "gnu general public license gpl": "GPL-1.0-or-later",
    "gnu general public license v2 gplv2": "GPL-2.0-only",
    "gnu general public license v2 or later gplv2": "GPL-2.0-or-later",
    "gnu general public license v3 gplv3": "GPL-3.0-only",
    "gnu general public license v3 or later gplv3": "GPL-3.0-or-later",
    "gnu lesser general public license v2 or later lgplv2": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 lgplv3": "LGPL-3.0-only",
    "gnu lesser general public license v3 or later lgplv3": "LGPL-3.0-or-later",
}


def declared_license(expression: str | None, free_text: str | None, classifiers: Sequence[str]) -> str:
    """The SPDX expression that the metadata of a package declares, or `UNKNOWN`.

    An expression (PEP 639) has priority, then the classifiers, then the free text. Several classifiers are joined with AND,
    because they do not say whether one may choose. A classifier that is not recognized makes the license unknown.
    """
    if expression and (known := _spdx(expression)):
        return known
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    named = [name for name in named if name not in ("OSI Approved", "DFSG approved")]
    understood = [_FREE_TEXT.get(_plain(name)) for name in named]
    if named and None not in understood:
        # "BSD License" does not name the clauses; the free text may.
        precise = _spdx(free_text or "") or _FREE_TEXT.get(_plain(free_text or ""))
        if understood == ["LicenseRef-BSD"] and precise and precise.startswith("BSD-"):
            return precise
        return " AND ".join(sorted({name for name in understood if name}))
    if named or not free_text:
        return UNKNOWN
    return _spdx(free_text) or _FREE_TEXT.get(_plain(free_text)) or UNKNOWN


def header_license(text: str) -> str:
    """The SPDX expression in the line of a header, without the end of its comment, or `UNKNOWN`.

    >>> header_license("MIT OR Apache-2.0 */")
    'MIT OR Apache-2.0'
    """
    plain = re.match(r"[A-Za-z0-9.+() \t:-]*", text)
    return _spdx(re.sub(r"-->?$|--$", "", plain[0].strip()).strip()) or UNKNOWN if plain else UNKNOWN


@lru_cache(maxsize=4096)
def is_permissive(expression: str, allowed: frozenset[str] = PERMISSIVE) -> bool:
    """Whether the code can be used under allowed licenses only: every part of an AND, one part of an OR.

    >>> is_permissive("MIT AND GPL-3.0-only"), is_permissive("MIT OR GPL-3.0-only")
    (False, True)
    """
    licensing = _licensing()

    def allows(node: Any) -> bool:
        if isinstance(node, licensing.AND):
            return all(allows(part) for part in node.args)
        if isinstance(node, licensing.OR):
            return any(allows(part) for part in node.args)
        return str(node) in allowed

    try:
        parsed = licensing.parse(expression)
    except _library().ExpressionError:
        return False
    return parsed is not None and allows(parsed)


def _spdx(text: str) -> str | None:
    """The expression in canonical spelling if every name in it is an SPDX license, else None."""
    if len(text) > 500:
        return None
    try:
        parsed = _licensing().parse(text, validate=True)
    except (_library().ExpressionError, TypeError):
        return None
    return str(parsed) if parsed is not None else None


@lru_cache(maxsize=1)
def _licensing() -> Any:
    return _library().get_spdx_licensing()


def _library() -> ModuleType:
    """Loaded when the first license is parsed: recipes name sets of licenses without it."""
    return import_optional("license_expression", "corpus")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
