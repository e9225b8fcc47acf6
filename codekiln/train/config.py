"""What is trained (`TrainConfig`, with its optimizer and LoRA) and where it runs (`RuntimeConfig`). Needs no PyTorch."""

import math
from dataclasses import dataclass
from typing import Literal

from codekiln.errors import ConfigError
from codekiln.model.configs import Initialization, ModelConfig
from codekiln.train.objectives import NextToken, Objective
from codekiln.train.schedules import WSD, Schedule, WarmupCosine

MUON_MOMENTUM = 0.95  # Jordan et al. 2024
# "packed": documents share a sequence and do not see each other. "concat": one stream of text (CodeGen).
Packing = Literal["packed", "concat"]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW for all weights. Weight decay is decoupled and applies to weights of more than one axis, embeddings included."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    schedule: Schedule = WarmupCosine()

    @property
    def peak_lr(self) -> float:
        """The learning rate that metrics show."""
        return self.lr


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for the matrices inside blocks, AdamW for the rest (Jordan et al. 2024). Decay applies to matrices only.

    `embedding_lr` is AdamW's rate for an embedding that is not tied to the output layer: its rows are updated seldom and
    take far larger steps (modded-nanogpt). A tied embedding uses `adamw_lr`, like the output layer and the norms.
    """

    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    embedding_lr: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    schedule: Schedule = WSD()

    @property
    def peak_lr(self) -> float:
        """The learning rate that metrics show."""
        return self.muon_lr


OptimizerConfig = AdamWConfig | MuonConfig


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of all matrices in blocks (Hu et al., arXiv 2106.09685); their product is scaled by alpha / rank."""

    rank: int = 16
    alpha: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"train.lora.rank is {self.rank}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained and for how long: either `total_tokens` or `epochs` is set."""

    objective: Objective
    total_tokens: int = 0
    epochs: int = 0
    # Sequences per step. With `epochs`, a step has at most one epoch: the greatest divisor that fits is used.
    global_batch_size: int = 16
    # Tokens per sequence; None means the context of the model.
    context_length: int | None = None
    lora: LoraConfig | None = None
    # Of a model without `init_from`.
    initialization: Initialization = "codekiln"
    # Probability that an element of the embedding, or of what a layer adds to the residual stream, is dropped.
    dropout: float = 0.0
    # Probability that a weight of attention is dropped.
    attention_dropout: float = 0.0
    optimizer: OptimizerConfig = MuonConfig()
    packing: Packing = "packed"
    # Weight of the squared log-sum-exp of the logits in the loss, which keeps logits small (CodeGen's code; PaLM).
    z_loss: float = 0.0
    # A step is skipped if its gradient norm is this many times the median of the last hundred.
    max_grad_norm_ratio: float = 30.0
    eval_every: int = 50
    eval_sequences: int = 64
    save_every: int = 50
    # Checkpoints of every step that this divides are permanent; 0 keeps the newest only.
    keep_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "eval_every", "eval_sequences", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        if self.keep_every < 0 or self.keep_every % self.save_every:
            raise ConfigError(
                f"train.keep_every is {self.keep_every}: it must be a multiple of train.save_every ({self.save_every})"
            )
        if self.seed < 0:
            raise ConfigError(f"train.seed is {self.seed}: it must not be negative")
        if not self.max_grad_norm_ratio > 1:
            raise ConfigError(f"train.max_grad_norm_ratio is {self.max_grad_norm_ratio}: it must be greater than 1")
        if not (self.z_loss >= 0 and math.isfinite(self.z_loss)):
            raise ConfigError(f"train.z_loss is {self.z_loss}: it must be 0 or more")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}: it must be at least 0 and less than 1")
        if (self.total_tokens < 1) == (self.epochs < 1):
            raise ConfigError(
                f"train.total_tokens is {self.total_tokens} and train.epochs is {self.epochs}: "
                "set one of them, and the other to 0"
            )
        if self.packing == "concat" and not isinstance(self.objective, NextToken):
            raise ConfigError(
                f"train.packing is concat and the objective is {type(self.objective).__name__}: "
                "concatenated documents can be trained with NextToken only"
            )

    def seq_len(self, model: ModelConfig) -> int:
        """Tokens per sequence. Raises ConfigError if the model reads fewer."""
        wanted = model.context_length if self.context_length is None else self.context_length
        if wanted > model.context_length:
            raise ConfigError(
                f"train.context_length is {wanted}: the model reads at most {model.context_length} tokens"
            )
        return wanted

    def sequences_per_rank(self, dp_size: int) -> int:
        """Sequences per step of each of `dp_size` data-parallel ranks. Raises ConfigError if they do not divide."""
        if self.global_batch_size % dp_size:
            raise ConfigError(
                f"train.global_batch_size is {self.global_batch_size}: "
                f"it must be a multiple of the number of data-parallel ranks ({dp_size})"
            )
        return self.global_batch_size // dp_size

    def n_permanent_checkpoints(self, model: ModelConfig) -> int:
        """Checkpoints that stay in addition to the newest; 0 with `epochs`, whose number of steps is not known yet."""
        n_steps = self.total_tokens // (self.global_batch_size * self.seq_len(model))
        return n_steps // self.keep_every if self.keep_every else 0


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where a run is computed and how fast. It does not decide what the model becomes, up to rounding."""

    device: Literal["cpu", "cuda"] = "cpu"
    micro_batch_tokens: int = 2048
    # None compiles if a C++ compiler is found.
    compile: bool | None = None
    # Ranks that share each layer, of those that torchrun starts.
    tensor_parallel: int = 1
    # Recompute blocks in the backward pass: about a third slower, with the activations of one layer instead of all.
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"unknown device {self.device!r}: choose cpu or cuda")
