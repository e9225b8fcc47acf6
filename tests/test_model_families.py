"""Every family compared with the classes of Transformers on random weights, exact sizes, and released checkpoints."""

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from codekiln.generate.sampling import GREEDY
from codekiln.model import huggingface
from codekiln.model.architectures import GPTJ, join_fused, split_fused
from codekiln.model.cache import MAX_KERNEL_CHUNK, BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.configs import ModelConfig, codegen, incoder, kiln
from codekiln.model.decoder import Decoder
from codekiln.model.huggingface import convert, load_model, read_config, save_model
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from tests.released import CODEGEN2
from tests.small import assert_greedy, make_engine, run_program

CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "codegen": transformers.CodeGenConfig(
        n_layer=2, n_embd=64, n_head=4, rotary_dim=8, vocab_size=300, n_positions=64, n_ctx=64
    ),
    "codegen, eight heads of 12": transformers.CodeGenConfig(
        n_layer=3, n_embd=96, n_head=8, rotary_dim=6, n_inner=100, vocab_size=311, n_positions=64, n_ctx=64
    ),
    "codegen, all channels rotary": transformers.CodeGenConfig(
        n_layer=1, n_embd=80, n_head=4, rotary_dim=20, vocab_size=300, n_positions=64, n_ctx=64
    ),
    "gptj": transformers.GPTJConfig(n_layer=2, n_embd=60, n_head=3, rotary_dim=10, vocab_size=300, n_positions=64),
    "incoder": transformers.XGLMConfig(
        num_layers=2, d_model=64, attention_heads=4, ffn_dim=128, vocab_size=300, max_position_embeddings=64
    ),
    "incoder, three heads of 20": transformers.XGLMConfig(
        num_layers=3, d_model=60, attention_heads=3, ffn_dim=77, vocab_size=311, max_position_embeddings=64
    ),
    "qwen3": transformers.Qwen3Config(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96, vocab_size=300, max_position_embeddings=64, tie_word_embeddings=True,
    ),
    "qwen2": transformers.Qwen2Config(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=6, num_key_value_heads=3,
        intermediate_size=96, vocab_size=300, max_position_embeddings=64, rope_theta=1e6,
    ),
    "llama": transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=96, vocab_size=300, max_position_embeddings=64,
    ),
    "llama with biases (Granite)": transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96,
        vocab_size=300, max_position_embeddings=64, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    ),
    "llama with scaled positions (DeepSeek-Coder)": transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96,
        vocab_size=300, max_position_embeddings=64,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
    ),
    "lfm2": transformers.Lfm2Config(
        num_hidden_layers=4, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        block_auto_adjust_ff_dim=False, vocab_size=300, max_position_embeddings=64, tie_word_embeddings=True,
        layer_types=["conv", "full_attention", "conv", "conv"],
    ),
    "lfm2, wider kernel, feed-forward width as released": transformers.Lfm2Config(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=3, num_key_value_heads=3, intermediate_size=192,
        block_multiple_of=32, vocab_size=300, max_position_embeddings=64, conv_L_cache=5, full_attn_idxs=[1],
        tie_word_embeddings=False,
    ),
    "starcoder2": transformers.Starcoder2Config(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=300, max_position_embeddings=128, sliding_window=64, embedding_dropout=0.0, residual_dropout=0.0,
    ),
}  # fmt: skip


