"""A model that is there already, trained on a folder of code: all of its weights, or LoRA."""

from pathlib import Path

from codekiln.convert.models import load_tokenizer
from codekiln.corpus.licenses import PERMISSIVE
from codekiln.corpus.pipeline import CorpusConfig
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.infilling import InfillingConfig
from codekiln.model.huggingface import read_config
from codekiln.recipe import PretrainedTokenizer, Recipe
from codekiln.tokenizer.bpe import FIM_MIDDLE, Tokenizer
from codekiln.tokenizer.infill import END_OF_MASK, is_ours
from codekiln.train.loop import TrainConfig
from codekiln.train.lora import LoraConfig
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, NextToken, Objective, SpmInfill
from codekiln.train.optimizer import WSD, AdamWConfig

USER_CODE = "LicenseRef-own"  # of code that is the user's to train on


def finetune(model: Path, code: Path, license: str | None = None, *, lora: bool = False) -> Recipe:
    """One pass over the code below `code`, by the objective that the model's tokenizer has control tokens for.

    Rate, decay and batch of full training are those of CodeGen's authors' example for GPUs. LoRA's rate and the schedule, in
    shares of the steps, for a folder may be short, are ours.
    """
    _, config = read_config(model)
    tokenizer, _ = load_tokenizer(model, config)
    context = min(1024, config.context_length)  # ours: a half of the papers' rows fits where users fine-tune
    objective = objective_for(tokenizer)
    can_infill = not isinstance(objective, NextToken)
    return Recipe(
        name="finetune",
        corpus=CorpusConfig(
            sources=(LocalRepositories(code.absolute(), license or USER_CODE),),
            licenses=PERMISSIVE | {USER_CODE},
            validation_fraction=0.05,
        ),
        tokenizer=PretrainedTokenizer(str(model.absolute())),
        model=config,
        init_from=model.absolute(),
        train=TrainConfig(
            objective=objective,
            epochs=1,
            context_length=context,
            global_batch_size=32,
            eval_every=10,
            save_every=20,
            optimizer=AdamWConfig(lr=2e-4 if lora else 1e-5, weight_decay=0.0, schedule=WSD(0.05, 0.95)),
            lora=LoraConfig() if lora else None,
        ),
        infilling=InfillingConfig() if can_infill and context > 4 * InfillingConfig().max_new_tokens else None,
    )


def objective_for(tokenizer: Tokenizer) -> Objective:
    """What a model learns so that it completes, and infills where its tokenizer can say so."""
    if END_OF_MASK in tokenizer.special_tokens:
        return CausalMasking("released")
    if is_ours(tokenizer):
        return SpmInfill()
    return FillInTheMiddle() if FIM_MIDDLE in tokenizer.special_tokens else NextToken()
