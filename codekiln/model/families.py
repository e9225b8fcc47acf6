"""The shapes of models. `kiln` is the modern family: exactly Qwen3's architecture, which others run as it is."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class KilnConfig:
    """RMSNorm, rotary halves, grouped-query attention with QK-norm, SwiGLU, no biases (Qwen3, arXiv 2505.09388).

    `vocab_size` counts the rows of the embedding, which may be more than the tokenizer has ids; the rest is never
    sampled. `d_head` is a width of its own: `n_heads * d_head` need not be `d_model`.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    context_length: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    tied_head: bool = True

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value <= 0 and name != "tied_head":
                raise ValueError(f"model.{name} is {value}: it must be above 0")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key heads: one must divide the other"
            )
        if self.d_head % 2:
            raise ValueError(f"d_head is {self.d_head}: rotary halves need an even one")

    @property
    def n_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        attention = self.d_model * self.d_head * 2 * (self.n_heads + self.n_kv_heads) + 2 * self.d_head
        block = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        return self.n_layers * block + self.d_model + self._embeddings

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a training step per token: 6 a weight that multiplies, and causal attention.

        Attention over a context of T counts half of the T by T scores, forward and backward (PaLM, appendix B).
        """
        multiplying = self.n_parameters - self._embeddings + self.vocab_size * self.d_model
        return 6.0 * multiplying + 6.0 * self.n_layers * self.n_heads * self.d_head * self.context_length

    @property
    def _embeddings(self) -> int:
        return self.vocab_size * self.d_model * (1 if self.tied_head else 2)
