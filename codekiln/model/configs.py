"""The shapes of models. A family is a class: what its members share stands in the class, their sizes in its fields.

`codegen` and `incoder` are the two published systems, every size with its exact count of parameters. `kiln` is the modern
one, exactly the shape of Qwen3 (or Qwen2, or Llama), which others run as it is.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar


@dataclass(frozen=True)
class ModelConfig:
    """What all families have. `d_head` is a width of its own: `n_heads * d_head` need not be `d_model`.

    `vocab_size` counts the rows of the embedding, which may be more than the tokenizer has ids; those are never sampled.
    """

    family: ClassVar[str]
    norm: ClassVar[Literal["layer", "rms"]]
    # What stands between the projections of the feed-forward layer; the gated one has a third projection.
    activation: ClassVar[Literal["gelu_tanh", "gelu", "silu_gated"]]
    # Channel i turned with i + d/2, or with its neighbour, or sinusoids added to the embedding.
    position_encoding: ClassVar[Literal["rope_half", "rope_interleaved", "sinusoidal"]]
    # Attention and feed-forward layer side by side on one norm, or one after the other with a norm each.
    parallel_residual: ClassVar[bool] = False
    has_out_bias: ClassVar[bool] = False
    has_mlp_bias: ClassVar[bool] = False
    has_head_bias: ClassVar[bool] = False

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    context_length: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, bool) and value <= 0:
                raise ValueError(f"model.{name} is {value}: it must be above 0")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key heads: one must divide the other"
            )
        if self.n_rotary % 2 or self.n_rotary > self.d_head:
            raise ValueError(f"{self.n_rotary} channels of a d_head of {self.d_head} cannot turn in pairs")

    @property
    def n_rotary(self) -> int:
        """Channels of each head, from the first, that turn with the position."""
        return self.d_head

    @property
    def embedding_scale(self) -> float:
        """What an embedding is multiplied by."""
        return 1.0

    @property
    def n_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        d, q, kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        norm = d * (2 if self.norm == "layer" else 1)
        attention = (
            2 * d * (q + kv) + (q + 2 * kv) * self.qkv_bias + d * self.has_out_bias + 2 * self.d_head * self.qk_norm
        )
        mlp = d * self.d_ff * (3 if self.activation == "silu_gated" else 2) + (self.d_ff + d) * self.has_mlp_bias
        block = attention + mlp + norm * (1 if self.parallel_residual else 2)
        return self.n_layers * block + norm + self._embeddings + self.vocab_size * self.has_head_bias

    @property
    def flops_per_token(self) -> float:
        """`training_flops` a token of rows as long as the context."""
        return self.training_flops(self.context_length)

    def training_flops(self, seq_len: int) -> float:
        """Floating-point operations of a training step per token: 6 a weight that multiplies, and causal attention.

        Attention over a row of T counts half of the T by T scores, forward and backward (PaLM, appendix B).
        """
        multiplying = self.n_parameters - self._embeddings + self.vocab_size * self.d_model
        return 6.0 * multiplying + 6.0 * self.n_layers * self.n_heads * self.d_head * seq_len

    @property
    def _embeddings(self) -> int:
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)


@dataclass(frozen=True)
class KilnConfig(ModelConfig):
    """RMSNorm, rotary halves, grouped-query attention with QK-norm, SwiGLU, no biases (Qwen3, arXiv 2505.09388).

    Without QK-norm it is Llama's shape, with a bias on queries, keys and values Qwen2's.
    """

    family = "kiln"
    norm = "rms"
    activation = "silu_gated"
    position_encoding = "rope_half"

    norm_eps: float = 1e-6
    qk_norm: bool = True


@dataclass(frozen=True)
class CodeGenConfig(ModelConfig):
    """LayerNorm, attention and feed-forward layer in parallel on it, the first `rotary_dim` channels turned in adjacent
    pairs, tanh GELU, an untied head with a bias (CodeGen, section 2.2 and the released code)."""

    family = "codegen"
    norm = "layer"
    activation = "gelu_tanh"
    position_encoding = "rope_interleaved"
    parallel_residual = True
    has_mlp_bias = True
    has_head_bias = True

    tie_embeddings: bool = False
    rotary_dim: int = 64

    @property
    def n_rotary(self) -> int:
        return self.rotary_dim


@dataclass(frozen=True)
class InCoderConfig(ModelConfig):
    """LayerNorm before each layer, erf GELU, biases, embeddings scaled by sqrt(d_model) with sinusoids added, a tied head
    (the fairseq dense models, arXiv 2112.10684, as XGLM)."""

    family = "incoder"
    norm = "layer"
    activation = "gelu"
    position_encoding = "sinusoidal"
    has_out_bias = True
    has_mlp_bias = True

    qkv_bias: bool = True

    @property
    def n_rotary(self) -> int:
        return 0

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.d_model)


def config_from_record(record: dict[str, Any]) -> ModelConfig:
    """The config that a recipe's record tells. Raises ValueError for a family or field that is not known here."""
    families = {family.__name__: family for family in ModelConfig.__subclasses__()}
    kind, fields = record.get("kind"), {name: value for name, value in record.items() if name != "kind"}
    try:
        return families[str(kind)](**fields)
    except (KeyError, TypeError):
        raise ValueError(
            f"no family here is a {kind} of {', '.join(fields)} (known are {', '.join(families)}): "
            "use the version of codekiln that made the run"
        ) from None


