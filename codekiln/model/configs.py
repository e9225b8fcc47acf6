"""Model configs. A family is a class: its class attributes select the architecture, its fields are the sizes.

`codegen` and `incoder` are the two published systems, every size with its exact number of parameters. `kiln` and `lfm2` are
modern families, exactly the architectures of Qwen3 (or Qwen2, or Llama) and LFM2, which other software runs without custom
code. `starcoder2` is for imported models.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from codekiln.errors import ConfigError

# How the weights of a new model are drawn: see `codekiln/model/initialization.py`.
Initialization = Literal["codekiln", "induction", "jaxformer", "normal"]

# Sizes that no model reaches. They are checked before anything is allocated, because a config may come from a stranger.
MAX_SIZES = {
    "n_layers": 1_000,
    "d_model": 100_000,
    "n_heads": 1_000,
    "n_kv_heads": 1_000,
    "d_head": 10_000,
    "d_ff": 1_000_000,
    "vocab_size": 2_000_000,
    "context_length": 20_000_000,
    "rotary_dim": 10_000,
    "conv_width": 100,
}


def check_size(name: str, value: object) -> None:
    """Raises ConfigError if a field of a model is not a number that a model can have."""
    limit = MAX_SIZES.get(name)
    if limit is None:
        is_valid = type(value) in (int, float) and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]
        wanted = "a finite number greater than 0"
    else:
        is_valid = type(value) is int and 0 < value <= limit
        wanted = f"a whole number from 1 to {limit:,}"
    if not is_valid:
        raise ConfigError(f"model.{name} is {str(value)[:40]}: it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields of all families. `n_heads * d_head` need not equal `d_model`.

    `vocab_size` is the number of rows of the embedding. The tokenizer may have fewer ids; unused rows are never sampled.
    """

    family: ClassVar[Literal["kiln", "lfm2", "codegen", "incoder", "starcoder2"]]
    norm: ClassVar[Literal["layer", "rms"]]
    # Activation of the feed-forward layer. The gated one (SwiGLU) has a third projection.
    activation: ClassVar[Literal["gelu_tanh", "gelu", "silu_gated"]]
    # Rotary: channel i is rotated with channel i + d/2 ("half") or with its neighbor ("interleaved"). Sinusoidal: added to
    # the embedding.
    position_encoding: ClassVar[Literal["rope_half", "rope_interleaved", "sinusoidal"]]
    # Attention and feed-forward layer in parallel after one norm, or in sequence, each after its own norm.
    parallel_residual: ClassVar[bool] = False
    # Whether the output layer has a bias.
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
    rope_scale: float = 1.0  # positions are divided by it before they are rotated (linear scaling, arXiv 2306.15595)
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qk_norm: bool = False
    # Biases of queries, keys and values, of the output projection of attention, and of the feed-forward layer.
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool:
                if not isinstance(value, bool):
                    raise ConfigError(f"model.{field.name} is {str(value)[:40]}: it must be true or false")
            elif not isinstance(value, tuple):
                check_size(field.name, value)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.n_heads is {self.n_heads} and model.n_kv_heads is {self.n_kv_heads}: "
                "the first must be a multiple of the second"
            )
        if self.n_rotary % 2 or self.n_rotary > self.d_head:
            raise ConfigError(
                f"{self.n_rotary} rotary channels and a d_head of {self.d_head}: "
                "the number of rotary channels must be even and at most d_head"
            )

    @property
    def n_rotary(self) -> int:
        """Channels of each head, from the first, that are rotated by the position."""
        return self.d_head

    @property
    def embedding_scale(self) -> float:
        """The factor of the embedding."""
        return 1.0

    @property
    def layers_with_attention(self) -> tuple[int, ...]:
        """The layers that have attention, from 0. The others have a short convolution."""
        return tuple(range(self.n_layers))

    @property
    def n_parameters(self) -> int:
        """All weights. A tied embedding counts once."""
        d, q, kv = self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        norm = d * (2 if self.norm == "layer" else 1)
        attention = 2 * d * (q + kv) + (q + 2 * kv) * self.qkv_bias + d * self.out_bias + 2 * self.d_head * self.qk_norm
        n_up = 2 if self.activation == "silu_gated" else 1  # projections from d to d_ff
        mlp = d * self.d_ff * (n_up + 1) + (n_up * self.d_ff + d) * self.mlp_bias
        shared = mlp + norm * (1 if self.parallel_residual else 2)
        n_attention = len(self.layers_with_attention)
        blocks = self.n_layers * shared + n_attention * attention + (self.n_layers - n_attention) * self._convolution
        return blocks + norm + self._embeddings + self.vocab_size * self.has_head_bias

    @property
    def flops_per_token(self) -> float:
        """`training_flops` per token for sequences as long as the context."""
        return self.training_flops(self.context_length)

    def training_flops(self, seq_len: int) -> float:
        """FLOPs of a training step per token: 6 per weight of a matrix product, and causal attention.

        Attention over a sequence of T tokens counts half of the T x T scores (PaLM, appendix B).
        """
        multiplying = self.n_parameters - self._embeddings + self.vocab_size * self.d_model
        return 6.0 * multiplying + 6.0 * len(self.layers_with_attention) * self.n_heads * self.d_head * seq_len

    @property
    def _embeddings(self) -> int:
        return self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)

    @property
    def _convolution(self) -> int:
        """Weights of a short convolution."""
        return 0


