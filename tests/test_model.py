"""The transformer against Transformers' Qwen3, its cache, packing, checkpoints and the model directory."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from codekiln.model.cache import empty_cache
from codekiln.model.configs import KilnConfig
from codekiln.model.huggingface import load_model, save_model
from codekiln.model.transformer import Transformer, init_weights
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from tests.small import assert_greedy

SHAPES = [
    KilnConfig(2, 48, 4, 2, 16, 96, 384, 64),
    KilnConfig(3, 40, 3, 1, 24, 64, 400, 32, rope_base=1e6, tie_embeddings=False),
    KilnConfig(1, 64, 8, 8, 8, 128, 384, 64, norm_eps=1e-5),
]


def random_model(config: KilnConfig, seed: int = 0) -> Transformer:
    """Weights that are all random, also those that training begins with at zero or one."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    init_weights(model, generator)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def random_ids(config: KilnConfig, rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def saved(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder / "tokenizer.json")
    configs = hugging_face_configs(tokenizer, model.config.context_length)
    save_model(folder / "model", model, folder / "tokenizer.json", configs, (tokenizer.bos_id, tokenizer.eos_id))
    return folder / "model"


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_logits_and_gradients_equal_those_of_transformers(
    config: KilnConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ours = random_model(config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(ours, tokenizer, tmp_path), dtype=torch.float32)
    ids = random_ids(config, 3, 20)
    logits = ours.lm_head(ours(ids))
    expected = theirs(ids).logits
    assert (logits - expected).abs().max() < 1e-4

    logits.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    ours_grad, their_grad = ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad
    assert ours_grad is not None
    assert (ours_grad - their_grad).norm() / their_grad.norm() < 1e-4


def test_greedy_tokens_equal_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from codekiln.generate.engine import generate
    from codekiln.generate.sampling import GREEDY

    config = SHAPES[0]
    ours = random_model(config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(ours, tokenizer, tmp_path), dtype=torch.float32)
    prompt = random_ids(config, 1, 7)
    steps = generate(
        ours,
        prompt.tolist(),
        max_new_tokens=40,
        stop_token_ids=frozenset(),
        forbidden_token_ids=frozenset(),
        sampling=GREEDY,
    )
    tokens = [step.token for step in steps]
    assert len(tokens) == 40
    assert_greedy(lambda ids: theirs(ids).logits, prompt[0].tolist(), tokens, tolerance=1e-3)


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_the_parameter_count_is_exact(config: KilnConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(weight.numel() for weight in model.parameters()) == config.n_parameters


def test_a_cache_gives_the_same_hidden_states_whatever_the_rows_lengths() -> None:
    config = SHAPES[0]
    model = random_model(config)
    ids = random_ids(config, 2, 12)
    whole = model(ids)
    cache = empty_cache(config, 2, 20, like=model.embedding.weight)
    with torch.no_grad():
        model(ids[:, :5], cache=cache)
        cache[0].lengths += torch.tensor([5, 3])  # the second row has read three; its last two are overwritten
        tails = torch.stack([ids[0, 5:9], ids[1, 3:7]])
        found = model(tails, cache=cache)
    assert (found[0] - whole[0, 5:9]).abs().max() < 1e-5
    assert (found[1] - whole[1, 3:7]).abs().max() < 1e-5


def test_packed_documents_do_not_see_each_other() -> None:
    config = SHAPES[0]
    model = random_model(config)
    a, b = random_ids(config, 1, 6, seed=2), random_ids(config, 1, 9, seed=3)
    packed = model(torch.cat([a, b], dim=1), documents=torch.tensor([[0] * 6 + [1] * 9]))
    # Rotary positions are relative, so a document may begin anywhere in its row.
    assert (packed[:, :6] - model(a)).abs().max() < 1e-5
    assert (packed[:, 6:] - model(b)).abs().max() < 1e-5


def test_a_model_directory_comes_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for n, config in enumerate(SHAPES):
        model = random_model(config)
        loaded = load_model(saved(model, tokenizer, tmp_path / str(n)))
        ids = random_ids(config, 1, 8)
        assert torch.equal(model(ids), loaded(ids))


def test_a_broken_model_directory_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_model(tmp_path)
    folder = saved(random_model(SHAPES[0]), tokenizer, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"describes MambaForCausalLM: known are Qwen3ForCausalLM"):
        load_model(folder)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads cannot share 2 key heads"):
        KilnConfig(1, 32, 3, 2, 16, 64, 384, 32)
