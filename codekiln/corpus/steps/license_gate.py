"""The license gate: drops files that are not under a permissive license."""

import re
from dataclasses import dataclass

from codekiln.corpus.licenses import PERMISSIVE, header_license, is_permissive
from codekiln.corpus.steps.step import Draft, Drop, Step

REASON = "license "  # what the reasons of this step begin with
_HEADER_CHARACTERS = 5_000
_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]{1,300})")


@dataclass(frozen=True, kw_only=True)
class LicenseGate(Step):
    """Keeps files under one of `licenses`. An SPDX header of a file has priority over what its repository declares.

    Not if the user gave the
    license, and not in prose, which quotes code.
    """

    licenses: frozenset[str] = PERMISSIVE

    def check_document(self, draft: Draft) -> Drop | None:
        is_fixed = draft.file.is_license_given or draft.file.is_prose
        if not is_fixed and (found := _HEADER.search(draft.text[:_HEADER_CHARACTERS])):
            draft.license = header_license(found[1])
        return None if is_permissive(draft.license, self.licenses) else Drop(REASON + draft.license)
