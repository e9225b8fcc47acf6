"""Fine-tuning: an existing model, trained on a folder of code, all weights or LoRA."""

from pathlib import Path
from typing import assert_never

from codekiln.convert.models import load_tokenizer
from codekiln.corpus.config import DEFAULT_STEPS, CorpusConfig
from codekiln.corpus.licenses import PERMISSIVE
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.evaluate.config import InfillingConfig
from codekiln.index.config import IndexConfig
from codekiln.model.huggingface import read_config
from codekiln.recipe import PretrainedTokenizer, Recipe
from codekiln.tokenizer.infill import PSM, SPM, CausalMask, CodeGen2, InfillFormat
from codekiln.train.config import AdamWConfig, LoraConfig, TrainConfig
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, NextToken, Objective, SpmInfill
from codekiln.train.schedules import WSD

USER_CODE = "LicenseRef-own"  # code of the user, who decides about it


def finetune(model: Path, code: Path, license: str | None = None, *, lora: bool = False) -> Recipe:
    """One pass over the code in a folder. The objective follows the infilling format of the model's tokenizer.

    Learning rate, weight decay and batch size of full fine-tuning are those of the example of CodeGen's authors. LoRA's
    learning rate and the schedule are Codekiln's. The schedule has fractions of the steps, because a folder may be small.
    """
    _, config = read_config(model)
    tokenizer, _ = load_tokenizer(model, config)
    context = min(1024, config.context_length)  # half of the papers' sequences fits the machines where people fine-tune
    infilling = InfillingConfig()
    can_infill = tokenizer.infill_format is not None
    return Recipe(
        name="finetune",
        corpus=CorpusConfig(
            sources=(LocalRepositories(folder=code.absolute(), license=license or USER_CODE),),
            steps=(LicenseGate(licenses=PERMISSIVE | {USER_CODE}), *DEFAULT_STEPS[1:]),
            validation_fraction=0.05,
        ),
        tokenizer=PretrainedTokenizer(name=str(model.absolute())),
        model=config,
        init_from=model.absolute(),
        train=TrainConfig(
            objective=objective_for(tokenizer.infill_format),
            epochs=1,
            context_length=context,
            global_batch_size=32,
            eval_every=10,
            save_every=20,
            optimizer=AdamWConfig(
                lr=2e-4 if lora else 1e-5,
                weight_decay=0.0,
                schedule=WSD(warmup_fraction=0.05, decay_fraction=0.95),
            ),
            lora=LoraConfig() if lora else None,
        ),
        index=IndexConfig(memory_bytes=1_000_000_000),
        infilling=infilling if can_infill and context > 4 * infilling.max_new_tokens else None,
    )


def objective_for(infill_format: InfillFormat | None) -> Objective:
    """The objective that trains a tokenizer's infilling format; next-token prediction if it has none."""
    match infill_format:
        case None:
            return NextToken()
        case SPM():
            return SpmInfill()
        case PSM() | CodeGen2():
            return FillInTheMiddle()
        case CausalMask():
            return CausalMasking(sampling="released")
        case _:
            assert_never(infill_format)