@pytest.fixture(params=CONFIGS, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Transformer, transformers.PreTrainedModel]:
    """Models of Codekiln and of Transformers with the same random weights, from the directory that Transformers saved."""
    theirs = released(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("released")
    theirs.save_pretrained(folder)
    return load_model(folder).requires_grad_(True), theirs


def released(config: transformers.PretrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A model of Transformers whose weights are all random, also norms and biases."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, 0)
    for name in ("dropout", "attention_dropout", "activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    made: transformers.PreTrainedModel = model.eval()
    return made


def random_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config", "n_parameters"),
    [
        (codegen("350M"), 356_712_448),
        (codegen("2B"), 2_779_356_160),
        (codegen("6B"), 7_064_213_504),
        (codegen("16B"), 16_032_155_648),
        (incoder("1B"), 1_312_063_488),
        (incoder("6B"), 6_651_084_800),
        (kiln("1B", vocab_size=32_768, context_length=2048), None),
        (kiln("7B", vocab_size=32_768, context_length=2048), None),
    ],
    ids=lambda value: f"{value.family}-{value.d_model}" if isinstance(value, ModelConfig) else "",
)
def test_published_sizes_are_exact(config: ModelConfig, n_parameters: int | None) -> None:
    with torch.device("meta"):
        counted = sum(weight.numel() for weight in Transformer(config).parameters())
    assert counted == config.n_parameters
    assert n_parameters is None or counted == n_parameters


def test_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'3B'.*350M, 2B, 6B, 16B"):
        codegen("3B")


def test_logits_and_gradients_equal_those_of_transformers(
    pair: tuple[Transformer, transformers.PreTrainedModel],
) -> None:
    ours, theirs = pair
    ids = random_ids(3, 20)
    logits, expected = ours(ids), theirs(ids).logits
    assert (logits - expected).abs().max() < 1e-4
    logits.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    found, wanted = ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad
    assert found is not None
    assert (found - wanted).norm() / wanted.norm() < 1e-3
    ours.zero_grad()
    theirs.zero_grad()


def test_bfloat16_error_is_that_of_transformers(pair: tuple[Transformer, transformers.PreTrainedModel]) -> None:
    import copy

    ours, theirs = (copy.deepcopy(model).bfloat16() for model in pair)
    ids = random_ids(2, 16)
    exact = pair[0](ids)
    error, their_error = ((logits.float() - exact).abs().mean() for logits in (ours(ids), theirs(ids).logits))
    assert error < 1.5 * their_error + 1e-3


def test_batched_greedy_tokens_equal_those_of_transformers(
    pair: tuple[Transformer, transformers.PreTrainedModel],
) -> None:
    """Codekiln decodes rows of 3, 9 and 14 tokens together with a cache; Transformers reads each whole row for each token."""
    ours, theirs = pair
    prompts = [random_ids(1, n, seed=n)[0].tolist() for n in (3, 9, 14)]
    rows = make_engine(ours).generate(prompts, GREEDY, max_new_tokens=24)
    for prompt, row in zip(prompts, rows, strict=True):
        assert len(row) == 24
        assert_greedy(lambda ids: theirs(ids).logits, prompt, row, tolerance=1e-3)


def test_left_padded_equals_single(pair: tuple[Transformer, transformers.PreTrainedModel]) -> None:
    """The padding is another document, and positions count from the first real token."""
    ours, _ = pair
    alone = random_ids(1, 7)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), alone], dim=1)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    positions = torch.tensor([[0] * 5 + list(range(7))])
    found = ours.hidden_states(padded, positions=positions, document_ids=documents)[:, 5:]
    assert (found - ours.hidden_states(alone)).abs().max() < 1e-5


