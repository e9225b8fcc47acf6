"""The transformer compared with Qwen3 of Transformers, its cache, packing, and the model directory."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from codekiln.errors import ConfigError
from codekiln.generate.sampling import GREEDY
from codekiln.model.configs import KilnConfig, Lfm2Config, ModelConfig, config_from_record
from codekiln.model.huggingface import load_model, save_model
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from tests.small import assert_greedy, make_engine

SHAPES = [
    KilnConfig(n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, d_head=16, d_ff=96, vocab_size=384, context_length=64),
    KilnConfig(
        n_layers=3,
        d_model=40,
        n_heads=3,
        n_kv_heads=1,
        d_head=24,
        d_ff=64,
        vocab_size=400,
        context_length=32,
        rope_base=1e6,
        tie_embeddings=False,
    ),
    KilnConfig(
        n_layers=1,
        d_model=64,
        n_heads=8,
        n_kv_heads=8,
        d_head=8,
        d_ff=128,
        vocab_size=384,
        context_length=64,
        norm_eps=1e-5,
    ),
]
HYBRID = Lfm2Config(
    n_layers=5,
    d_model=48,
    n_heads=4,
    n_kv_heads=2,
    d_head=12,
    d_ff=64,
    vocab_size=400,
    context_length=32,
    attention_layers=(1, 4),
    conv_width=4,
)


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose weights are all random, also those that are zero or one at the start of training."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    init_weights(model, generator)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def random_ids(config: ModelConfig, rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def saved(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder / "tokenizer.json")
    configs = hugging_face_configs(tokenizer, model.config.context_length)
    save_model(
        folder / "model",
        model,
        folder / "tokenizer.json",
        configs,
        {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id},
    )
    return folder / "model"


@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_logits_and_gradients_equal_those_of_transformers(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ours = random_model(config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(ours, tokenizer, tmp_path), dtype=torch.float32)
    ids = random_ids(config, 3, 20)
    logits = ours(ids)
    expected = theirs(ids).logits
    assert (logits - expected).abs().max() < 1e-4

    logits.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    ours_grad, their_grad = ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad
    assert ours_grad is not None
    assert (ours_grad - their_grad).norm() / their_grad.norm() < 1e-4


def test_greedy_tokens_equal_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = SHAPES[0]
    ours = random_model(config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(ours, tokenizer, tmp_path), dtype=torch.float32)
    prompt = random_ids(config, 1, 7)
    tokens = make_engine(ours).generate(prompt.tolist(), GREEDY, max_new_tokens=40)[0]
    assert len(tokens) == 40
    assert_greedy(lambda ids: theirs(ids).logits, prompt[0].tolist(), tokens, tolerance=1e-3)


@pytest.mark.parametrize("config", [*SHAPES, HYBRID], ids=str)
def test_parameter_count_is_exact(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(weight.numel() for weight in model.parameters()) == config.n_parameters


@pytest.mark.parametrize("config", [SHAPES[0], HYBRID], ids=str)
@pytest.mark.parametrize("has_mask", [False, True])
def test_packed_documents_do_not_see_each_other(config: ModelConfig, has_mask: bool) -> None:
    model = random_model(config)
    if has_mask:  # as on GPUs: attention that drops weights takes a mask; 1e-30 drops none
        model.train().set_dropout(0.0, 1e-30)
    a, b = random_ids(config, 1, 6, seed=2), random_ids(config, 1, 9, seed=3)
    packed = model.hidden_states(torch.cat([a, b], dim=1), document_ids=torch.tensor([[0] * 6 + [1] * 9]))
    # Rotary positions are relative, so a document may begin anywhere in a sequence.
    assert (packed[:, :6] - model.hidden_states(a)).abs().max() < 1e-5
    assert (packed[:, 6:] - model.hidden_states(b)).abs().max() < 1e-5


def test_saved_model_is_loaded_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for n, config in enumerate([*SHAPES, HYBRID]):
        model = random_model(config)
        loaded = load_model(saved(model, tokenizer, tmp_path / str(n)))
        ids = random_ids(config, 1, 8)
        assert torch.equal(model(ids), loaded(ids))


def test_damaged_model_directory_is_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_model(tmp_path)
    folder = saved(random_model(SHAPES[0]), tokenizer, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"MambaForCausalLM.*Qwen3ForCausalLM"):
        load_model(folder)


@pytest.mark.parametrize("numbers", [(0, 5), (2, 1), (1, 1), (-1,), (True,)])
def test_numbers_of_layers_with_attention_are_checked(numbers: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"model.attention_layers is .* increasing numbers below model.n_layers \(5\)"
    ):
        dataclasses.replace(HYBRID, attention_layers=numbers)


def test_config_of_a_hybrid_model_is_read_from_its_record() -> None:
    record = json.loads(json.dumps({"kind": "Lfm2Config"} | dataclasses.asdict(HYBRID)))
    assert config_from_record(record) == HYBRID


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_heads is 3 and model.n_kv_heads is 2"):
        KilnConfig(
            n_layers=1, d_model=32, n_heads=3, n_kv_heads=2, d_head=16, d_ff=64, vocab_size=384, context_length=32
        )


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model = Transformer(SHAPES[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 384, (2, 20), generator=generator)
    tensors = (ids, ids.roll(-1, 1), torch.ones(2, 20), torch.zeros(2, 20, dtype=torch.long))
    gradients = []
    for activation_checkpointing in (False, True):
        model.activation_checkpointing = activation_checkpointing
        model.zero_grad()
        model.loss(*tensors).nats.backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)
    assert any(gradient is not None and gradient.any() for gradient in gradients[0])
