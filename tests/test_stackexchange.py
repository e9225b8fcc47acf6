"""The Stack Exchange dump: threads by hand and by brute force, partitions, archives, and hostile input."""

import json
import pickle
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import py7zr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codekiln.corpus.bins import bin_of, percentile_bins
from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.html_text import html_to_text
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources import dump_files, partitions, stackexchange
from codekiln.corpus.sources.dump_files import ArchiveMember
from codekiln.corpus.sources.dump_rows import DAMAGED_ROW, LONG_ROW, MAX_ROW_BYTES, TRUNCATED, DumpRow, RowReader
from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.sources.stackexchange import (
    DELETED,
    NO_BODY,
    OTHER_POST,
    StackExchange,
    find_sites,
)
from codekiln.corpus.sources.threads import DUPLICATE_ROW, NO_POST, NO_QUESTION
from codekiln.corpus.steps.metadata import parse_tags
from codekiln.errors import CorruptFileError, InvalidFileError, MissingFileError, OutputExistsError

ELEMENT = re.compile(r"<\| (q|a|c)(?: [^\n]*)? \|>\n.*?\n<\|/ \1(?: [^\n]*)? \|>\n", re.DOTALL)


def row(**attributes: object) -> str:
    """A line as the dump has it: line ends are escaped, and so are the five characters of XML."""
    escaped = (
        f"{name}={quoteattr(str(value), {chr(10): '&#xA;', chr(13): '&#xD;'})}" for name, value in attributes.items()
    )
    return f"  <row {' '.join(escaped)} />\n"


def question(number: int, **attributes: object) -> str:
    values = {"Score": 0, "CreationDate": "2020-01-01T00:00:00.000", "Title": "T", "Tags": "", "Body": "<p>q</p>"}
    return row(Id=number, PostTypeId=1, **values | attributes)


def answer(number: int, parent: int, **attributes: object) -> str:
    values = {"Score": 0, "CreationDate": "2020-01-01T00:00:00.000", "Body": "<p>a</p>"}
    return row(Id=number, PostTypeId=2, ParentId=parent, **values | attributes)


def comment(number: int, post: int, **attributes: object) -> str:
    return row(Id=number, PostId=post, **{"CreationDate": "2020-01-01T00:00:00.000", "Text": "c"} | attributes)


def xml(root: str, rows: str) -> str:
    return f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<{root}>\n{rows}</{root}>'


