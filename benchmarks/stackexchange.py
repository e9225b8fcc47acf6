"""The Stack Exchange dump: megabytes per second and peak memory on a generated dump.

    stackexchange.py [--megabytes N] [--partition-megabytes N] [--archive]

The dump has posts of 200 to 4,000 characters of HTML with code, links and lists, and as many comments as posts. Each phase is
timed in processor seconds: the rows are sorted by thread, then all threads are rendered as text. For comparison, in the same
run: `xml.etree` reads both files and does nothing with the rows, and `html.parser` reads the bodies of a tenth of the posts and
collects their text only. With --archive, the dump is packed as 7z first.
"""

import argparse
import random
import resource
import tempfile
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from xml.sax.saxutils import quoteattr

import py7zr
from rich.console import Console
from rich.table import Table

from codekiln.corpus.html_text import html_to_text
from codekiln.corpus.sources.stackexchange import COMMENTS, POSTS, StackExchange

DATE = "2020-01-01T00:00:00.000"


def body(rng: random.Random, words: list[str]) -> str:
    def sentence(n: int) -> str:
        return " ".join(rng.choices(words, k=n))

    parts = []
    for _ in range(rng.randrange(1, 6)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(
                f'<p>{sentence(25)} <code>{sentence(1)}</code> <a href="https://example.com">{sentence(3)}</a> &amp; so.</p>'
            )
        elif kind < 0.85:
            code = "\n".join(
                f"    {sentence(2)} = {sentence(3)} &lt; {rng.random()}" for _ in range(rng.randrange(2, 15))
            )
            parts.append(f"<pre><code>{code}\n</code></pre>")
        else:
            parts.append("<ul>\n" + "".join(f"<li>{sentence(8)}</li>\n" for _ in range(4)) + "</ul>")
    return "\n\n".join(parts)


def write_dump(folder: Path, n_bytes: int) -> None:
    """A third of the posts are questions. Answers and comments belong to any earlier post or question."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu_", k=rng.randrange(2, 10))) for _ in range(5000)]
    questions, number = [1], 1
    with (
        (folder / POSTS).open("w", encoding="utf-8") as posts,
        (folder / COMMENTS).open("w", encoding="utf-8") as comments,
    ):
        posts.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        comments.write('<?xml version="1.0" encoding="utf-8"?>\n<comments>\n')
        while posts.tell() + comments.tell() < n_bytes:
            is_question = number == 1 or rng.random() < 1 / 3
            kind = (
                f'PostTypeId="1" Title="{" ".join(rng.choices(words, k=8))}" Tags="|python|pandas|"'
                if is_question
                else f'PostTypeId="2" ParentId="{rng.choice(questions)}"'
            )
            score = int(rng.expovariate(0.3))
            text = quoteattr(body(rng, words), {"\n": "&#xA;"})
            posts.write(f'  <row Id="{number}" {kind} CreationDate="{DATE}" Score="{score}" Body={text} />\n')
            text = " ".join(rng.choices(words, k=20))
            comments.write(
                f'  <row Id="{number}" PostId="{rng.randrange(1, number + 1)}" CreationDate="{DATE}" Text="{text}" />\n'
            )
            if is_question:
                questions.append(number)
            number += 1
        posts.write("</posts>")
        comments.write("</comments>")


def pack(folder: Path) -> None:
    for name in (POSTS, COMMENTS):
        path = folder / name
        with py7zr.SevenZipFile(
            path.with_suffix(".7z"), "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]
        ) as archive:
            archive.write(path, name)


def read_with_etree(folder: Path) -> list[str]:
    """The bodies of a tenth of the posts."""
    bodies = []
    for name in (POSTS, COMMENTS):
        for _, element in ET.iterparse(folder / name):  # noqa: S314
            if name == POSTS and element.get("Id", "").endswith("7"):
                bodies.append(element.get("Body", ""))
            element.clear()
    return bodies


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--partition-megabytes", type=int, default=16)
    parser.add_argument("--archive", action="store_true")
    options = parser.parse_args()
    rows: list[tuple[str, float, float]] = []

    def measure(name: str, n_bytes: int, start: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((name, n_bytes / 1e6 / (time.process_time() - start), peak))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "generated.com")
        folder.mkdir()
        write_dump(folder, options.megabytes * 10**6)
        n_bytes = sum((folder / name).stat().st_size for name in (POSTS, COMMENTS))
        plain = folder
        if options.archive:
            pack(folder)
            plain = Path(temporary, "plain")
            plain.mkdir()
            for name in (POSTS, COMMENTS):
                (folder / name).rename(plain / name)
        scratch = Path(temporary, "scratch")
        source = StackExchange(folder=folder, partition_bytes=options.partition_megabytes * 2**20)
        rows.append(("before", 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        start = time.process_time()
        units = list(source.units(scratch))
        measure("rows sorted by thread", n_bytes, start)
        scratch_bytes = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        start, n_threads, n_text_bytes = time.process_time(), 0, 0
        for unit in units:
            for file in unit.files():
                if file.problem is None:
                    n_threads += 1
                    n_text_bytes += len(file.read())
        measure("threads rendered", n_bytes, start)
        start = time.process_time()
        bodies = read_with_etree(plain)
        measure("xml.etree, nothing done with the rows", n_bytes, start)
        n_body_bytes = sum(map(len, bodies))
        start = time.process_time()
        for html in bodies:
            html_to_text(html, is_code_marked=True)
        measure("html_to_text, bytes of HTML", n_body_bytes, start)
        start = time.process_time()
        for html in bodies:
            _Collector().feed(html)
        measure("html.parser, bytes of HTML", n_body_bytes, start)
    table = Table(title=f"{n_bytes / 1e6:.0f} MB of XML, {n_threads:,} threads, {len(units)} partitions")
    for column in ("", "MB per processor second", "peak memory so far, MB"):
        table.add_column(column)
    for name, rate, peak in rows:
        table.add_row(name, f"{rate:.1f}" if rate else "", f"{peak:.0f}")
    console = Console()
    console.print(table)
    console.print(f"text: {n_text_bytes / 1e6:.0f} MB; partitions on the disk: {scratch_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
