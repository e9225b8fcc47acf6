"""What redaction replaces in the installed packages and the standard library, and which similar text it keeps.

Run: `python benchmarks/redaction.py`. Prints each distinct place with the text around it, for a person to read, and the
counts.
"""

import re
import sysconfig
from collections import Counter
from pathlib import Path

from codekiln.corpus.steps.redact import redact_emails

# Everything that has the form of an address, whatever its top-level domain and its surroundings.
CANDIDATE = re.compile(r"[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
NEAR, AROUND = 12, 40  # characters that are shown, and that decide


def main() -> None:
    replaced: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for name in ("purelib", "stdlib"):
        for path in sorted(Path(sysconfig.get_paths()[name]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for match in CANDIDATE.finditer(text):
                shown = repr(text[max(0, match.start() - NEAR) : match.end() + NEAR])
                redacted, _ = redact_emails(text[max(0, match.start() - AROUND) : match.end() + AROUND])
                (kept if match.group() in redacted else replaced)[shown] += 1
    for title, found in (("replaced", replaced), ("kept", kept)):
        print(f"{title}: {found.total():,} places, {len(found):,} distinct")
        for shown in found:
            print("   ", shown)


if __name__ == "__main__":
    main()
