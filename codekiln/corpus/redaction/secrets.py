"""Finds keys, tokens and passwords. The formats are those that the vendors document, or that their keys show.

Placeholders stay: values with a word such as "example" or "xxxx", sequences, and values of low entropy. Not found are secrets
without a known format that no name such as `api_key` precedes, and those that are put together from parts.
"""

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

from codekiln.corpus.redaction.rules import Match, Rule, compile_re2

MIN_BITS_PER_BYTE = 3.0  # of a random value; 16 random hexadecimal digits have about 3.3, 20 random letters about 4
MIN_HEX_DIGITS = 24  # shorter ones are more often checksums and identifiers
_PLACEHOLDER = re.compile(
    rb"example|sample|x{4}|your|dummy|fake|placeholder|redacted|removed|change_?me|replace|insert|1234567|\.\.\.|\*\*\*",
    re.I,
)
_MORE_PLACEHOLDERS = re.compile(rb"test|mock|secret|password|passwd|qwerty|letmein|foobar|abcdef|none|null|todo", re.I)


def entropy_bits(value: bytes) -> float:
    """The entropy of a value in bits: that of its bytes' frequencies, times its length."""
    n = len(value)
    return -sum(count * math.log2(count / n) for count in Counter(value).values())


def is_placeholder(value: bytes) -> bool:
    """Whether a value of a vendor's format is no secret: it has a word of placeholders, low entropy, or is a sequence."""
    if _PLACEHOLDER.search(value) or entropy_bits(value) < MIN_BITS_PER_BYTE * len(value):
        return True
    n_steps = sum(abs(one - next_one) <= 1 for one, next_one in pairwise(value))
    return n_steps >= 0.5 * len(value)


def looks_random(value: bytes) -> bool:
    """Whether a value without a known format looks like a random one and not like words.

    Lower-case letters, capitals and digits alternate: of 62 random characters, neighbors differ in kind in 62% of all places,
    of hexadecimal digits in 47%, in words and identifiers rarely.
    """
    if is_placeholder(value) or _MORE_PLACEHOLDERS.search(value) or not re.search(rb"[0-9]", value):
        return False
    if len(value) < MIN_HEX_DIGITS and re.fullmatch(rb"[0-9A-Fa-f]+", value):
        return False
    kinds = re.sub(rb"[a-z]", b"a", re.sub(rb"[A-Z]", b"A", re.sub(rb"[0-9]", b"0", value)))
    n_changes = sum(one != other and bytes((one, other)).isalnum() for one, other in pairwise(kinds))
    return n_changes >= 0.2 * len(value)


@dataclass(frozen=True)
class SecretFormat:
    """Keys of a vendor: `prefix` and `rest` are expressions of RE2. `context` precedes a key that has no fixed beginning."""

    name: str
    prefix: str
    rest: str
    context: str = ""

    is_generated: ClassVar = True

    @property
    def gate(self) -> str:
        return rf"\b{self.context}{self.prefix}"

    def find(self, data: bytes) -> Iterator[Match]:
        for match in _compiled(rf"\b{self.context}({self.prefix}{self.rest})(?:\W|\z)").finditer(data):
            start, end = match.span(1)
            if not is_placeholder(data[start:end]):
                yield Match(self.name, start, end, b"removed-" + self.name.encode())


@dataclass(frozen=True)
class JsonWebTokens:
    """JSON Web Tokens (RFC 7519): the header is an object with the name of an algorithm."""

    name: ClassVar = "jwt"
    gate: ClassVar = r"\beyJ[A-Za-z0-9_-]{8}"
    is_generated: ClassVar = True

    def find(self, data: bytes) -> Iterator[Match]:
        pattern = _compiled(r"\b(eyJ[A-Za-z0-9_-]{8,})\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}")
        for match in pattern.finditer(data):
            if _is_jwt_header(match.group(1)):
                yield Match(self.name, match.start(), match.end(), b"removed-jwt")


