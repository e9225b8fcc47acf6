"""Files of weights, as strangers may have written them: safetensors, and pickles read by PyTorch's weights-only loader.

`check` is called with the names of the weights before a tensor is read: dtype, layout, and that the file is as large as its
tensors. Buffers of old files, which are no weights, may have any dtype. Every failure of reading a file becomes one sentence
that names the file.
"""

import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import read_json
from codekiln.model.tensors import open_safetensors

WEIGHTS = "model.safetensors"
# Where weights may be; the first that exists is read. An index names the file of each tensor.
_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_REASON = 200  # characters of a library's message that an error shows

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SafetensorsFile:
    path: Path

    def shapes(self) -> dict[str, Shape]:
        with open_safetensors(self.path) as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def check(self, names: Iterable[str]) -> None:
        """Raises InvalidFileError if one of the tensors has a dtype that weights do not have."""
        with open_safetensors(self.path) as file:
            for name in sorted(set(file.keys()) & set(names)):
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise InvalidFileError(_unsupported(self.path, name, dtype))

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        with open_safetensors(self.path) as file:
            for name in sorted(set(file.keys()) & set(names)):
                yield name, _as_weight(file.get_tensor(name))


@dataclass(frozen=True)
class PickledFile:
    """Read by PyTorch's weights-only loader, which runs no code. Mapped, so that a tensor is read when it is used."""

    path: Path

    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self._load().items()}

    def check(self, names: Iterable[str]) -> None:
        """Raises InvalidFileError if one of the tensors has a dtype or a layout that weights do not have."""
        loaded = self._load()
        for name in sorted(set(loaded) & set(names)):
            self._check(name, loaded[name])

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        loaded = self._load()
        yield from ((name, _as_weight(loaded[name])) for name in sorted(set(loaded) & set(names)))

    def _load(self) -> dict[str, Tensor]:
        is_archive = self._check_archive()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about kinds of pickles, which are refused or read
                loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=is_archive)
        except Exception as error:  # a damaged or hostile pickle makes the loader raise nearly anything
            raise InvalidFileError(
                f"{self.path} is refused: it is truncated or damaged, or not a plain weights file, which may execute code "
                f"({_reason(error)})"
            ) from None
        if not isinstance(loaded, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
        ):
            raise InvalidFileError(
                f"{self.path} does not contain a state dict: it holds something other than tensors by name"
            )
        return loaded

    def _check_archive(self) -> bool:
        """Whether the file is a zip archive, as since PyTorch 1.6. Raises InvalidFileError for a compressed one: PyTorch
        never writes such an archive, and a small one may expand to any size."""
        try:
            if not zipfile.is_zipfile(self.path):
                return False
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise InvalidFileError(f"{self.path} is truncated or damaged ({_reason(error)})") from None
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InvalidFileError(f"{self.path} is refused: it is a compressed archive, which PyTorch does not write")
        return True

    def _check(self, name: str, tensor: Tensor) -> None:
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES.values():
            raise InvalidFileError(_unsupported(self.path, name, f"{tensor.dtype}, {tensor.layout}"))
        # Stride 0 makes a few bytes look like a tensor of any size.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InvalidFileError(
                f"{self.path} is refused: {name[:100]} is larger than the data that the file has for it"
            )


WeightFile = SafetensorsFile | PickledFile


def find_weight_files(folder: Path) -> list[WeightFile]:
    """The files with the weights of a model directory. Raises CodekilnError that names a missing or damaged one."""
    first = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if first is None:
        raise MissingFileError(f"{folder} has no weights ({', '.join(_FILES)}): name a run or a model folder")
    names = [first.name]
    if first.suffix == ".json":
        index = read_json(first).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
            raise InvalidFileError(f"{first} has no weight_map from tensors to files: download it again")
        names = sorted(set(index.values()))
        for name in names:
            if Path(name).name != name or "\0" in name or name in (".", ".."):
                raise InvalidFileError(f"{first} is refused: it names {name[:100]!r}, which is not in its folder")
            if not (folder / name).is_file():
                raise MissingFileError(f"{folder / name} is missing, which {first.name} names: download it")
    return [SafetensorsFile(folder / n) if n.endswith(".safetensors") else PickledFile(folder / n) for n in names]


def _as_weight(tensor: Tensor) -> Tensor:
    """Weights are computed in float32 at most."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _unsupported(path: Path, name: str, found: object) -> str:
    wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES.values())
    return f"{path}: the tensor {name[:100]} has the unsupported type {found}; weights must be dense and {wanted}"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:_MAX_REASON]
