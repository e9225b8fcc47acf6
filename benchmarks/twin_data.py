"""The data of the small twins: code, texts and threads that packages ship, in the forms of the papers' data sets.

    twin_data.py FOLDER

Reads the installed Python packages, Debian packages (if `apt-get` and `dpkg-deb` are here) and npm packages (if `npm` is here),
all under permissive licenses. Nothing of them is run. A part that cannot be had is reported and left out. FOLDER must be new or
empty, and gets about 20 MB:

    pile/           texts: documentation, in the files of The Pile. The name of a part is that of a package
    bigquery/       six languages, in the tables of BigQuery's export of GitHub
    bigpython/      Python: each folder is a package
    github/         more Python: each folder is a package
    gitlab/         JavaScript: each folder is a package
    stackexchange/  threads, in the form of the Stack Exchange dump
    packages.json   versions and licenses

The threads are not from Stack Exchange. They are docstrings of Python packages: the title is the summary, the question has the
signature, the answer is the rest of the docstring with its examples as code, and the last paragraph of a long docstring is a
comment. The score is the number of paragraphs. The dump can name Stack Exchange's licenses only, so that the documents claim
CC-BY-SA-4.0; the texts are under the licenses of their packages.

Each Python package is in one of bigquery/, bigpython/ and github/, chosen by the hash of its name. No part therefore holds out
Python that another part trains on.
"""

import argparse
import ast
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import quoteattr

import pyarrow as pa

from codekiln.corpus.languages import PROSE, detect_language, language_of
from codekiln.corpus.licenses import INCODER_LICENSES, PERMISSIVE, declared_license, is_permissive
from codekiln.corpus.sources.ignored import is_vendored
from codekiln.corpus.sources.installed import InstalledPackages

CODE = ("C", "C++", "Go", "Java", "JavaScript", "Python")
# Licenses as in their files; those of bundled libraries are included.
NPM_PACKAGES = {
    "argon2@0.45.1": "MIT AND CC0-1.0",
    "axios@1.21.1": "MIT",
    "chai@6.3.0": "MIT",
    "commander@14.0.3": "MIT",
    "cordova-android@15.1.0": "Apache-2.0",
    "cordova-plugin-camera@8.0.0": "Apache-2.0",
    "express@5.3.0": "MIT",
    "hiredis@0.5.0": "MIT AND BSD-3-Clause",
    "iltorb@2.4.5": "MIT",
    "keccak@3.0.4": "MIT",
    "leveldown@6.1.1": "MIT AND BSD-3-Clause",
    "lodash@4.18.1": "MIT",
    "mocha@12.0.3": "MIT",
    "node-expat@2.4.1": "MIT",
    "react-native-device-info@15.0.2": "MIT",
    "react-native-maps@1.29.11": "MIT",
    "react-native-svg@15.16.1": "MIT",
    "secp256k1@5.0.2": "MIT",
    "underscore@1.13.8": "MIT",
    "utp-native@2.5.3": "MIT",
}
DEBIAN_PACKAGES = {
    "golang-github-burntsushi-toml-dev": "MIT",
    "golang-github-gin-gonic-gin-dev": "MIT",
    "golang-github-google-go-cmp-dev": "BSD-3-Clause",
    "golang-github-gorilla-mux-dev": "BSD-3-Clause",
    "golang-github-pelletier-go-toml-dev": "MIT AND Apache-2.0",
    "golang-github-prometheus-client-golang-dev": "Apache-2.0",
    "golang-github-sirupsen-logrus-dev": "MIT",
    "golang-github-spf13-cobra-dev": "Apache-2.0",
    "golang-github-stretchr-testify-dev": "MIT",
    "libcli11-dev": "BSD-3-Clause",
    "nlohmann-json3-dev": "MIT",
}
PYTHON_DOCUMENTATION = "PSF-2.0"  # of python3.X-doc
MAX_FILE_BYTES = 60_000  # larger files are mostly data
PACKAGE_BYTES = 200_000  # of one package, for each language
PROSE_BYTES, LANGUAGE_BYTES, PYTHON_BYTES, THREAD_BYTES = 4_000_000, 700_000, 4_000_000, 1_500_000
COMMAND_SECONDS = 120
SITE = "docstrings.example"
DATE = "2020-01-01T00:00:00.000"


