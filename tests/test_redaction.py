"""Redaction: addresses and secrets are replaced, code that looks like them is not, and every replacement is recorded."""

import ast
import hashlib
import ipaddress
import json
import pickle
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.explain import explain_file
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.redaction.emails import EMAILS
from codekiln.corpus.redaction.ip_addresses import IP_ADDRESSES
from codekiln.corpus.redaction.rules import RuleSet
from codekiln.corpus.sources.files import CannotRead, SourceFile
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.copyright import CopyrightNotices
from codekiln.corpus.steps.filters import Filters
from codekiln.corpus.steps.redact import ALL_RULES, MIN_HASHED_BITS, Redact, redact_emails
from codekiln.corpus.steps.step import Draft
from tests.planted import BASE62, NO_SECRETS, make_key, plant, private_key
from tests.small import write_tree

EMAIL = "removed@example.com"
REDACT = Redact()


def redact(text: str, step: Redact = REDACT) -> tuple[str, dict[str, int]]:
    """The text after a step, and the number of replacements per rule."""
    file = SourceFile("tree", "kiln", "-", "MIT", "a.py", len(text), CannotRead())
    draft = Draft(file=file, language="Python", text=text, license="MIT")
    step.edit_document(draft)
    rows = json.loads(str(draft.columns.get("redactions", "[]")))
    return draft.text, dict(Counter(row[0] for row in rows))


@pytest.mark.parametrize(
    "text",
    [
        "jane.doe+list@mail.example.co.uk",
        "Author: Jane <jane@python.org>, 2020",
        "mailto:jane@startup.io",
        "# jane@university.edu.",
        "'bob_smith%x@a-b.museum'",
        "x@y.de",
    ],
)
def test_addresses_are_replaced(text: str) -> None:
    redacted, n = redact_emails(text)
    assert n == 1
    assert EMAIL in redacted
    assert "jane" not in redacted.lower() or "Jane <" in redacted
    assert redact(text) == (redacted, {"email": 1})


@pytest.mark.parametrize(
    "text",
    [
        "y = x@weights.transpose(0, 1)",
        "y = a@b.T",
        "y = left@right.data[0]",
        "@app.route('/')",
        "class A:\n    @functools.cache\n    def f(self): ...",
        "git@github.com:owner/repository.git",
        "ssh://git@github.com/owner/repository.git",
        "user@server.example.com:path/to/repo",
        'npm install "react@18.3.0-canary.abc"',
        "lodash@4.17.21",
        "module@latest",
        "x@y.notatld",
    ],
)
def test_code_is_not_replaced(text: str) -> None:
    assert redact_emails(text) == (text, 0)
    assert redact(text) == (text, {})


def test_escapes_before_an_address_stay() -> None:
    assert redact_emails(r'print("\njane@python.org")') == (rf'print("\n{EMAIL}")', 1)
    assert redact_emails(r'print("\\njane@python.org")') == (rf'print("\\{EMAIL}")', 1)
    assert redact_emails(rf'print("\n{EMAIL}")') == (rf'print("\n{EMAIL}")', 0)


@given(st.text(alphabet="ab1.@-\\ \n:/%[(", max_size=60))
def test_redaction_is_idempotent(text: str) -> None:
    once, _ = redact_emails(text)
    assert redact_emails(once) == (once, 0)


SLOW_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9._%+-])(?P<user>[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63})"
    r"@(?P<domain>(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9_(\[-])"
)
SUFFIXES = PublicSuffixList(accept_unknown=False)


