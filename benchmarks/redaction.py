"""What redaction replaces in the installed packages and the standard library, with precision and recall on a labeled sample.

Run: `python benchmarks/redaction.py [--print]`. Everything that has the form of an address is a candidate. A random sample of
distinct candidates was labeled by reading: addresses, and others (message ids, passwords in URLs, code, git remotes, versions,
file names, domains that do not exist). `redaction_labels.json` has the SHA-256 of each, because the text would be a list of
addresses. Candidates of other packages have no label, and are counted only. `--print` prints all candidates with the text
around them, their label and the decision.
"""

import argparse
import hashlib
import json
import re
import sysconfig
from collections import Counter
from pathlib import Path

from codekiln.corpus.steps.redact import redact_emails

LABELS = Path(__file__).with_name("redaction_labels.json")
CANDIDATE = re.compile(r"[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
NEAR, AROUND = 12, 40  # characters that are shown, and that decide


def read_candidates() -> Counter[tuple[str, bool]]:
    """Each candidate with the text near it, and whether it is replaced, with the number of places."""
    found: Counter[tuple[str, bool]] = Counter()
    for name in ("purelib", "stdlib"):
        for path in sorted(Path(sysconfig.get_paths()[name]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for match in CANDIDATE.finditer(text):
                shown = repr(text[max(0, match.start() - NEAR) : match.end() + NEAR])
                redacted, _ = redact_emails(text[max(0, match.start() - AROUND) : match.end() + AROUND])
                found[shown, match.group() not in redacted] += 1
    return found


def hash_of(shown: str) -> str:
    """The name of a candidate in the file of labels."""
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="prints")
    prints = parser.parse_args().prints
    labels: dict[str, bool] = json.loads(LABELS.read_text(encoding="utf-8")) if LABELS.is_file() else {}
    found = read_candidates()
    for is_replaced, title in ((True, "replaced"), (False, "kept")):
        counts = {shown: n for (shown, replaced), n in found.items() if replaced == is_replaced}
        print(f"{title}: {sum(counts.values()):,} places, {len(counts):,} distinct")
    if prints:
        for shown, is_replaced in sorted(found, key=lambda pair: hash_of(pair[0])):
            print(hash_of(shown), labels.get(hash_of(shown), "-"), "replaced" if is_replaced else "kept", shown)
    pairs = [(labels[hash_of(shown)], replaced) for shown, replaced in found if hash_of(shown) in labels]
    right = sum(is_address and replaced for is_address, replaced in pairs)
    n_replaced, n_addresses = sum(replaced for _, replaced in pairs), sum(is_address for is_address, _ in pairs)
    print(f"labeled: {len(pairs)} of {len(labels)} candidates are in these packages")
    if pairs:
        precision, recall = right / max(1, n_replaced), right / max(1, n_addresses)
        print(f"precision {right}/{n_replaced} = {precision:.3f}, recall {right}/{n_addresses} = {recall:.3f}")


if __name__ == "__main__":
    main()
