"""The configuration of an index."""

from dataclasses import dataclass

from codekiln.errors import ConfigError

MIN_MEMORY_BYTES = 16_000_000


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """`memory_bytes` limits the arrays of the shards that are built at once. It decides how large shards are."""

    memory_bytes: int

    def __post_init__(self) -> None:
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise ConfigError(f"index.memory_bytes is {self.memory_bytes:,}: at least {MIN_MEMORY_BYTES:,} is needed")
