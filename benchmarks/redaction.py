"""Redaction on the Python files of this machine: speed, quality on planted keys, and on a labeled sample of addresses.

    python -m benchmarks.redaction [--print]

Speed: all rules over about 60 MB of files, in processor seconds (the best of three rounds). Peers get fewer files, because
they are slow: one alternation of the gates of all rules for Python's `re`, which only finds candidates; and detect-secrets
with its default plugins, which reads the files too. It is installed into a temporary folder.

Planted keys: `tests/planted.py` makes random keys in the formats of vendors, and lines that look like keys. A tool finds a key
if it reports its line.

Addresses: everything that has the form of an e-mail address is a candidate. A random sample of distinct candidates was labeled
by reading: addresses, and others (message ids, passwords in URLs, code, git remotes, versions, file names, domains that do not
exist). `redaction_labels.json` has the SHA-256 of each, because the text would be a list of addresses. Candidates of other
packages have no label, and are counted only. `--print` prints all candidates with the text around them, their label and the
decision.
"""

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

from codekiln.corpus.redaction.emails import EMAILS
from codekiln.corpus.redaction.rules import Rule, RuleSet
from codekiln.corpus.steps.redact import ALL_RULES, redact_emails
from tests.planted import NO_SECRETS, plant

LABELS = Path(__file__).with_name("redaction_labels.json")
CANDIDATE = re.compile(r"[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
NEAR, AROUND = 12, 40  # characters that are shown, and that decide
SPEED_BYTES, PEER_BYTES, N_SEEDS = 60_000_000, 1_500_000, 20
PEER = """
import json, sys, time
from detect_secrets import SecretsCollection
from detect_secrets.settings import default_settings
paths, (planted, others) = json.load(open(sys.argv[1]))
def lines(*paths):
    found = SecretsCollection()
    for path in paths:
        found.scan_file(path)
    return {secret.line_number for _, secret in found}
with default_settings():
    lines(others)  # loads the plugins
    start = time.process_time()
    lines(*paths)
    seconds = time.process_time() - start
    print(json.dumps([seconds, sorted(lines(planted)), sorted(lines(others))]))
"""


def python_files() -> list[Path]:
    """The files of the standard library and of installed packages, in order."""
    return [path for name in ("purelib", "stdlib") for path in sorted(Path(sysconfig.get_paths()[name]).rglob("*.py"))]


def read_sample(paths: list[Path], n_bytes: int) -> dict[Path, bytes]:
    """Files in a fixed random order with about `n_bytes` together, each of at most a megabyte."""
    sample: dict[Path, bytes] = {}
    for path in random.Random(0).sample(paths, len(paths)):
        data = path.read_bytes()
        if len(data) <= 1_000_000 and n_bytes > 0:
            sample[path] = data
            n_bytes -= len(data)
    return sample


def measure_rules(rules: tuple[Rule, ...], files: dict[Path, bytes]) -> float:
    """Megabytes per processor second in which rules search the texts of files."""
    texts = [data.decode(errors="replace") for data in files.values()]
    rule_set = RuleSet(rules)
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        for text in texts:
            rule_set.find(text.encode())
        seconds.append(time.process_time() - begun)
    return sum(map(len, files.values())) / min(seconds) / 1e6


def measure_re(files: dict[Path, bytes]) -> float:
    """Megabytes per processor second in which Python's `re` finds the candidates of all rules."""
    pattern = re.compile("|".join(f"(?:{rule.gate})" for rule in ALL_RULES).encode())
    begun = time.process_time()
    for data in files.values():
        for _ in pattern.finditer(data):
            pass
    return sum(map(len, files.values())) / (time.process_time() - begun) / 1e6


def found_lines(lines: list[str]) -> set[int]:
    """The numbers of the lines, from 1, in which the rules for secrets find something."""
    rule_set = RuleSet([rule for rule in ALL_RULES if rule.name not in ("email", "ip-address")])
    return {number for number, line in enumerate(lines, 1) if rule_set.find(line.encode())}


def compare(files: dict[Path, bytes]) -> None:
    """Prints speed, and the quality on planted keys."""
    few = read_sample(list(files), PEER_BYTES)
    planted = [code.replace("\n", " ").strip() for seed in range(N_SEEDS) for *_, code in plant(random.Random(seed))]
    others = [line.replace("\n", " ").strip() for line in NO_SECRETS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder / "peer"), "detect-secrets"]
        subprocess.run(pip, check=True)
        for file, lines in (("planted.py", planted), ("others.py", others)):
            (folder / file).write_text("\n".join(lines), encoding="utf-8")
        paths = [list(map(str, few)), [str(folder / "planted.py"), str(folder / "others.py")]]
        (folder / "paths.json").write_text(json.dumps(paths), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", PEER, str(folder / "paths.json")],
            env={"PYTHONPATH": str(folder / "peer")},
            capture_output=True,
            text=True,
            check=True,
        )
    seconds, peer_planted, peer_others = json.loads(done.stdout)
    speeds = {
        "Codekiln, all rules": measure_rules(ALL_RULES, files),
        "Codekiln, e-mail addresses": measure_rules((EMAILS,), files),
        "re, candidates only": measure_re(few),
        "detect-secrets": sum(map(len, few.values())) / seconds / 1e6,
    }
    rule_set = RuleSet(ALL_RULES)
    counts = Counter(match.rule for data in files.values() for match in rule_set.find(data))
    print(f"{sum(map(len, files.values())) / 1e6:.0f} MB of files: {dict(counts.most_common())}")
    for title, speed in speeds.items():
        print(f"{title}: {speed:,.1f} MB per processor second")
    for title, hits, wrong in (
        ("Codekiln", found_lines(planted), found_lines(others)),
        ("detect-secrets", peer_planted, peer_others),
    ):
        print(f"{title}: {len(hits)} of {len(planted)} planted keys, {len(wrong)} of {len(others)} lines without keys")


def read_candidates(paths: list[Path]) -> Counter[tuple[str, bool]]:
    """Each candidate with the text near it, and whether it is replaced, with the number of places."""
    found: Counter[tuple[str, bool]] = Counter()
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in CANDIDATE.finditer(text):
            shown = repr(text[max(0, match.start() - NEAR) : match.end() + NEAR])
            redacted, _ = redact_emails(text[max(0, match.start() - AROUND) : match.end() + AROUND])
            found[shown, match.group() not in redacted] += 1
    return found


def hash_of(shown: str) -> str:
    """The name of a candidate in the file of labels."""
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def check_addresses(paths: list[Path], *, prints: bool) -> None:
    """Prints how many candidates are replaced, and precision and recall on those with a label."""
    labels: dict[str, bool] = json.loads(LABELS.read_text(encoding="utf-8")) if LABELS.is_file() else {}
    found = read_candidates(paths)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="prints")
    prints = parser.parse_args().prints
    paths = python_files()
    compare(read_sample(paths, SPEED_BYTES))
    check_addresses(paths, prints=prints)


if __name__ == "__main__":
    main()