@dataclass(frozen=True)
class Text:
    """A file of a package, or the description of one."""

    package: str
    version: str
    license: str
    path: str
    language: str
    text: str

    @property
    def order(self) -> str:
        """A random order that depends on the name only."""
        return hash_of(f"{self.package}/{self.path}")


def hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


# What packages ship


def installed_texts() -> Iterator[Text]:
    """Code and texts of the installed Python packages, without the standard library."""
    for file in InstalledPackages(languages=(*CODE, *PROSE)).files():
        is_wanted = file.repository != "cpython" and is_permissive(file.license, PERMISSIVE)
        if is_wanted and file.problem is None and file.size <= MAX_FILE_BYTES:
            content = file.read()
            assert isinstance(content, bytes)
            yield from _decoded(file.repository, file.revision, file.license, file.path, content)


def installed_descriptions() -> Iterator[Text]:
    """The long descriptions of the installed packages: what their pages in the package index show."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        fields = dict(metadata.items())  # type: ignore[attr-defined]  # the library's types do not say it
        license = declared_license(
            fields.get("License-Expression"), fields.get("License"), metadata.get_all("Classifier") or []
        )
        text = str(metadata.get_payload() or fields.get("Description") or "")  # type: ignore[attr-defined]
        if is_permissive(license, PERMISSIVE) and len(text) > 200:
            yield Text(metadata["Name"].lower(), metadata["Version"], license, "description.md", "Markdown", text)


def npm_texts(missing: list[str]) -> Iterator[Text]:
    for name, license in NPM_PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            if run_command(["npm", "pack", "--silent", name], folder):
                package, _, version = name.rpartition("@")
                content = next(Path(folder).glob("*.tgz")).read_bytes()
                yield from archive_texts(package, version, license, content)
            else:
                missing.append(name)


def debian_texts(missing: list[str]) -> Iterator[Text]:
    """Files of Debian packages; those of Python's documentation are a package for each of its parts."""
    documentation = f"python{sys.version_info.major}.{sys.version_info.minor}-doc"
    for name, license in (*DEBIAN_PACKAGES.items(), (documentation, PYTHON_DOCUMENTATION)):
        with tempfile.TemporaryDirectory() as folder:
            if not run_command(["apt-get", "download", "-qq", name], folder):
                missing.append(name)
                continue
            package = next(Path(folder).glob("*.deb"))
            version = package.name.split("_")[1]
            command = ["dpkg-deb", "--fsys-tarfile", str(package)]
            content = subprocess.run(command, capture_output=True, check=True, timeout=COMMAND_SECONDS).stdout
        for text in archive_texts(name, version, license, content):
            if name != documentation:
                yield text
            elif match := re.search(r"/_sources/(\w[\w-]*)/.+\.rst\.txt$", text.path):
                yield Text(f"{name}-{match[1]}", version, license, text.path, "reStructuredText", text.text)