def test_cached_equals_uncached(pair: tuple[Transformer, transformers.PreTrainedModel]) -> None:
    """Two rows are read in chunks of different lengths, first by PyTorch's attention and then by the compiled kernels."""
    ours, _ = pair
    ids = random_ids(2, 48)
    for decoder in (make_decoder(ours, "float32"), Decoder(ours, "float32")):
        with torch.inference_mode():
            whole = ours.hidden_states(ids)
            pool = KVPool(ours.config, 100, like=decoder.embedding)
            reads = [((0, 30), (0, 20)), ((30, 33), (20, 48)), ((33, 34), (48, 48)), ((34, 48), (48, 48))]
            found: list[list[torch.Tensor]] = [[], []]
            for read in reads:
                parts = [(row, start, stop) for row, (start, stop) in enumerate(read) if stop > start]
                parts.sort(key=lambda part: part[2] - part[1] > MAX_KERNEL_CHUNK)
                chunks = [Chunk(stop - start, 50 * row, start) for row, start, stop in parts]
                tokens = torch.cat([ids[row, start:stop] for row, start, stop in parts])
                positions = torch.cat([torch.arange(start, stop) for _, start, stop in parts])
                hidden = decoder.hidden_states(tokens, positions, BatchAttention(pool, chunks))
                for (row, _, _), states in zip(parts, torch.split(hidden, [c.n_new for c in chunks]), strict=True):
                    found[row].append(states)
        for row in range(2):
            assert (torch.cat(found[row]) - whole[row]).abs().max() < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_fused_projection_is_split_for_any_number_of_groups(groups: int) -> None:
    heads, d_head, width = 8, 3, 5
    q, k, v = (torch.arange(heads * d_head * width).view(-1, width) + 1000 * n for n in range(3))
    fused = join_fused(q, k, v, groups)
    for found, wanted in zip(split_fused(fused, heads, groups), (q, k, v), strict=True):
        assert torch.equal(found, wanted)
    # Row by row, in the order of the released code: group c, then query, value, key, then head h of the group.
    for c in range(groups):
        for j, wanted in enumerate((q, v, k)):
            for h in range(heads // groups):
                at = ((c * 3 + j) * (heads // groups) + h) * d_head
                head = c * (heads // groups) + h
                assert torch.equal(fused[at : at + d_head], wanted[head * d_head : (head + 1) * d_head])


def fused_in_groups(theirs: transformers.PreTrainedModel, groups: int) -> dict[str, Tensor]:
    """The weights of a CodeGen whose fused projections are in another number of groups than Transformers' four."""
    weights = {name: weight.detach().clone() for name, weight in theirs.state_dict().items()}
    for name, weight in weights.items():
        if name.endswith("qkv_proj.weight"):
            weights[name] = join_fused(*split_fused(weight, theirs.config.n_head), groups)
    return weights


@pytest.mark.parametrize(("groups", "changes"), [(8, {"head_dim": 12}), (4, {})], ids=["1B and 3.7B", "7B and 16B"])
def test_codegen2_equals_codegen_with_its_groups(tmp_path: Path, groups: int, changes: dict[str, int]) -> None:
    """Transformers has no CodeGen2: it is CodeGen with the rows of the fused projection in another order."""
    theirs = released(CONFIGS["codegen, eight heads of 12"])
    folder = tmp_path / "codegen2"
    theirs.save_pretrained(folder)
    save_file(fused_in_groups(theirs, groups), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | CODEGEN2 | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = random_ids(2, 15)
    expected = theirs(ids).logits
    assert (load_model(folder)(ids) - expected).abs().max() < 1e-4
    # It is written as CodeGen, which Transformers reads without code from the directory.
    convert(folder, tmp_path / "codegen", {}, {}, {})
    written = json.loads((tmp_path / "codegen" / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in written and "head_dim" not in written
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "codegen", dtype=torch.float32)
    assert (again(ids).logits - expected).abs().max() == 0.0


def test_model_with_other_code_of_its_own_is_refused(tmp_path: Path) -> None:
    released(CONFIGS["codegen"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) | CODEGEN2
    for auto_map in ({"AutoModelForCausalLM": "evil.CodeGenForCausalLM"}, {"AutoConfig": "x--y.Z"}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}), encoding="utf-8")
        with pytest.raises(ValueError, match="brings its own code"):
            read_config(tmp_path)


def test_context_of_starcoder2_ends_at_its_window(tmp_path: Path) -> None:
    """Up to the window, Transformers computes the same with it. Beyond, it does not, and Codekiln has no window."""
    theirs = released(CONFIGS["starcoder2"])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.context_length == 64
    ids = random_ids(1, 72)
    difference = (ours(ids) - theirs(ids).logits).abs().amax(-1)[0]
    assert difference[:64].max() < 1e-4 < difference[66:].min()


def test_codegen_as_gptj_gives_bit_identical_logits(tmp_path: Path) -> None:
    theirs = released(CONFIGS["codegen"])
    theirs.save_pretrained(tmp_path / "codegen")
    convert(tmp_path / "codegen", tmp_path / "gptj", {}, {}, {}, to=GPTJ)
    gptj = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gptj", dtype=torch.float32)
    assert type(gptj).__name__ == "GPTJForCausalLM"
    ids = random_ids(2, 15)
    assert (gptj(ids).logits - theirs(ids).logits).abs().max() == 0.0
    convert(tmp_path / "gptj", tmp_path / "back", {}, {}, {})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("codegen", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_shards_old_buffers_and_pickles_load_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = released(CONFIGS["codegen"])
    theirs.save_pretrained(tmp_path / "whole")
    ids = random_ids(1, 9)
    expected = theirs(ids).logits
    config = (tmp_path / "whole" / "config.json").read_bytes()

    monkeypatch.setattr(huggingface, "SHARD_BYTES", 50_000)
    convert(tmp_path / "whole", tmp_path / "sharded", {}, {}, {})
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3

    weights = {name: weight.detach().clone() for name, weight in theirs.state_dict().items()}
    old = weights | {"transformer.h.0.attn.causal_mask": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes(config)
    torch.save(old, tmp_path / "old" / "pytorch_model.bin")

    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "config.json").write_bytes(config)
    names = sorted(old)
    files = {name: f"pytorch_model-0000{1 + k % 2}-of-00002.bin" for k, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: old[name] for name in names if files[name] == file}, tmp_path / "parts" / file)
    index = {"weight_map": files}
    (tmp_path / "parts" / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")

    for folder in ("whole", "sharded", "old", "parts"):
        model = load_model(tmp_path / folder)
        assert (model(ids) - expected).abs().max() < 1e-5, folder


class Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_faults_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    released(CONFIGS["incoder"]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)

    def refused(changed: dict[str, Tensor], message: str) -> None:
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)

    name = "model.layers.0.fc1.weight"
    others = {key: value for key, value in weights.items() if key != name}
    refused(
        others | {"extra": torch.ones(1), "model.layer_norm.bias": torch.ones(3)},
        rf"\bextra\b.*model\.layer_norm\.bias.*\(3,\).*\(64,\).*{name}",
    )
    refused(weights | {name: weights[name] * torch.nan}, f"{name}.*finite")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)

    path.unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "model-1.safetensors"}}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors.*index\.json"):
        load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": {name: "../model.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.\./model\.safetensors"):
        load_model(tmp_path)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        load_model(tmp_path)

    for content in (pickle.dumps({"x": Bomb(tmp_path / "bombed")}), b"not a pickle"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
            load_model(tmp_path)
    torch.save({"x": Bomb(tmp_path / "bombed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_model(tmp_path)
    assert not (tmp_path / "bombed").exists()


def test_faults_of_a_config_are_named(tmp_path: Path) -> None:
    def refused(changes: dict[str, object], message: str) -> None:
        config = json.loads(CONFIGS["llama"].to_json_string(use_diff=False)) | {"architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path)

    refused({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*Qwen3ForCausalLM, .*XGLM")
    refused({"architectures": None}, "null")
    refused({"hidden_size": None}, "hidden_size")
    refused({"hidden_act": "gelu"}, "hidden_act.*gelu")
    refused({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn")
    refused({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias")
    refused({"num_attention_heads": 0}, re.escape(str(tmp_path)))
    refused({"hidden_size": "48"}, re.escape(str(tmp_path)))
    refused({"architectures": [["x"]]}, re.escape(str(tmp_path)))


def test_config_that_a_format_cannot_express_is_refused(tmp_path: Path) -> None:
    released(CONFIGS["gptj"]).save_pretrained(tmp_path / "gptj")
    with pytest.raises(ValueError, match=r"CodeGenForCausalLM.* 3.*gptj"):
        convert(tmp_path / "gptj", tmp_path / "codegen", {}, {}, {})
    assert not (tmp_path / "codegen").exists()
    odd = Transformer(
        dataclasses.replace(load_model(tmp_path / "gptj").config, rope_base=500.0, n_heads=4, n_kv_heads=4)
    )
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"CodeGenForCausalLM.*d_head, rope_base"):
        save_model(tmp_path / "odd", odd, tmp_path / "tokenizer.json", {}, {"bos_token_id": 0, "eos_token_id": 0})


@pytest.mark.process
@pytest.mark.slow
def test_conversion_holds_one_shard_in_memory(tmp_path: Path) -> None:
    """400 MB of weights in shards of 20 MB: the process may grow by 200 MB."""
    config = transformers.CodeGenConfig(
        n_layer=8, n_embd=1024, n_head=16, rotary_dim=32, vocab_size=2000, n_positions=64, n_ctx=64,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.CodeGenForCausalLM(config)
    model.save_pretrained(tmp_path / "source", max_shard_size="20MB")
    del model
    done = run_program("convert_memory.py", tmp_path / "source", tmp_path / "target")
    size = sum(path.stat().st_size for path in (tmp_path / "target").glob("*.safetensors"))
    assert size > 400e6 and int(done.stdout) < 200e6