@dataclass(frozen=True, kw_only=True)
class KilnConfig(ModelConfig):
    """RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU, no biases (Qwen3, arXiv 2505.09388).

    Without QK-norm it is the architecture of Llama; with a bias on queries, keys and values instead, that of Qwen2. Llama can
    have biases in all layers (Granite's code models).
    """

    family = "kiln"
    norm = "rms"
    activation = "silu_gated"
    position_encoding = "rope_half"

    norm_eps: float = 1e-6
    qk_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(ModelConfig):
    """Grouped-query attention with QK-norm in the layers `attention_layers` (from 0), and short gated convolutions in the
    others; the rest as in Qwen3 (LFM2, arXiv 2511.23404).

    A convolution reads the current token and the `conv_width - 1` tokens before it, so it costs less than attention. It reads
    them by their distance, without training. Attention must learn this.
    """

    family = "lfm2"
    norm = "rms"
    activation = "silu_gated"
    position_encoding = "rope_half"

    qk_norm: bool = True
    attention_layers: tuple[int, ...]
    conv_width: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "attention_layers", tuple(self.attention_layers))  # a list in the record of a recipe
        super().__post_init__()
        numbers = self.attention_layers
        if not all(type(i) is int and 0 <= i < self.n_layers for i in numbers) or list(numbers) != sorted(set(numbers)):
            raise ConfigError(
                f"model.attention_layers is {str(numbers)[:100]}: it must be increasing numbers below "
                f"model.n_layers ({self.n_layers}): set both together"
            )

    @property
    def layers_with_attention(self) -> tuple[int, ...]:
        return self.attention_layers

    @property
    def _convolution(self) -> int:
        return 4 * self.d_model * self.d_model + self.conv_width * self.d_model


@dataclass(frozen=True, kw_only=True)
class CodeGenConfig(ModelConfig):
    """LayerNorm, then attention and feed-forward layer in parallel; rotary positions on the first `rotary_dim` channels,
    interleaved; tanh GELU; an untied output layer with a bias (CodeGen, section 2.2 and the released code)."""

    family = "codegen"
    norm = "layer"
    activation = "gelu_tanh"
    position_encoding = "rope_interleaved"
    parallel_residual = True
    has_head_bias = True

    tie_embeddings: bool = False
    mlp_bias: bool = True
    rotary_dim: int = 64

    @property
    def n_rotary(self) -> int:
        return self.rotary_dim


@dataclass(frozen=True, kw_only=True)
class InCoderConfig(ModelConfig):
    """LayerNorm before each layer, exact GELU, biases, embeddings scaled by sqrt(d_model) plus sinusoids, a tied output
    layer (the fairseq dense models, arXiv 2112.10684; XGLM in Transformers)."""

    family = "incoder"
    norm = "layer"
    activation = "gelu"
    position_encoding = "sinusoidal"

    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True

    @property
    def n_rotary(self) -> int:
        return 0

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.d_model)


