"""A recipe: everything that decides what a model becomes. Needs no corpus engine and no PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.errors import ConfigError
from codekiln.evaluate.config import InfillingConfig
from codekiln.index.config import IndexConfig
from codekiln.model.configs import ModelConfig, require_initialization
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer:
    """An existing tokenizer: "codegen" or "codegen-nl", or the path of a model directory."""

    name: str


@dataclass(frozen=True, kw_only=True)
class InheritedTokenizer:
    """The tokenizer of the model in `init_from`, so that its weights keep their meaning.

    `has_white_space` adds 38 ids for runs of spaces and tabs, as CodeGen's code stages do (section 2.2). The model needs a row
    of its embedding for each.
    """

    has_white_space: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The configuration of all stages, first to last."""

    name: str
    corpus: CorpusConfig
    tokenizer: TokenizerConfig | PretrainedTokenizer | InheritedTokenizer
    model: ModelConfig
    train: TrainConfig
    # None for a model that cannot infill: nothing is evaluated.
    infilling: InfillingConfig | None
    # None builds no index of the training documents.
    index: IndexConfig | None = None
    # A model directory whose weights training starts from; None starts from random weights.
    init_from: Path | None = None
    # Held-out functions that the report shows.
    n_report_samples: int = 4
    # Free disk space that a new run needs, without its checkpoints.
    min_free_bytes: int = 600_000_000

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, TokenizerConfig) and self.model.vocab_size < self.tokenizer.vocab_size:
            raise ConfigError(
                f"model.vocab_size is {self.model.vocab_size} and tokenizer.vocab_size is {self.tokenizer.vocab_size}: "
                "raise the first or lower the second"
            )
        if self.init_from is None:
            require_initialization(self.model, self.train.initialization)
        if self.infilling is not None and 4 * self.infilling.max_new_tokens >= self.model.context_length:
            raise ConfigError(
                f"infilling.max_new_tokens is {self.infilling.max_new_tokens}: it must be less than a quarter of the context "
                f"of {self.model.context_length}, because the samples of the report are twice as long"
            )


@dataclass(frozen=True, kw_only=True)
class StagedRecipe:
    """Recipes trained one after the other, each from the weights of the one before (CodeGen, section 2.3).

    The optimizer state and the number of steps start from zero in each.
    """

    name: str
    recipes: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        first = self.recipes[0]
        if isinstance(first.tokenizer, InheritedTokenizer) and first.init_from is None:
            raise ConfigError(
                f"{self.name}: the first stage, {first.name}, has no model whose tokenizer it could inherit: train one in it"
            )