def archive_texts(package: str, version: str, license: str, archive: bytes) -> Iterator[Text]:
    """The regular files of a tar archive, read in memory: nothing is unpacked."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            name = PurePosixPath(member.name)
            is_code = language_of(name.name) is not None and not any(is_vendored(part) for part in name.parts)
            if is_code and member.isfile() and member.size <= MAX_FILE_BYTES:
                content = members.extractfile(member)
                assert content is not None
                yield from _decoded(package, version, license, name.as_posix(), content.read())


def _decoded(package: str, version: str, license: str, path: str, content: bytes) -> Iterator[Text]:
    name = PurePosixPath(path)
    is_code_of_others = any(is_vendored(part) or part in ("_vendor", "extern", "externals") for part in name.parts)
    is_notice = re.match(r"(?i)(un)?licen[cs]e|copying|notice|third", name.name) is not None
    if is_code_of_others or is_notice or ".min." in name.name or "\0" in path:
        return
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    if (language := detect_language(path, text)) in (*CODE, *PROSE) and len(text) > 100:
        yield Text(package, version, license, path, language, text)


def run_command(command: Sequence[str], folder: str) -> bool:
    """Whether a command ran without an error, in a folder."""
    if shutil.which(command[0]) is None:
        return False
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def select(texts: Iterable[Text], n_bytes: int) -> list[Text]:
    """Texts of about `n_bytes`: packages in a random order, at most `PACKAGE_BYTES` of each, each content once."""
    packages: dict[str, list[Text]] = defaultdict(list)
    for text in texts:
        packages[text.package].append(text)
    chosen: list[Text] = []
    seen = set()
    for package in sorted(packages, key=hash_of):
        n_taken = 0
        for text in sorted(packages[package], key=lambda text: text.order):
            size, content = len(text.text.encode()), hash_of(text.text)
            if content not in seen and n_taken + size <= PACKAGE_BYTES and n_bytes > 0:
                chosen.append(text)
                seen.add(content)
                n_taken += size
                n_bytes -= size
    return chosen


# The forms of the data sets


def write_pile(folder: Path, texts: Iterable[Text]) -> None:
    rows = [{"text": text.text, "meta": {"pile_set_name": text.package}} for text in texts]
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "00.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))


def write_export(folder: Path, texts: Iterable[Text]) -> None:
    """Each package is split into 16 repositories, by the hashes of its files.

    Validation holds out whole repositories. Some languages have four packages, so that it would hold out one language only.
    """
    tables: dict[str, list[dict[str, object]]] = {"files": [], "contents": [], "licenses": []}
    licenses: dict[str, str] = {}
    for text in texts:
        repository, number = f"{text.package}/part-{text.order[0]}", hash_of(text.text)[:40]
        licenses[repository] = text.license
        tables["files"].append({"repo_name": repository, "path": text.path, "id": number, "mode": 33188})
        tables["contents"].append({"id": number, "content": text.text, "binary": False})
    tables["licenses"] = [{"repo_name": name, "license": license} for name, license in sorted(licenses.items())]
    for name, rows in tables.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "0.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_repositories(folder: Path, texts: Iterable[Text]) -> None:
    """Each package is a folder, with a pyproject.toml that declares its license."""
    for text in texts:
        name = PurePosixPath(text.path)
        if name.is_absolute() or ".." in name.parts:
            continue
        repository = folder / text.package.replace("/", "-")
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.text, encoding="utf-8", newline="")
        (repository / "pyproject.toml").write_text(
            f"[project]\nlicense = {json.dumps(text.license)}\n", encoding="utf-8"
        )


def write_threads(folder: Path, texts: Iterable[Text]) -> int:
    """Posts.xml and Comments.xml of the docstrings of Python files. Returns the number of threads."""
    folder.mkdir(parents=True)
    posts: list[str] = []
    comments: list[str] = []
    n_bytes = n_threads = 0
    for text in texts:
        for title, question, paragraphs in docstrings(text):
            note = paragraphs.pop() if len(paragraphs) > 3 else None
            number, score = 2 * n_threads + 1, len(paragraphs)
            body = "".join(as_html(each) for each in paragraphs)
            common = {"Score": score, "CreationDate": DATE, "ContentLicense": "CC BY-SA 4.0"}
            tags = f"<python><{re.sub(r'[^a-z0-9.-]+', '-', text.package.lower())}>"
            posts += [
                row(Id=number, PostTypeId=1, Title=title, Tags=tags, Body=question, **common),
                row(Id=number + 1, PostTypeId=2, ParentId=number, Body=body, **common),
            ]
            if note is not None:
                fields = {"CreationDate": DATE, "ContentLicense": "CC BY-SA 4.0"}
                comments.append(row(Id=len(comments) + 1, PostId=number + 1, Text=" ".join(note.split()), **fields))
            n_threads += 1
            n_bytes += len(title) + len(question) + len(body)
        if n_bytes >= THREAD_BYTES:
            break
    for name, rows in (("Posts", posts), ("Comments", comments)):
        head = f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<{name.lower()}>\n'
        (folder / f"{name}.xml").write_text(f"{head}{''.join(rows)}</{name.lower()}>", encoding="utf-8", newline="")
    return n_threads


def docstrings(text: Text) -> Iterator[tuple[str, str, list[str]]]:
    """Title, question and paragraphs of the answer, from the docstrings of functions that have an explanation."""
    try:
        module = ast.parse(text.text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            summary, *paragraphs = (ast.get_docstring(node) or "").split("\n\n")
            title = " ".join(summary.split())
            if paragraphs and 10 < len(title) < 150:
                code = f"<pre><code>{escape(f'def {node.name}({ast.unparse(node.args)}):')}\n</code></pre>\n"
                yield title, f"<p>{escape(title)}</p>\n{code}", paragraphs


def as_html(paragraph: str) -> str:
    """A paragraph, or code if its lines are indented or an example of the interpreter."""
    is_code = paragraph.startswith((">>>", "    "))
    return f"<pre><code>{escape(paragraph)}\n</code></pre>\n" if is_code else f"<p>{escape(paragraph)}</p>\n"


def row(**attributes: object) -> str:
    """A line of the dump. Characters that XML cannot have are left out."""
    allowed = {
        name: re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", str(value))
        for name, value in attributes.items()
    }
    escaped = (f"{name}={quoteattr(value, {chr(10): '&#xA;', chr(13): '&#xD;'})}" for name, value in allowed.items())
    return f"  <row {' '.join(escaped)} />\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} exists and is not empty: name a new folder")
    missing: list[str] = []
    installed = list(installed_texts())
    archives = [*npm_texts(missing), *debian_texts(missing)]
    python: dict[str, list[Text]] = {"bigquery": [], "bigpython": [], "github": []}
    for text in installed:
        if text.language == "Python" and is_permissive(text.license, INCODER_LICENSES):
            python[list(python)[int(hash_of(text.package)[:8], 16) % 3]].append(text)
    others = [text for text in (*archives, *installed) if text.language in CODE and text.language != "Python"]
    export = select(python["bigquery"], LANGUAGE_BYTES)
    for language in CODE[:-1]:
        export += select((text for text in others if text.language == language), LANGUAGE_BYTES)
    in_export = {text.package for text in export}
    script = (text for text in others if text.language == "JavaScript" and text.package not in in_export)
    # Plain text is mostly data and licenses.
    prose = [text for text in (*archives, *installed) if text.language in PROSE and text.language != "Text"]
    parts = {
        "pile": select((*prose, *installed_descriptions()), PROSE_BYTES),
        "bigquery": export,
        "bigpython": select(python["bigpython"], PYTHON_BYTES),
        "github": select(python["github"], PYTHON_BYTES),
        "gitlab": select(script, LANGUAGE_BYTES),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_pile(folder / "pile", parts["pile"])
    write_export(folder / "bigquery", parts["bigquery"])
    for name in ("bigpython", "github", "gitlab"):
        write_repositories(folder / name, parts[name])
    n_threads = write_threads(folder / "stackexchange" / SITE, parts["bigpython"])
    versions = {
        name: sorted({(text.package, text.version, text.license) for text in texts}) for name, texts in parts.items()
    }
    (folder / "packages.json").write_text(json.dumps(versions, indent=1), encoding="utf-8")
    for name, texts in parts.items():
        languages: dict[str, int] = defaultdict(int)
        for text in texts:
            languages[text.language] += len(text.text.encode())
        sizes = ", ".join(f"{language} {size / 1e6:.2f} MB" for language, size in sorted(languages.items()))
        print(f"{name}: {len({text.package for text in texts})} packages, {len(texts)} files: {sizes}")
    print(f"stackexchange: {n_threads} threads")
    if missing:
        print(f"not available here, and left out: {', '.join(missing)}")


if __name__ == "__main__":
    main()
