"""Errors that a user can fix. The command line prints them as one paragraph; every other exception is a bug.

    CodekilnError
    ├── ConfigError            a recipe, an option or a request that cannot work
    │   └── PromptError        a prompt that a model cannot read, while it can read others
    ├── InvalidFileError       a file that is damaged, in another format or of another version
    │   └── CorruptFileError   a file that differs from what Codekiln wrote
    ├── MissingFileError       a file, a folder or a model that does not exist
    ├── MissingPackageError    an optional package that is not installed
    ├── OutputExistsError      something in the way of an output that Codekiln did not write
    ├── DivergedError          a training run that cannot continue
    └── RankError              a rank that stops because another one failed

Errors of the system (a full disk, a missing permission) stay `OSError`.
"""


class CodekilnError(Exception):
    """The base of all errors that a user can fix. The message names what was found, what is needed and what to do."""


class ConfigError(CodekilnError, ValueError):
    """A recipe, an option or a request that cannot work."""


class NoProblemsError(ConfigError):
    """A benchmark of which there is no problem in the given code. Other benchmarks can have some."""


class PromptError(ConfigError):
    """A prompt that a model cannot read, because it is empty or does not fit. The model can read others."""


class InvalidFileError(CodekilnError, ValueError):
    """A file that is damaged, in another format or of another version."""


class CorruptFileError(InvalidFileError):
    """A file that differs from what Codekiln wrote."""


class MissingFileError(CodekilnError, FileNotFoundError):
    """A file, a folder or a model that does not exist."""


class MissingPackageError(CodekilnError, ImportError):
    """An optional package that is not installed."""


class OutputExistsError(CodekilnError, FileExistsError):
    """Something in the way of an output that Codekiln did not write, and so neither replaces nor removes."""


class DivergedError(CodekilnError):
    """A training run that cannot continue: weights that are not finite, or too many skipped steps in a row."""


class RankError(CodekilnError):
    """A rank of a distributed run stops because another one failed, whose log has the cause."""
