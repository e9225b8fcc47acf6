"""The license gate: drops files whose repository does not declare a permissive license."""

from dataclasses import dataclass

from codekiln.corpus.licenses import PERMISSIVE, is_permissive
from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.steps.step import Step

REASON = "license "  # what the reasons of this step begin with


@dataclass(frozen=True, kw_only=True)
class LicenseGate(Step):
    """Keeps files under one of `licenses`."""

    licenses: frozenset[str] = PERMISSIVE

    def check_file(self, file: SourceFile) -> str | None:
        return None if is_permissive(file.license, self.licenses) else REASON + file.license