def _is_jwt_header(encoded: bytes) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


@dataclass(frozen=True)
class PrivateKeys:
    """Private keys in PEM (RFC 7468) and OpenPGP blocks. The lines with their labels stay, and the body is replaced.

    A block without an end, or with more than `MAX_BODY_BYTES`, is not found.
    """

    name: ClassVar = "private-key"
    gate: ClassVar = "PRIVATE KEY(?: BLOCK)?-----"
    is_generated: ClassVar = True

    def find(self, data: bytes) -> Iterator[Match]:
        for label in _PEM_LABEL.finditer(data):
            start = label.end()
            end = data.find(b"-----", start, start + MAX_BODY_BYTES)
            body = data[start:end]
            runs = b"".join(_BASE64_RUN.findall(body))
            if (
                data[end : end + 9] == b"-----END "
                and len(runs) >= MIN_KEY_CHARACTERS
                and not is_placeholder(runs[:256])
            ):
                yield Match(self.name, start, end, _without_key(body))


MAX_BODY_BYTES = 20_000  # an RSA key of 16,384 bits has 12,700
MIN_KEY_CHARACTERS = 60  # an Ed25519 key in PKCS #8 has 64 characters of Base64
_PEM_LABEL = re.compile(rb"-----BEGIN (?:[A-Z0-9]{1,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
_BASE64_RUN = re.compile(rb"(?<!\\)[A-Za-z0-9+/=]{16,}")  # the n of \n is not a part of the key
_LAST_LINE = re.compile(rb"(?:\s|\\[nr])+[A-Za-z0-9+/=]{1,15}((?:\s|\\[nr])+)")


def _without_key(body: bytes) -> bytes:
    """The body of a block with a word in place of the key. In code, the quotes of every line stay."""
    first, *others = _BASE64_RUN.split(body)
    if re.search(rb"[\"'`]", body):
        return first + b"removed-private-key" + b"".join(others)
    last = _LAST_LINE.fullmatch(others[-1])
    return first + b"removed-private-key" + (last.group(1) if last else others[-1])


@dataclass(frozen=True)
class UrlPasswords:
    """Passwords in URLs: `scheme://user:password@host`. Those of examples and of hosts that examples use stay."""

    name: ClassVar = "password"
    gate: ClassVar = r"://[^\s:/@'\"`]*:[^\s/@'\"`]{5}"
    is_generated: ClassVar = False

    def find(self, data: bytes) -> Iterator[Match]:
        pattern = _compiled(r"://([^\s:/@'\"`<>]{0,64}):([^\s:,/@'\"`<>]{6,128})@([A-Za-z0-9.-]{1,255})")
        for match in pattern.finditer(data):
            user, password, host = match.group(1, 2, 3)
            is_kept = _PLACEHOLDER.search(password) or _MORE_PLACEHOLDERS.search(password) or _VARIABLE.search(password)
            if not is_kept and password != user and not _EXAMPLE_HOST.search(host):
                yield Match(self.name, match.start(2), match.end(2), b"removed-password")


_VARIABLE = re.compile(rb"[{}$%()\[\]]|pass|admin|user|guest|\A[A-Za-z]+\Z")
_EXAMPLE_HOST = re.compile(
    rb"(?:\A|\.)(?:example(?:\.[a-z]+)?|localhost|test|invalid|host|hostname|server)\Z|\A127\.|\A0\.0\.", re.I
)


# A name that ends with a word for secrets, then a type or not, an operator, and a string; or a line of a shell or `.env` file.
_NAME = (
    "(?i:(?:api|secret|access|private|auth|encryption|signing|master|service|account|app|consumer|client|storage)[_.-]?key"
    "|secret|token|passw(?:or)?d|passphrase|pwd)"
)
_ASSIGNMENT = rf"{_NAME}[\"']?\]?(?::[ \t]?[A-Za-z]+)?[ \t]*(?:=>|:=|=|:)[ \t]*[\"'`]"
# Tokens of pages, of single requests, and parts of names for something public.
_HARMLESS = re.compile(
    rb"(?:next|previous|start|page|pagination|continuation|resume|client|request|idempotency|change|lock|action|update"
    rb"|verification|sync|identity|publickey)[_.-]?token\Z",
    re.I,
)
_VALUE = r"[A-Za-z0-9+/_.=~!@#^&*-]"


@dataclass(frozen=True)
class AssignedSecrets:
    """Values without a known format that look random: after a name such as `api_key`, or after "Bearer"."""

    name: ClassVar = "secret"
    gate: ClassVar = rf"{_ASSIGNMENT}{_VALUE}{{16}}|{_NAME}={_VALUE}{{16}}|(?i:bearer) {_VALUE}{{16}}"
    is_generated: ClassVar = False

    def find(self, data: bytes) -> Iterator[Match]:
        pattern = _compiled(
            rf"{_ASSIGNMENT}({_VALUE}{{16,128}})[\"'`]|{_NAME}=({_VALUE}{{16,128}})(?:\s|\z)"
            rf"|(?i:bearer) ({_VALUE}{{16,255}})(?:[\"'`\s]|\z)"
        )
        for match in pattern.finditer(data):
            start, end = max(match.span(group) for group in (1, 2, 3))
            name = data[max(0, match.start() - 32) : match.start() + len("token")]
            if not _HARMLESS.search(name) and looks_random(data[start:end]):
                yield Match(self.name, start, end, b"removed-secret")


@cache
def _compiled(pattern: str) -> Any:
    return compile_re2(pattern)


_ID = "[A-Za-z0-9_-]"
_HEX = "[0-9a-f]"
# The first rule that matches counts: formats come before values that only their context shows.
SECRETS: tuple[Rule, ...] = (
    PrivateKeys(),
    JsonWebTokens(),
    SecretFormat("aws-access-key", "(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{4}", "[A-Z2-7]{12}"),
    SecretFormat("github-token", "gh[pousr]_[A-Za-z0-9]{4}", "[A-Za-z0-9]{32,251}"),
    SecretFormat("github-token", "github_pat_[A-Za-z0-9]{4}", "[A-Za-z0-9]{18}_[A-Za-z0-9]{59}"),
    SecretFormat("gitlab-token", "gl(?:pat|dt|ptt|rt|cbt|ft|soat|agent|oas|imt)-", rf"{_ID}{{20,300}}"),
    SecretFormat("slack-token", "xox[abeoprs]-[A-Za-z0-9]", r"[A-Za-z0-9.-]{14,250}"),
    SecretFormat("slack-token", "xapp-[0-9]-[A-Z0-9]", "[A-Z0-9]{5,20}-[0-9]{5,20}-[0-9a-f]{32,128}"),
    SecretFormat(
        "slack-webhook", "T[A-Z0-9]", f"[A-Z0-9]{{6,14}}/{_ID}{{6,20}}/[A-Za-z0-9]{{20,60}}", r"hooks\.slack\.com/[a-z]+/"
    ),
    SecretFormat("discord-webhook", "[0-9]{4}", f"[0-9]{{13,16}}/{_ID}{{60,80}}", r"discord(?:app)?\.com/api/webhooks/"),
    SecretFormat("stripe-key", "(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{8}", "[A-Za-z0-9]{8,239}"),
    SecretFormat("google-api-key", "AIza", f"{_ID}{{35}}"),
    SecretFormat("google-oauth", "GOCSPX-", f"{_ID}{{28}}"),
    SecretFormat("google-oauth", r"ya29\.[A-Za-z0-9_-]{4}", f"{_ID}{{26,500}}"),
    SecretFormat("npm-token", "npm_[A-Za-z0-9]{8}", "[A-Za-z0-9]{28}"),
    SecretFormat("pypi-token", "pypi-Ag(?:EIcHlwaS5vcmc|ENdGVzdC5weXBpLm9yZw)", f"{_ID}{{50,500}}"),
    SecretFormat("rubygems-token", "rubygems_", f"{_HEX}{{48}}"),
    SecretFormat("docker-token", "dckr_[po]at_", f"{_ID}{{27,32}}"),
    SecretFormat("huggingface-token", "(?:hf|api_org)_[A-Za-z0-9]{12}", "[A-Za-z0-9]{22}"),
    SecretFormat("anthropic-key", "sk-ant-[a-z0-9]+-", f"{_ID}{{80,120}}"),
    SecretFormat("openai-key", "sk-(?:proj|svcacct|admin)-", f"{_ID}{{40,200}}"),
    SecretFormat("openai-key", "sk-(?:or-v1-)?[A-Za-z0-9]{16}", "[A-Za-z0-9]{16,48}"),
    SecretFormat("groq-key", "gsk_[A-Za-z0-9]{8}", "[A-Za-z0-9]{44}"),
    SecretFormat("replicate-token", "r8_[A-Za-z0-9]{8}", "[A-Za-z0-9]{29}"),
    SecretFormat("sendgrid-key", r"SG\.[A-Za-z0-9_-]{8}", rf"{_ID}{{14}}\.{_ID}{{43}}"),
    SecretFormat("mailgun-key", "key-[0-9a-f]{8}", f"{_HEX}{{24}}"),
    SecretFormat("mailchimp-key", f"{_HEX}{{32}}-us", "[0-9]{1,2}"),
    SecretFormat("twilio-key", "SK[0-9a-f]{8}", f"{_HEX}{{24}}"),
    SecretFormat("telegram-token", "[0-9]{8,10}:AA", f"{_ID}{{33}}"),
    SecretFormat("digitalocean-token", "do[opr]_v1_", f"{_HEX}{{64}}"),
    SecretFormat("databricks-token", "dapi[0-9a-f]{8}", f"{_HEX}{{24}}(?:-[0-9])?"),
    SecretFormat("shopify-token", "shp(?:at|ca|pa|ss)_", "[0-9a-fA-F]{32}"),
    SecretFormat("square-token", "sq0(?:atp|csp|idp)-", f"{_ID}{{22,43}}"),
    SecretFormat("heroku-token", "HRKU-", f"{_ID}{{36,70}}"),
    SecretFormat("vault-token", r"hv[sbr]\.[A-Za-z0-9_-]{8}", f"{_ID}{{16,200}}"),
    SecretFormat("terraform-token", r"[A-Za-z0-9]{14}\.atlasv1\.", f"{_ID}{{60,70}}"),
    SecretFormat("linear-key", "lin_(?:api|oauth)_", "[A-Za-z0-9]{40,64}"),
    SecretFormat("notion-token", "ntn_[A-Za-z0-9]{8}", "[A-Za-z0-9]{38}"),
    SecretFormat("new-relic-key", "NRAK-[A-Z0-9]{8}", "[A-Z0-9]{19}"),
    SecretFormat("grafana-token", "glsa_[A-Za-z0-9]{8}", f"[A-Za-z0-9]{{24}}_{_HEX}{{8}}"),
    SecretFormat("sentry-token", "sntryu_", f"{_HEX}{{64}}"),
    SecretFormat("postman-key", "PMAK-", f"{_HEX}{{24}}-{_HEX}{{34}}"),
    SecretFormat("age-key", "AGE-SECRET-KEY-1", "[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
    SecretFormat("azure-storage-key", "[A-Za-z0-9+/]{8}", "[A-Za-z0-9+/]{78}==", "AccountKey="),
    SecretFormat(
        "aws-secret-key", "[A-Za-z0-9/+]{8}", "[A-Za-z0-9/+]{32}",
        r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\]?[ \t]*(?:=>|=|:)?[ \t]*[\"'`]?",
    ),
    UrlPasswords(),
    AssignedSecrets(),
)  # fmt: skip
