"""Redaction of e-mail addresses: addresses are replaced, code that looks like one is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codekiln.corpus.steps.redact import redact_emails

REPLACEMENT = "removed@example.com"


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
    assert REPLACEMENT in redacted
    assert "jane" not in redacted.lower() or "Jane <" in redacted


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


def test_escapes_before_an_address_stay() -> None:
    assert redact_emails(r'print("\njane@python.org")') == (rf'print("\n{REPLACEMENT}")', 1)
    assert redact_emails(r'print("\\njane@python.org")') == (rf'print("\\{REPLACEMENT}")', 1)


@given(st.text(alphabet="ab1.@-\\ \n:/%[(", max_size=60))
def test_redaction_is_idempotent(text: str) -> None:
    once, _ = redact_emails(text)
    assert redact_emails(once) == (once, 0)