def write_site(folder: Path, posts: str, comments: str = comment(1, 1)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_text(xml("posts", posts), encoding="utf-8", newline="")
    (folder / "Comments.xml").write_text(xml("comments", comments), encoding="utf-8", newline="")
    return folder


def files_of(source: StackExchange) -> list[SourceFile]:
    return [file for unit in source.units(source.folder.parent / "scratch") for file in unit.files()]


def read(file: SourceFile) -> str:
    text = file.read()
    assert isinstance(text, str)
    return text


def texts_of(folder: Path) -> dict[str, str]:
    return {file.path: read(file) for file in files_of(StackExchange(folder=folder)) if file.problem is None}


def problems_of(folder: Path) -> dict[str, str]:
    return {file.path: file.problem for file in files_of(StackExchange(folder=folder)) if file.problem is not None}


def elements_of(text: str) -> list[tuple[str, str, dict[str, str]]]:
    """Kind, text inside and attributes of the elements of a thread. They fill the text."""
    found = list(ELEMENT.finditer(text))
    assert "".join(match[0] for match in found) == text
    return [(match[1], *parse_tags(match[0], match[1])) for match in found]


BODY = """<p>I <strong>tried</strong> <code>len(x)</code> &amp; <a href="https://example.com">this</a>:</p>

<pre class="lang-py"><code>if a &lt; b:

\tprint("&#252;")
</code></pre>

<ul>
<li>one<br>two</li>
<li>three</li>
</ul>
<img src="x.png" alt="no">
"""


def test_threads_have_the_layout_of_the_paper(tmp_path: Path) -> None:
    posts = (
        question(
            4,
            Score=20,
            Title='Is "a" < b & c?',
            Tags="<python><c++>",
            Body=BODY,
            CreationDate="2008-08-01T01:02:03.000",
        )
        + question(9, Tags="|r|", Title="  Other\n title ", CreationDate="2023-06-01T00:00:00.000", Score=-3)
        + answer(6, 4, Score=1, Body="<p>low</p>", CreationDate="2015-01-01T00:00:00.000")
        + answer(8, 4, Score=7, Body="<pre><code>x</code></pre>", CreationDate="2019-01-01T00:00:00.000")
        + answer(7, 4, Score=7, Body="plain")
    )
    comments = (
        comment(30, 8, Text="Use `List<T>`, [see](https://example.com)")
        + comment(12, 4, Text="second\nline")
        + comment(11, 4, Text="first", CreationDate="2024-04-02T03:04:05.000")
    )
    found = {
        file.path: file for file in files_of(StackExchange(folder=write_site(tmp_path / "so.com", posts, comments)))
    }
    assert list(found) == ["questions/4", "questions/9"]
    four, nine = found["questions/4"], found["questions/9"]
    assert {file.source for file in found.values()} == {"stackexchange"}
    assert {(file.repository, file.revision) for file in found.values()} == {("so.com", "2024-04-02")}
    assert four.license == "CC-BY-SA-2.5 AND CC-BY-SA-3.0 AND CC-BY-SA-4.0" and nine.license == "CC-BY-SA-4.0"
    body = 'I tried len(x) & this:\n<code>\nif a < b:\n\n\tprint("ü")\n</code>\none\ntwo\nthree'
    # Scores are -3, 1, 7, 7, 20: half of them are at most 7, so 7 ends bin 0, and also bin 1; 20 ends the others.
    tags = {"tags": "python,c++"}
    assert elements_of(read(four)) == [
        ("q", f'Is "a" < b & c?\n\n{body}', {"dscore": "2"} | tags),
        ("c", "first", {}),
        ("c", "second\nline", {}),
        ("a", "plain", {"dscore": "0"} | tags),
        ("a", "<code>\nx\n</code>", {"dscore": "0"} | tags),
        ("c", "Use `List<T>`, [see](https://example.com)", {}),
        ("a", "low", {"dscore": "0"} | tags),
    ]
    assert elements_of(read(nine)) == [("q", "Other title\n\nq", {"dscore": "0", "tags": "r"})]
    assert "\n<| c |>\nfirst\n<|/ c |>\n<| c |>\nsecond\nline\n<|/ c |>\n" in read(four)


def test_rows_declare_their_license(tmp_path: Path) -> None:
    posts = (
        question(1, CreationDate="2009-01-01T00:00:00.000", ContentLicense="CC BY-SA 4.0")
        + question(2, CreationDate="2011-04-07T23:59:59.000", ContentLicense="other")
        + question(3, CreationDate="2011-04-08T00:00:00.000")
        + question(4, CreationDate="2018-05-01T23:59:59.000")
        + question(5, CreationDate="2018-05-02T00:00:00.000")
    )
    licenses = [file.license for file in files_of(StackExchange(folder=write_site(tmp_path, posts)))]
    assert licenses == [f"CC-BY-SA-{version}" for version in ("4.0", "2.5", "3.0", "3.0", "4.0")]


def test_attributes_are_in_both_tags_and_depend_on_seed_and_thread(tmp_path: Path) -> None:
    write_site(tmp_path, "".join(question(number, Tags="<x>") for number in range(1, 2001)))
    texts = texts_of(tmp_path)
    opening = Counter(tuple(re.findall(r"(\w+)=", text.split("\n", 1)[0])) for text in texts.values())
    quarter, eighth = ((), ("tags",), ("dscore",)), (("tags", "dscore"), ("dscore", "tags"))
    assert all(abs(opening[names] / 2000 - 0.25) < 0.05 for names in quarter)
    assert all(abs(opening[names] / 2000 - 0.125) < 0.04 for names in eighth)
    assert texts == texts_of(tmp_path)
    other = {file.path: read(file) for file in files_of(StackExchange(folder=tmp_path, seed=1))}
    assert other.keys() == texts.keys() and other != texts


def random_dump(n_posts: int) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Posts and comments in a random order, some of them without a question or a post."""
    rng = random.Random(0)
    posts: list[dict[str, int]] = []
    for number in range(1, n_posts + 1):
        is_question = number < 10 or rng.random() < 0.3
        parent = 0 if is_question else rng.randrange(1, n_posts + 100)
        posts.append({"id": number, "parent": parent, "score": int(rng.expovariate(0.3)) - 2})
    comments = [{"id": number, "post": rng.randrange(1, n_posts + 50)} for number in range(1, n_posts)]
    rng.shuffle(posts)
    rng.shuffle(comments)
    return posts, comments


def brute_force(posts: list[dict[str, int]], comments: list[dict[str, int]]) -> dict[str, list[tuple[str, str]]]:
    """Kind and text of the elements of each thread, joined by looking at all rows again and again."""
    threads = {}
    for post in posts:
        if post["parent"]:
            continue
        answers = [each for each in posts if each["parent"] == post["id"]]
        answers.sort(key=lambda each: each["id"])
        answers.sort(key=lambda each: each["score"], reverse=True)
        elements = []
        for each in [post, *answers]:
            text = f"body {each['id']}"
            elements.append(("a", text) if each["parent"] else ("q", f"T\n\n{text}"))
            own = sorted(comment["id"] for comment in comments if comment["post"] == each["id"])
            elements += [("c", f"comment {number}") for number in own]
        threads[f"questions/{post['id']}"] = elements
    return threads


def test_partitioned_join_equals_brute_force_for_any_number_of_partitions(tmp_path: Path) -> None:
    posts, comments = random_dump(2000)
    lines = [
        answer(post["id"], post["parent"], Score=post["score"], Body=f"body {post['id']}")
        if post["parent"]
        else question(post["id"], Score=post["score"], Body=f"body {post['id']}")
        for post in posts
    ]
    write_site(
        tmp_path / "site",
        "".join(lines),
        "".join(comment(c["id"], c["post"], Text=f"comment {c['id']}") for c in comments),
    )
    expected = brute_force(posts, comments)
    scores = [post["score"] for post in posts]
    outputs = []
    for partition_bytes in (2**40, 100_000, 997):
        source = StackExchange(folder=tmp_path / "site", partition_bytes=partition_bytes)
        units = list(source.units(tmp_path / str(partition_bytes)))
        files = [file for unit in units for file in unit.files()]
        texts = {file.path: read(file) for file in files if file.problem is None}
        outputs.append((len(units), texts, Counter((file.path, file.problem, file.size) for file in files)))
        assert sum(unit.n_bytes for unit in units) == sum(file.size for file in files)
    assert outputs[0][0] == 1 and outputs[1][0] > 3 and outputs[2][0] > 300
    assert outputs[0][1:] == outputs[1][1:] == outputs[2][1:]
    texts = outputs[0][1]
    assert {path: [(kind, text) for kind, text, _ in elements_of(text)] for path, text in texts.items()} == expected
    edges = [np.percentile(scores, p, method="inverted_cdf") for p in (50, 75, 87.5, 93.75, 96.875)]
    by_number = {post["id"]: sum(post["score"] > edge for edge in edges) for post in posts}
    for text in texts.values():
        for kind, inner, attributes in elements_of(text):
            if kind != "c":
                assert attributes == {"dscore": str(by_number[int(inner.split()[-1])])}
    problems = Counter(problem for _, problem, _ in outputs[0][2] if problem)
    kinds = Counter(kind for elements in expected.values() for kind, _ in elements)
    assert problems[NO_QUESTION] == len(posts) - kinds["q"] - kinds["a"] > 0
    assert problems[NO_POST] == len(comments) - kinds["c"] > 0


@given(st.dictionaries(st.integers(-50, 50), st.integers(1, 40), min_size=1))
def test_bins_are_those_of_numpy(counts: dict[int, int]) -> None:
    values = [value for value, n in counts.items() for _ in range(n)]
    edges = percentile_bins(counts)
    assert edges == tuple(np.percentile(values, p, method="inverted_cdf") for p in (50, 75, 87.5, 93.75, 96.875))
    assert all(bin_of(value, edges) == sum(value > edge for edge in edges) for value in values)


def test_bins_hold_the_fractions_of_the_paper() -> None:
    edges = percentile_bins(dict.fromkeys(range(3200), 1))
    bins = Counter(bin_of(value, edges) for value in range(3200))
    assert bins == {0: 1600, 1: 800, 2: 400, 3: 200, 4: 100, 5: 100}
    assert percentile_bins({}) == () and bin_of(5, ()) == 0


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("a &lt;b&gt; &amp;amp; &#x1F600; &nbsp; &hellip;", "a <b> &amp; 😀 …"),
        ("<p>one</p><p>two<br/>three</p>", "one\ntwo\nthree"),
        ("<div>a<p>b</p>c</div>d", "a\nb\nc\nd"),
        ("<pre><code>\n  a\t&lt;\n\n\n b  \n</code></pre>", "<code>\n\n  a\t<\n\n\n b  \n</code>"),
        ("<pre>a<br>b</pre>x", "<code>\na\nb\n</code>\nx"),
        ("<pre>never closed", "<code>\nnever closed\n</code>"),
        ("<ol><li>a<li><p>b</p></ol>", "a\nb"),
        ("<table><tr><th>a</th><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("a<script>alert('<p>')</script><style>p{}</style><!-- c -->b", "ab"),
        ("<h1>t</h1><blockquote><p>q</p></blockquote><hr>e", "t\nq\ne"),
        ("a</p></div></b>b < c > d", "ab < c > d"),
        ("<a href='x'>l</a><img alt='no' src=y>", "l"),
    ],
)
def test_text_of_html(html: str, text: str) -> None:
    assert html_to_text(html, is_code_marked=True) == text


def test_deeply_nested_html_takes_linear_time() -> None:
    start = time.process_time()
    for tag in ("<div>", "<b>", "<ul><li>", "<pre>", "<table>"):
        assert html_to_text(tag * 200_000 + "x", is_code_marked=False) == "x"
    assert time.process_time() - start < 20


def test_what_has_no_place_is_counted(tmp_path: Path) -> None:
    posts = (
        question(1)
        + question(1, Title="again")
        + answer(2, 99)
        + question(3, Body="")
        + answer(4, 3)
        + row(Id=5, PostTypeId=4, Body="tag", CreationDate="2020-01-01T00:00:00.000")
        + question(6, DeletionDate="2021-01-01T00:00:00.000")
        + row(Id=7, PostTypeId=2, Body="no parent", CreationDate="2020-01-01T00:00:00.000")
        + question(8, CreationDate="yesterday")
        + question(9, Score="1e9")
        + question(0)
        + question(10, Body="[control]")
        + '  <row Id="11" PostTypeId="1" Body="&unknown;" />\n'
        + '  <row Id="12" PostTypeId="1" Body="cut\n'
        + '  <row Id="13" Id="14" PostTypeId="1" />\n'
        + "nonsense\n"
        + "  <row "
        + "<row " * 1000
        + "/>\n"
        + '  <row Id="15" PostTypeId="1" Body="a" /><row Id="16" />\n'
        + "\n"
    )
    comments = (
        comment(1, 1) + comment(2, 2) + comment(3, 77) + comment(4, 1, Text=" ") + comment(1, 1) + row(Id=5, Text="t")
    )
    folder = write_site(tmp_path, posts, comments)
    raw = (folder / "Posts.xml").read_bytes()
    (folder / "Posts.xml").write_bytes(
        raw.replace(b"nonsense", b'<row Id="17" Body="\xff\xfe" />').replace(b"[control]", b"&#x1;")
    )
    found = files_of(StackExchange(folder=folder))
    assert [file.path for file in found if file.problem is None] == ["questions/1"]
    assert [kind for kind, _, _ in elements_of(texts_of(folder)["questions/1"])] == ["q", "c"]
    problems = Counter((file.problem, file.path.split("/")[0]) for file in found if file.problem is not None)
    assert problems == {
        (DUPLICATE_ROW, "posts"): 1,
        (DUPLICATE_ROW, "comments"): 1,
        (NO_QUESTION, "posts"): 2,
        (NO_BODY, "posts"): 1,
        (NO_BODY, "comments"): 1,
        (OTHER_POST, "posts"): 1,
        (DELETED, "posts"): 1,
        (NO_POST, "comments"): 2,
        (DAMAGED_ROW, "Posts.xml"): 11,
        (DAMAGED_ROW, "Comments.xml"): 1,
    }
    assert {file.license for file in found if file.problem is not None} == {UNKNOWN}
    assert problems_of(folder)["Posts.xml/10"] == DAMAGED_ROW  # post 7, in the eighth row


@pytest.mark.parametrize("cut", [1, 10, 60, 200])
def test_truncated_file_is_counted(cut: int, tmp_path: Path) -> None:
    folder = write_site(tmp_path, "".join(question(number) for number in range(1, 50)))
    data = (folder / "Posts.xml").read_bytes()
    (folder / "Posts.xml").write_bytes(data[:-cut])
    problems = list(problems_of(folder).values())
    assert problems.count(TRUNCATED) == 1 and len(texts_of(folder)) >= 46


def test_lines_that_are_too_long_are_counted_and_not_held(tmp_path: Path) -> None:
    long = question(2, Body="x" * (MAX_ROW_BYTES + 10)) + question(3, Body="y" * (5 * MAX_ROW_BYTES))
    folder = write_site(tmp_path, question(1) + long + question(4, Body="z" * (MAX_ROW_BYTES // 2)) + question(5))
    assert list(problems_of(folder).values()) == [LONG_ROW, LONG_ROW]
    assert list(texts_of(folder)) == ["questions/1", "questions/4", "questions/5"]


@pytest.mark.parametrize(
    "text",
    [
        '<?xml version="1.0"?>\n<!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<posts>\n'
        + question(1)
        + "</posts>",
        "<?xml version='1.0'?><!doctype posts>\n<posts>\n" + question(1) + "</posts>",
        "",
        "<posts>\n</posts>\n",
        "<html>not a dump</html>",
        "x" * 100_000,
        '<posts><row Id="1" /></posts>',
    ],
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    write_site(tmp_path, question(1))
    (tmp_path / "Posts.xml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidFileError, match=r"Posts\.xml"):
        files_of(StackExchange(folder=tmp_path))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="not a folder"):
        find_sites(tmp_path / "none")
    with pytest.raises(MissingFileError, match="no Stack Exchange dump"):
        find_sites(tmp_path)
    write_site(tmp_path / "a", question(1))
    (tmp_path / "a" / "Comments.xml").unlink()
    with pytest.raises(MissingFileError, match=r"Comments\.xml"):
        find_sites(tmp_path)


def pack(archive: Path, members: dict[str, Path]) -> Path:
    with py7zr.SevenZipFile(archive, "w") as packed:
        for name, path in members.items():
            packed.write(path, name)
    return archive


def test_archives_give_the_same_threads(tmp_path: Path) -> None:
    plain = write_site(tmp_path / "plain" / "a.com", "".join(question(n) + answer(n + 500, n) for n in range(1, 400)))
    posts, comments = plain / "Posts.xml", plain / "Comments.xml"
    expected = texts_of(plain)
    for number in range(4):
        (tmp_path / str(number) / "a.com").mkdir(parents=True)
    pack(tmp_path / "0" / "a.com" / "Posts.7z", {"Posts.xml": posts})
    pack(tmp_path / "0" / "a.com" / "Comments.7z", {"Comments.xml": comments})
    pack(tmp_path / "1" / "a.com" / "site.7z", {"Badges.xml": comments, "Comments.xml": comments, "Posts.xml": posts})
    pack(tmp_path / "2" / "a.com.7z", {"a.com/Posts.xml": posts, "a.com/Comments.xml": comments})
    pack(tmp_path / "3" / "a.com-Posts.7z", {"Posts.xml": posts})
    pack(tmp_path / "3" / "a.com-Comments.7z", {"Comments.xml": comments})
    pack(tmp_path / "3" / "a.com-Users.7z", {"Users.xml": comments})
    for number in range(4):
        assert [site.name for site in find_sites(tmp_path / str(number))] == ["a.com"]
        assert texts_of(tmp_path / str(number)) == expected


def test_several_sites_are_read_by_name(tmp_path: Path) -> None:
    write_site(tmp_path / "b.com", question(1))
    write_site(tmp_path / "a.com", question(2))
    (tmp_path / "notes").mkdir()
    found = [(file.repository, file.path) for file in files_of(StackExchange(folder=tmp_path)) if file.problem is None]
    assert found == [("a.com", "questions/2"), ("b.com", "questions/1")]


def damaged_archives(data: bytes) -> Iterator[bytes]:
    yield b""
    yield data[:20]
    yield data[:-1]
    yield data[: len(data) // 2]
    yield b"PK" + data[2:]
    rng = random.Random(0)
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 4))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield bytes(changed)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    plain = write_site(tmp_path / "plain", "".join(question(number) for number in range(1, 200)))
    site = tmp_path / "packed" / "a.com"
    site.mkdir(parents=True)
    pack(site / "Comments.7z", {"Comments.xml": plain / "Comments.xml"})
    data = pack(site / "Posts.7z", {"Posts.xml": plain / "Posts.xml"}).read_bytes()
    expected = texts_of(site)
    n_refused = 0
    for changed in damaged_archives(data):
        (site / "Posts.7z").write_bytes(changed)
        try:
            found = texts_of(site)
        except InvalidFileError as error:
            assert "Posts.7z" in str(error)
            n_refused += 1
        else:
            assert found == expected  # a byte that has no meaning, such as one of the times of the file
    assert n_refused > 40


def ignore(block: bytes) -> None:
    pass


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    plain = write_site(tmp_path / "plain", question(1, Body="x" * 4000) * 3000)
    with pytest.raises(InvalidFileError, match="more than 200 times"):
        ArchiveMember(pack(tmp_path / "bomb.7z", {"Posts.xml": plain / "Posts.xml"}), "Posts.xml").read(ignore)
    with pytest.raises(InvalidFileError, match="0 files"):
        ArchiveMember(pack(tmp_path / "other.7z", {"Users.xml": plain / "Comments.xml"}), "Posts.xml").read(ignore)
    twice = {"a/Comments.xml": plain / "Comments.xml", "b/Comments.xml": plain / "Comments.xml"}
    with pytest.raises(InvalidFileError, match="2 files"):
        ArchiveMember(pack(tmp_path / "twice.7z", twice), "Comments.xml").read(ignore)
    (tmp_path / "link").symlink_to(plain / "Comments.xml")
    with py7zr.SevenZipFile(tmp_path / "link.7z", "w") as packed:
        packed.write(tmp_path / "link", "Comments.xml")
    with pytest.raises(InvalidFileError, match="is a link"):
        ArchiveMember(tmp_path / "link.7z", "Comments.xml").read(ignore)


def test_names_that_leave_the_folder_write_nothing(tmp_path: Path) -> None:
    plain = write_site(tmp_path / "plain", question(1))
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "a.com.7z"
    # py7zr refuses to write such names, so the name is changed where the list of files is not compressed.
    with py7zr.SevenZipFile(archive, "w") as packed:
        packed.set_encoded_header_mode(False)
        packed.write(plain / "Comments.xml", "aa/Comments.xml")
    data = archive.read_bytes()
    assert "aa/Comments.xml".encode("utf-16-le") in data
    archive.write_bytes(data.replace("aa/Comments.xml".encode("utf-16-le"), "../Comments.xml".encode("utf-16-le")))
    received: list[bytes] = []
    with pytest.raises(InvalidFileError, match=r"a\.com\.7z"):
        ArchiveMember(archive, "Comments.xml").read(received.append)
    assert not received
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["Comments.xml", "Posts.xml", "a.com.7z", "in", "plain"]


def test_partitions_are_used_again_until_the_dump_changes(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "a.com", question(1))
    source = StackExchange(folder=folder)
    before = source.fingerprint()
    assert before == json.loads(json.dumps(source.fingerprint()))
    units = list(source.units(tmp_path / "scratch"))
    written = units[0].path.stat()
    assert list(source.units(tmp_path / "scratch")) == units and units[0].path.stat().st_ino == written.st_ino
    assert sorted(path.name for path in (tmp_path / "scratch" / "a.com").iterdir()) == [
        ".codekiln.json",
        "partitions.json",
        "threads",
    ]
    again = pickle.loads(pickle.dumps(units[0]))  # noqa: S301
    assert [read(file) for file in again.files()] == [read(file) for file in units[0].files()]
    write_site(folder, question(1) + question(2))
    assert source.fingerprint() != before
    assert [file.path for file in files_of(source)] == ["questions/1", "questions/2"]


def test_damaged_partitions_are_refused(tmp_path: Path) -> None:
    source = StackExchange(folder=write_site(tmp_path / "a.com", question(1)))
    (unit,) = source.units(tmp_path / "scratch")
    data = unit.path.read_bytes()
    for changed in (data[:-3], data[:10], b"\xff" * 40, data[:30] + b"\0\0\0\0\0\0" + data[36:]):
        unit.path.write_bytes(changed)
        with pytest.raises(CorruptFileError, match="damaged"):
            list(unit.files())


def test_scratch_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "a.com").mkdir(parents=True)
    (tmp_path / "scratch" / "a.com" / "mine.txt").write_text("mine", encoding="utf-8")
    source = StackExchange(folder=write_site(tmp_path / "a.com", question(1)))
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        files_of(source)


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("is_packed", [False, True])
def test_sorting_continues_where_it_was_killed(
    is_packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At many places. Rows that were read before are not read again, and the threads are the same."""
    rng = random.Random(1)
    posts = "".join(
        rng.choice(("  <row Id='broken />\n", "", "")) + question(n, Score=n) + answer(n + 500, n, Body="<p>é</p>")
        for n in range(1, 120)
    )
    comments = "".join(comment(n, rng.choice((n % 150 + 1, n % 119 + 501))) for n in range(1, 200))
    folder = write_site(tmp_path / "plain" / "a.com", posts, comments)
    if is_packed:
        packed = tmp_path / "packed" / "a.com"
        packed.mkdir(parents=True)
        pack(packed / "a.com.7z", {"Posts.xml": folder / "Posts.xml", "Comments.xml": folder / "Comments.xml"})
        folder = packed
    source = StackExchange(folder=folder, partition_bytes=3000)

    def threads(scratch: Path) -> list[tuple[str, str | None, str]]:
        files = [file for unit in source.units(scratch) for file in unit.files()]
        return [(f.path, f.problem, "" if f.problem is not None else read(f)) for f in files]

    expected = threads(tmp_path / "whole")
    assert len(expected) > 100
    monkeypatch.setattr(stackexchange, "CHECKPOINT_BYTES", 4000)
    monkeypatch.setattr(stackexchange, "JOINED_PER_SAVE", 1)
    monkeypatch.setattr(partitions, "PENDING_BYTES", 700)
    monkeypatch.setattr(dump_files, "BLOCK_BYTES", 900)
    n_left, n_written = 10**6, 0
    write = partitions.PartitionWriter.write

    def write_until_killed(self: partitions.PartitionWriter, partition: int, row: Any) -> None:
        nonlocal n_left, n_written
        n_left, n_written = n_left - 1, n_written + 1
        if n_left < 0:
            raise KilledError
        write(self, partition, row)

    monkeypatch.setattr(partitions.PartitionWriter, "write", write_until_killed)
    assert threads(tmp_path / "again") == expected
    n_whole, n_written = n_written, 0
    found, n_killed = None, 0
    while found is None:
        # The library gives an archive of this size in one block, and a state is saved between blocks.
        n_left = 550 if is_packed else rng.randrange(100, 200)
        try:
            found = threads(tmp_path / "killed")
        except KilledError:
            n_killed += 1
    assert found == expected
    assert n_killed == 1 if is_packed else n_killed >= 4
    assert n_written < n_whole + n_killed * 60  # those after the last state are written again
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["a.com"]
    assert sorted(path.name for path in (tmp_path / "killed" / "a.com").iterdir() if not path.name.startswith(".")) == [
        "partitions.json",
        "threads",
    ]


def test_a_state_of_other_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_site(tmp_path / "a.com", question(1) + question(2))
    sorting = partitions.Sorting(tmp_path / "scratch" / "a.com.unfinished", {"files": "others"})
    sorting.writer("threads", 1).write(0, ["of another dump"])
    sorting.save({"joined": 1, "finished": ["Posts.xml", "Comments.xml"]})
    assert sorted(texts_of(folder)) == ["questions/1", "questions/2"]
    damaged = partitions.Sorting(tmp_path / "damaged", {})
    damaged.writer("threads", 1).write(0, ["a row"])
    damaged.save({})
    (tmp_path / "damaged" / "threads" / "00000.rows").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"00000\.rows is damaged"):
        partitions.Sorting(tmp_path / "damaged", {}).writer("threads", 1)