def codegen(size: str) -> CodeGenConfig:
    """A published CodeGen: 350M, 2B, 6B or 16B, as its checkpoints are named (2.7B, 6.1B and 16.1B in the paper)."""
    layers, d_model, heads, d_head, rotary = _lookup_size(size, _CODEGEN)
    return CodeGenConfig(
        layers, d_model, heads, heads, d_head, 4 * d_model, vocab_size=51_200, context_length=2048, rotary_dim=rotary
    )


def incoder(size: str) -> InCoderConfig:
    """A published InCoder: 1B or 6B, as its checkpoints are named (1.3B and 6.7B in the paper)."""
    layers, d_model, heads = _lookup_size(size, _INCODER)
    return InCoderConfig(
        layers, d_model, heads, heads, d_model // heads, 4 * d_model, vocab_size=50_518, context_length=2048
    )


def kiln(size: str, *, vocab_size: int, context_length: int) -> KilnConfig:
    """A step of our ladder, 1M to 7B, named by its parameters without embeddings. Sizes are ours."""
    layers, d_model, heads, kv_heads, d_ff, tied = _lookup_size(size, _KILN)
    return KilnConfig(
        layers,
        d_model,
        heads,
        kv_heads,
        64 if d_model < 1024 else 128,
        d_ff,
        vocab_size,
        context_length,
        tie_embeddings=tied,
    )


T = TypeVar("T")
# Layers, d_model, heads, d_head, rotary channels.
_CODEGEN = {
    "350M": (20, 1024, 16, 64, 32),
    "2B": (32, 2560, 32, 80, 64),
    "6B": (33, 4096, 16, 256, 64),
    "16B": (34, 6144, 24, 256, 64),
}
# Layers, d_model, heads.
_INCODER = {"1B": (24, 2048, 32), "6B": (32, 4096, 32)}
# Layers, d_model, heads, key heads, d_ff, whether the head is tied.
_KILN = {
    "1M": (4, 128, 2, 2, 384, False),
    "5M": (6, 256, 4, 2, 768, False),
    "25M": (8, 512, 8, 4, 1408, True),
    "110M": (12, 896, 14, 2, 2432, True),
    "350M": (24, 1024, 16, 8, 2816, True),
    "1B": (28, 1792, 14, 7, 4864, True),
    "3B": (32, 2560, 20, 4, 8704, False),
    "7B": (36, 3584, 28, 4, 12_288, False),
}


def _lookup_size(size: str, sizes: dict[str, T]) -> T:
    if size not in sizes:
        raise ValueError(f"no size is called {size!r}: known are {', '.join(sizes)}")
    return sizes[size]
