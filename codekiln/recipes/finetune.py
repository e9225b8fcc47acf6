"""A model that is there already, trained on a folder of code: all of its weights, or LoRA."""

from pathlib import Path

from codekiln.corpus.build import CorpusPlan
from codekiln.corpus.licenses import PERMISSIVE
from codekiln.corpus.sources.tree import Tree
from codekiln.evaluate.infilling import InfillingPlan
from codekiln.exchange import tokenizer_of
from codekiln.model.huggingface import read_config
from codekiln.recipe import GivenTokenizer, Recipe
from codekiln.tokenizer.bpe import FIM_MIDDLE, Tokenizer
from codekiln.tokenizer.infill import END_OF_MASK, is_ours
from codekiln.train.loop import TrainPlan
from codekiln.train.lora import LoraPlan
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, InfillMixture, NextToken, Objective
from codekiln.train.optimizer import AdamWPlan, WarmupStableDecay

OWN = "LicenseRef-own"  # of code that is the user's to train on


def finetune(model: Path, code: Path, license: str | None = None, *, lora: bool = False) -> Recipe:
    """One pass over the code below `code`, by the objective that the model's tokenizer has control tokens for.

    Rate, decay and batch of full training are those of CodeGen's authors' example for GPUs. LoRA's rate and the schedule, in
    shares of the steps, for a folder may be short, are ours.
    """
    _, config = read_config(model)
    tokenizer, _ = tokenizer_of(model, config)
    context = min(1024, config.context_length)  # ours: a half of the papers' rows fits where users fine-tune
    objective = objective_for(tokenizer)
    can_infill = not isinstance(objective, NextToken)
    return Recipe(
        name="finetune",
        corpus=CorpusPlan(
            sources=(Tree(code.absolute(), license or OWN),), licenses=PERMISSIVE | {OWN}, heldout_share=0.05
        ),
        tokenizer=GivenTokenizer(str(model.absolute())),
        model=config,
        start=model.absolute(),
        train=TrainPlan(
            objective=objective,
            epochs=1,
            context_length=context,
            batch_rows=32,
            valid_every=10,
            checkpoint_every=20,
            optimizer=AdamWPlan(rate=2e-4 if lora else 1e-5, weight_decay=0.0, schedule=WarmupStableDecay(0.05, 0.95)),
            lora=LoraPlan() if lora else None,
        ),
        infilling=InfillingPlan() if can_infill and context > 4 * InfillingPlan().max_new_tokens else None,
    )


def objective_for(tokenizer: Tokenizer) -> Objective:
    """What a model learns so that it completes, and infills where its tokenizer can say so."""
    if END_OF_MASK in tokenizer.control:
        return CausalMasking("released")
    if is_ours(tokenizer):
        return InfillMixture()
    return FillInTheMiddle() if FIM_MIDDLE in tokenizer.control else NextToken()
