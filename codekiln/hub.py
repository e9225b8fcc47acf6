"""Files of models on the Hugging Face Hub: data only, never code."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from codekiln.errors import MissingFileError

# The files of a model that are downloaded.
MODEL_FILES = ("*.json", "*.safetensors", "pytorch_model*.bin", "merges.txt", "vocab.bpe")


def is_hub_id(name: str) -> bool:
    """Whether a name can be a model on the Hub, `owner/name`, and not a relative or absolute path."""
    return name.count("/") == 1 and not name.startswith((".", "/"))


def download_model(model: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a model's files in the local cache. Shows progress and resumes.

    Without a network, a complete copy in the cache is used. Raises MissingFileError with the reason if there is none.
    """
    try:
        try:
            listed = huggingface_hub.list_repo_files(model)
        except Exception:  # no network, which every layer below reports in its own way: use the cache
            return Path(huggingface_hub.snapshot_download(model, allow_patterns=[*patterns], local_files_only=True))
        has_safetensors = any(name.endswith(".safetensors") for name in listed)
        wanted = [pattern for pattern in patterns if not (has_safetensors and pattern.endswith(".bin"))]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted))
    except Exception as error:
        raise MissingFileError(f"{model} is not a folder, and the Hub does not provide it ({_reason(error)})") from None


def download_file(model: str, name: str) -> Path:
    """One file of a model. Raises MissingFileError with the reason."""
    try:
        return Path(huggingface_hub.hf_hub_download(model, name))
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"{model} is not a path, and the Hub does not provide its {name} ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