@given(st.text(alphabet="ab1.@-_ü \n(", max_size=80), st.integers(0, 3))
def test_addresses_equal_those_of_one_regular_expression(text: str, n_long: int) -> None:
    """The expression of Python searches from the left; the rule searches backwards from each @."""
    text = text.replace("a", "a.de@b.io" if n_long == 1 else "a").replace("b", "b" * (64 if n_long == 2 else 1))

    def replace(match: re.Match[str]) -> str:
        is_code = match["user"] == "git" or re.match(r"\d+\.\d", match["domain"])
        return match.group() if is_code or SUFFIXES.publicsuffix(match["domain"].lower()) is None else EMAIL

    assert redact_emails(text)[0] == SLOW_ADDRESS.sub(replace, text)
    assert redact(text, Redact(rules=(EMAILS,)))[0] == redact_emails(text)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host = '52.94.236.248'", "host = '192.0.2.1'"),
        ("http://52.94.236.248:8080/a", "http://192.0.2.1:8080/a"),
        ("root@52.94.236.248:", "root@192.0.2.1:"),
        ("52.94.236.248 52.94.236.249\n52.94.236.250", "192.0.2.1 192.0.2.1\n192.0.2.1"),
        ("52.94.236.10-52.94.236.248", "192.0.2.1-192.0.2.1"),
        ("from 52.94.236.248.", "from 192.0.2.1."),
        ('{"version": "2.0", "ip": "52.94.236.248"}', '{"version": "2.0", "ip": "192.0.2.1"}'),
        ('if ip == "52.94.236.248":', 'if ip == "192.0.2.1":'),
        ("<ip>52.94.236.248</ip>", "<ip>192.0.2.1</ip>"),
        ("::ffff:52.94.236.248", "::ffff:192.0.2.1"),
        ("é52.94.236.248é", "é192.0.2.1é"),
        ("[2607:f8b0:4005:80a::200e]:443", "[2001:db8::1]:443"),
        ("ip = '2A00:1450:4001:0830:0000:0000:0000:200e'", "ip = '2001:db8::1'"),
        ("2607:f8b0::1", "2001:db8::1"),
    ],
)
def test_public_ip_addresses_are_replaced(text: str, expected: str) -> None:
    redacted, counts = redact(text)
    assert redacted == expected
    assert counts == {"ip-address": expected.count("192.0.2.1") + expected.count("2001:db8::1")}
    assert redact(redacted) == (redacted, {})


@pytest.mark.parametrize(
    "text",
    [
        *("10.1.2.34", "172.16.44.55", "192.168.44.55", "127.0.0.53", "169.254.169.254", "100.64.12.13"),
        *(
            "192.0.2.77",
            "198.51.100.14",
            "203.0.113.9",
            "224.0.0.251",
            "239.255.255.250",
            "255.255.255.128",
            "0.0.0.12",
        ),
        *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "52.94.236.0/24", "120.0.0.0"),
        *(
            "::1",
            "fe80::1234:5678",
            "fd12:3456::17",
            "2001:db8:17::42",
            "ff02::fb",
            "2001:4860:4860::8888",
            "2607:f8b0::/32",
        ),
        *("version 52.94.236.248", "Version: 13.10.2.44", "__version__ = '13.10.2.44'", "since release 13.10.2.44"),
        *(
            "numpy==13.10.2.44",
            "numpy>=13.10.2.44",
            "foo ~= 13.10.2.44",
            "foo-13.10.2.44.tar.gz",
            "v13.10.2.44",
            "13.10.2.44-beta",
        ),
        *(
            "Chrome/113.10.25.44",
            "13.10.2.44rc1",
            "13.10.2.44.5",
            "3.13.10.2.44",
            "1.3.6.1.4.1.311.21.20",
            "2.5.29.17",
            "1.2.3.4",
        ),
        *(
            "Section 13.10.2.44",
            "# 13.10.2.44 Details of the format",
            "13.10.2.44 Details",
            "(see RFC 822, section 13.10.2.44)",
        ),
        *("x.13.10.2.44", "513.10.2.44", "13.10.2.444", "13.010.2.44", "m13.10.2.44", "13.10.2.44px", "13.10.2"),
        *(
            "2024:10:23 12:13:14",
            "2024:10:23::12x",
            "std::2607:f8b0::1::x",
            "2607:f8b0:4005",
            "3f:8a:11:22:33:44:55:66",
        ),
    ],
)
def test_other_numbers_with_dots_and_colons_stay(text: str) -> None:
    assert redact(text) == (text, {})


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_replaced_ipv4_addresses_are_those_that_ipaddress_calls_global(numbers: list[int]) -> None:
    address = ipaddress.IPv4Address(bytes(numbers))
    text = f"host = '{address}'"
    is_replaced = redact(text, Redact(rules=(IP_ADDRESSES,)))[0] != text
    if is_replaced:
        assert address.is_global and not address.is_multicast
    elif numbers[3] != 0 and max(numbers) > 9 and len(set(numbers)) > 1:
        assert (
            not address.is_global
            or address.is_multicast
            or address in WELL_KNOWN
            or str(address)[:4] in ("2.5.", "1.3.")
        )


WELL_KNOWN = {ipaddress.IPv4Address(text) for text in ("149.112.112.112", "208.67.222.222", "119.29.29.29")}