def test_a_corpus_continues_to_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before its inputs are listed, for which the dump is sorted."""
    source = StackExchange(folder=write_site(tmp_path / "a.com", "".join(map(question, range(1, 200)))))
    config = CorpusConfig(sources=(source,), steps=(), validation_fraction=0.1)
    expected = build_corpus(config, tmp_path / "whole")
    monkeypatch.setattr(stackexchange, "CHECKPOINT_BYTES", 4000)
    monkeypatch.setattr(dump_files, "BLOCK_BYTES", 900)
    n_written, most = 0, 300
    write = partitions.PartitionWriter.write

    def write_until_killed(self: partitions.PartitionWriter, partition: int, row: Any) -> None:
        nonlocal n_written
        n_written += 1
        if n_written > most:
            raise KilledError
        write(self, partition, row)

    monkeypatch.setattr(partitions.PartitionWriter, "write", write_until_killed)
    with pytest.raises(KilledError):
        build_corpus(config, tmp_path / "killed")
    n_written, most = 0, 200
    assert build_corpus(config, tmp_path / "killed") == expected


@pytest.mark.parametrize("step", ["write_json", "replace_folder"])
def test_what_is_sorted_is_not_lost_at_the_end(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_site(tmp_path / "a.com", question(1) + question(2))
    source = StackExchange(folder=folder)

    def fail(*arguments: object) -> None:
        raise KilledError

    def units() -> list[str]:
        return [file.path for unit in source.units(tmp_path / "other") for file in unit.files()]

    expected = texts_of(folder).keys()
    with monkeypatch.context() as patched:
        patched.setattr(stackexchange._Partitioning, "_save", lambda self: None)  # all writes of JSON are the record's
        patched.setattr(partitions, step, fail)
        with pytest.raises(KilledError):
            units()
    if step == "replace_folder":
        monkeypatch.setattr(stackexchange._Partitioning, "run", fail)
    assert [path for path in units() if path.startswith("questions")] == list(expected)


def test_rows_come_in_the_order_of_their_lines() -> None:
    """In blocks of any size."""
    text = ("<posts>\n" + row(Id=1) + "oops\n" + row(Id=2) + "  <row Id='3 />\n" + row(Id=4) + "</posts>").encode()
    for size in range(1, len(text)):
        received: list[DumpRow] = []
        reader = RowReader("x", received.append)
        for start in range(0, len(text), size):
            reader.feed(text[start : start + size])
        reader.close()
        assert [each.line_number for each in received] == [2, 3, 4, 5, 6]
        assert [each.attributes.get("Id") for each in received] == ["1", None, "2", None, "4"]