@dataclass(frozen=True, kw_only=True)
class StarCoder2Config(ModelConfig):
    """LayerNorm before each layer, rotary positions, grouped-query attention, tanh GELU, biases (arXiv 2402.19173).

    The released models look back at most 4,096 tokens. That is their `context_length` here: within it, the window has no
    effect.
    """

    family = "starcoder2"
    norm = "layer"
    activation = "gelu_tanh"
    position_encoding = "rope_half"

    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True


def require_initialization(config: ModelConfig, initialization: Initialization) -> None:
    """Raises ConfigError if a model cannot start with these weights."""
    if initialization != "induction":
        return
    attention = config.layers_with_attention
    is_hybrid = isinstance(config, Lfm2Config) and config.conv_width > 1
    if config.tie_embeddings or not is_hybrid or not set(range(max(attention, default=0))) - set(attention):
        raise ConfigError(
            "train.initialization is induction: the model needs a convolution of width 2 or more before a layer with "
            "attention (lfm2), and tie_embeddings=false; set train.initialization=codekiln for other models"
        )


def config_from_record(record: dict[str, Any]) -> ModelConfig:
    """The config in the record of a recipe. Raises ConfigError for an unknown family or field."""
    families = {family.__name__: family for family in ModelConfig.__subclasses__()}
    kind, fields = record.get("kind"), {name: value for name, value in record.items() if name != "kind"}
    try:
        return families[str(kind)](**fields)
    except (KeyError, TypeError):
        raise ConfigError(
            f"unknown model config {kind} with the fields {', '.join(fields)[:200]}: "
            f"this run was made by another version of Codekiln (known: {', '.join(families)})"
        ) from None


def codegen(size: str) -> CodeGenConfig:
    """A published CodeGen: 350M, 2B, 6B or 16B, as the checkpoints are named (2.7B, 6.1B and 16.1B in the paper)."""
    n_layers, d_model, n_heads, d_head, rotary_dim = _lookup_size(size, _CODEGEN)
    return CodeGenConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_ff=4 * d_model,
        vocab_size=51_200,
        context_length=2048,
        rotary_dim=rotary_dim,
    )


def incoder(size: str) -> InCoderConfig:
    """A published InCoder: 1B or 6B, as the checkpoints are named (1.3B and 6.7B in the paper)."""
    n_layers, d_model, n_heads = _lookup_size(size, _INCODER)
    return InCoderConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_ff=4 * d_model,
        vocab_size=50_518,
        context_length=2048,
    )


def kiln(size: str, *, vocab_size: int, context_length: int) -> KilnConfig:
    """A size of the `kiln` family, 1M to 7B, named by its parameters without embeddings. The sizes are Codekiln's."""
    n_layers, d_model, n_heads, n_kv_heads, d_ff, tie_embeddings = _lookup_size(size, _KILN)
    return KilnConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=64 if d_model < 1024 else 128,
        d_ff=d_ff,
        vocab_size=vocab_size,
        context_length=context_length,
        tie_embeddings=tie_embeddings,
    )


T = TypeVar("T")
# n_layers, d_model, n_heads, d_head, rotary_dim
_CODEGEN = {
    "350M": (20, 1024, 16, 64, 32),
    "2B": (32, 2560, 32, 80, 64),
    "6B": (33, 4096, 16, 256, 64),
    "16B": (34, 6144, 24, 256, 64),
}
# n_layers, d_model, n_heads
_INCODER = {"1B": (24, 2048, 32), "6B": (32, 4096, 32)}
# n_layers, d_model, n_heads, n_kv_heads, d_ff, tie_embeddings
_KILN = {
    "1M": (4, 128, 2, 2, 384, False),
    "5M": (6, 256, 4, 2, 768, False),
    "25M": (8, 512, 8, 4, 1408, True),
    "110M": (12, 896, 14, 2, 2432, True),
    "350M": (24, 1024, 16, 8, 2816, True),
    "1B": (28, 1792, 14, 7, 4864, True),
    "3B": (32, 2560, 20, 4, 10_240, False),
    "7B": (36, 3584, 28, 4, 15_360, False),
}


def _lookup_size(size: str, sizes: dict[str, T]) -> T:
    if size not in sizes:
        raise ConfigError(f"unknown size {size!r}: choose from {', '.join(sizes)}")
    return sizes[size]