@pytest.mark.parametrize("seed", range(5))
def test_planted_keys_are_replaced_and_counted_by_their_rules(seed: int) -> None:
    for rule, key, code in plant(random.Random(seed)):
        redacted, counts = redact(code)
        word = "password" if rule == "password" else rule
        assert counts == {rule: 1}, code
        assert redacted == code.replace(key if "Account" not in code else key + "==", f"removed-{word}").replace(
            "T0AB12CD3/B0EF45GH6/", ""
        ).replace("829384756102938475/", ""), code
        assert redact(redacted) == (redacted, {})


@pytest.mark.parametrize("text", NO_SECRETS)
def test_placeholders_and_values_that_are_no_secrets_stay(text: str) -> None:
    rules = tuple(rule for rule in ALL_RULES if rule.name != "email")  # which takes a part of a URL for an address
    assert redact(text, Redact(rules=rules)) == (text, {})


@pytest.mark.parametrize("label", ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_private_keys_are_replaced_and_code_stays_code(label: str) -> None:
    block = private_key(random.Random(3), label)
    lines = block.splitlines()
    expected = f"-----BEGIN {label}-----\nremoved-private-key\n-----END {label}-----\n"
    assert redact(block) == (expected, {"private-key": 1})
    assert redact(expected) == (expected, {})
    assert redact(block.replace("\n", "\r\n"))[0] == expected.replace("\n", "\r\n")
    for code in (
        f'KEY = """{block}"""\n',
        f"KEY = {block!r}\n",
        "KEY = (\n" + "".join(f'    "{line}\\n"\n' for line in lines) + ")\n",
        "KEY = '\\n'.join([\n" + "".join(f"    '{line}',\n" for line in lines) + "])\n",
        "".join(f"# {line}\n" for line in lines),
    ):
        redacted, counts = redact(code)
        assert counts == {"private-key": 1}
        assert not any(line in redacted for line in lines[1:-1] if len(line) >= 16)
        ast.parse(redacted)


def test_code_with_secrets_is_still_python() -> None:
    rng = random.Random(4)
    for _, key, _ in plant(rng):
        ast.parse(redact(f"f(token=\"{key}\", url='{key}')  # {key}\n")[0])


def test_a_gate_never_hides_a_match() -> None:
    """All rules search everything here, without the gates."""
    rng = random.Random(5)
    texts = [code for _, _, code in plant(rng)] + [private_key(rng), "a@b.de, 52.1.2.3, 2607:f8b0::1", *NO_SECRETS]
    for text in [*texts, "".join(rng.sample(texts, len(texts)))]:
        data = text.encode()
        found = RuleSet(ALL_RULES).find(data)
        taken = bytearray(len(data))
        slow = []
        for rule in ALL_RULES:
            for match in rule.find(data):
                if not any(taken[match.start : match.end]):
                    slow.append(match)
            for match in slow:
                taken[match.start : match.end] = b"\1" * (match.end - match.start)
        assert found == sorted(slow, key=lambda match: match.start)


def test_the_first_rule_counts_where_matches_overlap() -> None:
    url = "postgres://kiln:u8Gw2kQz@db.kiln.io/"
    assert redact(url) == ("postgres://kiln:removed-password@db.kiln.io/", {"password": 1})
    assert redact(url, Redact(rules=(EMAILS,))) == (f"postgres://kiln:{EMAIL}/", {"email": 1})


@given(
    st.lists(
        st.sampled_from(
            [*(code for _, _, code in plant(random.Random(6))), *NO_SECRETS, "a@b.de", "\\n", "é", '"', " "]
        )
    )
)
def test_everything_is_replaced_at_once(parts: list[str]) -> None:
    once, _ = redact("".join(parts))
    assert redact(once) == (once, {})


HOSTILE: dict[str, Callable[[int], str]] = {
    "@": lambda n: "@" * n,
    "a@": lambda n: "a@" * (n // 2),
    "a.": lambda n: "a." * (n // 2),
    "@a.": lambda n: "x" + "@a." * (n // 3),
    "addresses": lambda n: "a@b.com " * (n // 8),
    "digits and dots": lambda n: "12.1." * (n // 5),
    "digits": lambda n: "1" * n,
    "ip": lambda n: "52.1.2.33 " * (n // 10),
    "colons": lambda n: "2001:" * (n // 5),
    "BEGIN": lambda n: "-----BEGIN" * (n // 10),
    "private keys without end": lambda n: ("-----BEGIN PRIVATE KEY-----" + "A1b2" * 20) * (n // 107),
    "private keys": lambda n: private_key(random.Random(0), n_bytes=60) * (n // 140),
    "private key of line ends": lambda n: (
        "-----BEGIN PRIVATE KEY-----" + "A1b2" * 20 + "\n" * n + "#-----END PRIVATE KEY-----"
    ),
    "eyJ": lambda n: "eyJaaaaaaaaaaaa." * (n // 16),
    "github": lambda n: ("ghp_" + "aB1" * 12 + "-") * (n // 41),
    "slack": lambda n: "xoxb-1-" * (n // 7),
    "openai": lambda n: "sk-ant-api03-" * (n // 13),
    "urls": lambda n: "://a:bcdefgh" * (n // 12),
    "assignments": lambda n: 'api_key="' * (n // 9),
    "spaces": lambda n: "token=" + " " * n,
    "random": lambda n: make_key(random.Random(0), ((BASE62 + "+/=\"':@.-_ \n", n),)),
}


@pytest.mark.process
@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_the_length_of_a_text(name: str) -> None:
    seconds = []
    for n in (100_000, 400_000):
        text = HOSTILE[name](n)
        tries = []
        for _ in range(3):  # on a busy machine, others use the caches too
            begun = time.process_time()
            redact(text)
            tries.append(time.process_time() - begun)
        seconds.append(min(tries))
    assert seconds[1] < 12 * seconds[0] + 0.05  # quadratic time would be 16 times as much


def test_steps_can_be_sent_to_other_processes() -> None:
    text = "a@b.de"
    before = redact(text, step := Redact())
    assert redact(text, pickle.loads(pickle.dumps(step))) == before  # noqa: S301 - made here


def test_redactions_are_recorded_without_the_secrets(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    rng = random.Random(7)
    notice = "# Copyright (c) 2020 Kiln\n# write to kiln@kiln.io\n\n"
    planted = [(rule, key, line) for rule, key, line in plant(rng) if key in line]
    texts = {
        "planted.py": notice + "é = 1\n" + "".join(line for _, _, line in planted),
        "mail.py": "a = 1\n# é: ann@kiln.io and 52.94.236.248\n",
        "again.py": 'b = 2\nTOKEN = "' + planted[2][1] + '"\n',
        "dropped.py": "# ann@kiln.io " + "x" * 2000 + "\n",
    }
    for name, text in texts.items():
        (code / "repository0" / name).write_text(text, encoding="utf-8")
    steps = (Filters(filters=CorpusConfig(sources=()).steps[1].filters), CopyrightNotices(), Redact())  # type: ignore[attr-defined]
    source = LocalRepositories(folder=code, license="MIT", languages=("Python",))
    manifest = build_corpus(CorpusConfig(sources=(source,), steps=steps, max_overlap=None), tmp_path / "corpus")
    rows = pq.read_table(tmp_path / "corpus" / "redactions.parquet").to_pylist()
    assert manifest["redacted"] == dict(
        sorted(Counter(row["rule"] for row in rows).items(), key=lambda i: (-i[1], i[0]))
    )
    assert {row["name"] for row in rows} == {f"repository0@-/{name}" for name in ("planted.py", "mail.py", "again.py")}
    assert [(row["rule"], row["line"]) for row in rows if "mail" in row["name"]] == [("email", 2), ("ip-address", 2)]

    found = [row for row in rows if "planted" in row["name"]]
    assert [row["rule"] for row in found] == [rule for rule, _, _ in planted]
    data = texts["planted.py"].encode()
    for row, (rule, key, _) in zip(found, planted, strict=True):
        at = data.index(key.encode()) if "webhook" not in rule else row["byte"]
        assert (row["byte"], row["line"]) == (at, data[:at].count(b"\n") + 1)
        if row["sha256"] is not None and "webhook" not in rule and rule != "azure-storage-key":
            assert row["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    has_hash = {row["rule"] for row in rows if row["sha256"] is not None}
    assert has_hash.isdisjoint({"email", "ip-address", "password", "secret"}) and len(has_hash) > 35
    (again,) = [row for row in rows if "again" in row["name"]]
    assert again["sha256"] == found[2]["sha256"] is not None  # the same key in two files
    written = b"".join(path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file())
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "corpus").rglob("*.parquet")]
    assert not any(key in str(tables) or key.encode() in written for _, key, _ in planted)
    assert MIN_HASHED_BITS == 64


def test_explain_shows_the_counts_of_each_rule(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('# ann@kiln.io, bob@kiln.io\nHOST = "52.94.236.248"\n', encoding="utf-8")
    config = CorpusConfig(sources=(LocalRepositories(folder=tmp_path),))
    (found,) = [row for row in explain_file(path, config, "MIT") if row.step == "Redact"]
    assert (found.outcome, found.measured) == ("edited", "email: 2, ip-address: 1")
