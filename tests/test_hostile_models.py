"""Model directories of strangers: damaged, hostile or unusual ones are refused by name, in one short sentence."""

import json
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from codekiln.convert.models import export_model, import_model
from codekiln.errors import CodekilnError
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.model.huggingface import read_config, stop_token_ids_in
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import WHITESPACE_IDS, codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.infill import PSM, SPM
from codekiln.tokenizer.special_tokens import FIM_PAD, PSM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from tests.small import write_tree

pytestmark = pytest.mark.process

SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
MAX_ERROR_CHARACTERS = 2_000  # an error never fills a screen


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 as released: an instruct model whose second end token only generation_config.json names."""
    folder = tmp_path_factory.mktemp("released")
    texts = [path.read_text(encoding="utf-8") for path in write_tree(folder / "code").rglob("*.py")]
    shutil.rmtree(folder / "code")
    special_tokens = (*PSM_SPECIAL_TOKENS, "<|im_end|>")
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400, special_tokens=special_tokens), texts)
    tokenizer.save(folder / "tokenizer.json")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=400, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    ends = [tokenizer.special_id("<|im_end|>"), tokenizer.eos_id]
    edit(folder / "generation_config.json", lambda record: record | {"eos_token_id": ends})
    edit(folder / "tokenizer_config.json", lambda record: record | {"chat_template": "{{ messages }}"})
    return folder


@pytest.fixture
def model(released: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(released, tmp_path / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(record)), encoding="utf-8")


def refuse(folder: Path, *values: str) -> None:
    """Importing fails with a short error that has the values, and leaves nothing behind."""
    with pytest.raises(CodekilnError) as refusal:
        import_model(folder, folder.parent / "imported")
    message = str(refusal.value)
    assert len(message) < MAX_ERROR_CHARACTERS
    for value in values:
        assert value in message, message
    assert not (folder.parent / "imported").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", True),
        ("hidden_size", 10**12),
        ("hidden_size", "32"),
        ("vocab_size", 10**12),
        ("vocab_size", None),
        ("max_position_embeddings", 10**15),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rope_theta", float("inf")),
        ("intermediate_size", [64]),
        ("intermediate_size", {"a": 1}),
        ("eos_token_id", "two"),
        ("eos_token_id", [1, None]),
        ("eos_token_id", 10**30),
        ("architectures", ["x" * 10_000]),
        ("architectures", [["Qwen2ForCausalLM"]]),
        ("architectures", 7),
        ("rope_scaling", {"rope_type": "y" * 100_000}),
        ("rope_scaling", "linear"),
        ("hidden_act", "z" * 10_000),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 0),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
    ],
)
def test_wrong_sizes_and_types_in_the_config_are_refused(field: str, value: object, model: Path) -> None:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        if field == "rope_theta":
            record.pop("rope_parameters", None)
        return record | {field: value}

    edit(model / "config.json", change)
    refuse(model)


@pytest.fixture
def hybrid(released: Path, tmp_path: Path) -> Path:
    """A small LFM2, with a convolution in its first layer and attention in its second."""
    folder = shutil.copytree(released, tmp_path / "hybrid")
    config = transformers.Lfm2Config(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=400, max_position_embeddings=128, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    transformers.Lfm2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_hidden_layers": 10**9, "layer_types": None}, "n_layers is 1000000000"),
        ({"num_hidden_layers": "2"}, "n_layers is 2"),
        ({"layer_types": ["conv"]}, 'layer_types ["conv"]'),
        ({"layer_types": ["conv", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": "conv"}, "layer_types conv"),
        ({"layer_types": [["conv"], {}]}, "layer_types [["),
        ({"layer_types": {"conv": 1, "full_attention": 2}}, "layer_types {"),
        ({"layer_types": None, "full_attn_idxs": "01"}, "full_attn_idxs 01"),
        ({"layer_types": None, "full_attn_idxs": [0.0]}, "full_attn_idxs [0.0]"),
        ({"layer_types": None, "full_attn_idxs": [True]}, "full_attn_idxs [true]"),
        ({"layer_types": None, "full_attn_idxs": [2]}, "attention_layers"),
        ({"block_auto_adjust_ff_dim": "yes"}, "block_auto_adjust_ff_dim is yes"),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": "2"}, "block_ffn_dim_multiplier is 2"),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": [2]}, "block_ffn_dim_multiplier is [2]"),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": float("nan")}, "config.json"),
        ({"block_auto_adjust_ff_dim": True, "block_multiple_of": 0}, "config.json"),
        ({"block_auto_adjust_ff_dim": True, "intermediate_size": "6"}, "d_ff is 6"),
        ({"tie_embedding": "false"}, "tie_embedding is false"),
        ({"conv_L_cache": 10**9}, "conv_width is 1000000000"),
        ({"conv_bias": True}, "conv_bias"),
    ],
)
def test_wrong_fields_of_a_model_with_convolutions_are_refused(
    fields: dict[str, Any], found: str, hybrid: Path
) -> None:
    edit(hybrid / "config.json", lambda record: record | fields)
    refuse(hybrid, found)


def test_layers_with_attention_are_named_in_any_order(hybrid: Path) -> None:
    edit(hybrid / "config.json", lambda record: record | {"layer_types": None, "full_attn_idxs": [1, 1]})
    import_model(hybrid, hybrid.parent / "imported")
    record = json.loads((hybrid.parent / "imported" / "config.json").read_text(encoding="utf-8"))
    assert record["layer_types"] == ["conv", "full_attention"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000, b"null"])
def test_damaged_json_is_refused_by_the_name_of_its_file(name: str, content: bytes, model: Path) -> None:
    (model / name).write_bytes(content)
    refuse(model, name)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.int64),
        lambda t: t > 0,
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to_sparse(),
        lambda t: t[:1, :1].clone().expand(t.shape),
        lambda t: torch.full_like(t, float("nan")),
        lambda t: t[:-1],
    ],
)
@pytest.mark.parametrize("is_pickled", [False, True])
def test_tensors_that_are_not_plain_weights_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], is_pickled: bool, model: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights = load_file(model / "model.safetensors")
    weights[name] = change(weights[name])
    if is_pickled:
        (model / "model.safetensors").unlink()
        torch.save(weights, model / "pytorch_model.bin")
    elif weights[name].layout != torch.strided:
        pytest.skip("safetensors has no sparse tensors")
    else:
        is_expanded = 0 in weights[name].stride()
        save_file({k: v.contiguous() for k, v in weights.items()}, model / "model.safetensors")
        if is_expanded:  # safetensors stores all of its values, which is plain again
            import_model(model, model.parent / "imported")
            return
    refuse(model, "up_proj")


def test_weights_in_float64_are_converted(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.double() for name, tensor in weights.items()}, model / "model.safetensors")
    import_model(model, model.parent / "imported")
    found = load_file(model.parent / "imported" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_damaged_and_hostile_pickles_are_refused(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    torch.save(weights, path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for k in range(60):
        damaged = bytearray(whole[: len(whole) // 2] if k % 3 == 0 else whole)
        for at in torch.randint(0, 3_000, (8,), generator=generator).tolist():
            damaged[at % len(damaged)] = (at * 31 + k) % 256
        path.write_bytes(bytes(damaged))
        try:
            import_model(model, model.parent / "imported")
            shutil.rmtree(model.parent / "imported")  # the damage was in padding
        except CodekilnError as refusal:
            assert len(str(refusal)) < MAX_ERROR_CHARACTERS
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # 300 MB in 300 kB
        archive.writestr("archive/data.pkl", b"\0" * 300_000_000)
    refuse(model, "compressed archive")


def test_a_million_wrong_names_make_a_short_error(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights |= {f"{'x' * 300}.{k}": torch.zeros(1) for k in range(3_000)}
    save_file(weights, model / "model.safetensors")
    refuse(model, "and 2992 more")


def test_hostile_tokenizers_are_refused(model: Path) -> None:
    path = model / "tokenizer.json"
    original = path.read_bytes()
    for change in (
        lambda r: r | {"added_tokens": [r["added_tokens"][0] | {"id": 300_000_000}]},
        lambda r: r | {"added_tokens": [r["added_tokens"][0] | {"id": -1}]},
        lambda r: r | {"added_tokens": [r["added_tokens"][0] | {"id": "7"}]},
        lambda r: r | {"added_tokens": 5},
        lambda r: r | {"model": r["model"] | {"vocab": {"a": 10**12}}},
        lambda r: r | {"model": r["model"] | {"merges": [["a"]]}},
        lambda r: r | {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}},
        lambda r: r | {"normalizer": {"type": "Prepend", "prepend": "x"}},
        lambda r: r | {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(" * 50}}},
        lambda r: r | {"pre_tokenizer": {"type": "q" * 100_000}},
    ):  # fmt: skip
        path.write_bytes(original)
        edit(path, change)
        refuse(model, "tokenizer.json")


def test_memory_stays_small_while_hostile_directories_are_refused(model: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for change in ({"vocab_size": 10**9}, {"num_hidden_layers": 999, "hidden_size": 99_999}):
        record = json.loads((model / "config.json").read_text(encoding="utf-8"))
        (model / "config.json").write_text(json.dumps(record | change), encoding="utf-8")
        refuse(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_prefixes_of_wrappers_are_stripped_and_adapters_refused(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        save_file({prefix + name: tensor for name, tensor in weights.items()}, model / "model.safetensors")
        import_model(model, model.parent / "imported")
        found = load_file(model.parent / "imported" / "model.safetensors")
        assert found.keys() == weights.keys()
    shutil.rmtree(model.parent / "imported")
    save_file({"base_model.model." + name: tensor for name, tensor in weights.items()}, model / "model.safetensors")
    refuse(model, "PEFT", "merge_and_unload")


def test_an_untied_output_layer_is_kept_whatever_the_config_says(model: Path) -> None:
    edit(model / "config.json", lambda record: record | {"tie_word_embeddings": True})
    notes = import_model(model, model.parent / "imported")
    assert any("output layer" in note for note in notes)
    _, config = read_config(model.parent / "imported")
    assert not config.tie_embeddings
    weights = load_file(model / "model.safetensors")
    assert torch.equal(
        load_file(model.parent / "imported" / "model.safetensors")["lm_head.weight"], weights["lm_head.weight"]
    )
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, model / "model.safetensors")
    assert read_config(model)[1].tie_embeddings


def test_end_tokens_of_both_config_files_are_kept(model: Path) -> None:
    tokenizer = Tokenizer.load(model / "tokenizer.json")
    wanted = {tokenizer.eos_id, tokenizer.special_id("<|im_end|>")}
    import_model(model, model.parent / "imported")
    export_model(model.parent / "imported", model.parent / "exported", "hf")
    for folder in (model, model.parent / "imported", model.parent / "exported"):
        assert stop_token_ids_in(folder) == wanted
        assert Completer.load(folder)._stop_token_ids >= wanted
    loaded = transformers.GenerationConfig.from_pretrained(model.parent / "imported")
    assert set(loaded.eos_token_id) == wanted


def test_a_chat_template_survives_import(model: Path) -> None:
    import_model(model, model.parent / "imported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent / "imported")
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_neutral_rope_scaling_is_taken_and_the_newer_field_counts(model: Path) -> None:
    edit(model / "config.json", lambda record: record | {"rope_scaling": {"rope_type": "default"}})
    read_config(model)
    edit(
        model / "config.json",
        lambda r: (
            {name: value for name, value in r.items() if name != "rope_scaling"}
            | {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
        ),
    )
    assert read_config(model)[1].rope_base == 7.0
    loaded = transformers.AutoConfig.from_pretrained(model)
    assert loaded.rope_parameters["rope_theta"] == 7.0


def test_a_pad_token_does_not_change_the_infilling_format(released: Path, tmp_path: Path) -> None:
    """Qwen's makers advise to add <|pad|> for fine-tuning."""
    folder = shutil.copytree(released, tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    before = Tokenizer.load(folder / "tokenizer.json")
    assert isinstance(before.infill_format, PSM)

    def add_pad(record: dict[str, Any]) -> dict[str, Any]:
        pad = record["added_tokens"][0] | {"id": 399 + 1, "content": "<|pad|>"}
        return record | {"added_tokens": [*record["added_tokens"], pad]}

    edit(folder / "tokenizer.json", add_pad)
    after = Tokenizer.load(folder / "tokenizer.json")
    assert isinstance(after.infill_format, PSM)
    assert after.infill_format.prompt([1], [2]) == before.infill_format.prompt([1], [2])


def test_a_tokenizer_that_fits_no_format_or_two_is_refused_when_it_must_infill(released: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(released, tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    renamed = (folder / "tokenizer.json").read_text(encoding="utf-8").replace(FIM_PAD, "<|other|>")
    (folder / "tokenizer.json").write_text(renamed, encoding="utf-8")
    with pytest.raises(CodekilnError, match=r"no known infilling format.*tokenizer_config\.json"):
        _ = Tokenizer.load(folder / "tokenizer.json").infill_format
    (folder / "tokenizer.json").write_text(renamed.replace("<|other|>", "<|endofmask|>"), encoding="utf-8")
    with pytest.raises(CodekilnError, match="two infilling formats"):
        _ = Tokenizer.load(folder / "tokenizer.json").infill_format
    (folder / "tokenizer_config.json").write_text('{"infill_format": "spm"}', encoding="utf-8")
    assert isinstance(Tokenizer.load(folder / "tokenizer.json").infill_format, SPM)


def test_added_tokens_are_read_and_not_guessed(tmp_path: Path) -> None:
    merges = load_gpt2_merges()
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        n_layer=1, n_embd=32, n_head=4, rotary_dim=8, vocab_size=51_200, n_positions=64, n_ctx=64
    )
    transformers.CodeGenForCausalLM(config).half().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    path = tmp_path / "model" / "added_tokens.json"
    path.write_text(json.dumps(dict(WHITESPACE_IDS) | {"<mask_1>": 50_295}), encoding="utf-8")
    import_model(tmp_path / "model", tmp_path / "imported")
    tokenizer = Tokenizer.load(tmp_path / "imported" / "tokenizer.json")
    assert tokenizer.special_id("<mask_1>") == 50_295
    assert tokenizer.encode("    return x") == codegen_tokenizer(merges).encode("    return x")
    for wrong in ({"<mask_1>": 50_299}, {"<mask_1>": "50257"}, {"<mask_1>": 5}):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        shutil.rmtree(tmp_path / "imported", ignore_errors=True)
        refuse(tmp_path / "model", "added_tokens.json")


def test_a_start_token_is_kept_when_the_prompt_is_cut(tmp_path: Path, released: Path) -> None:
    """Llama 3 begins every text with its start token."""
    folder = shutil.copytree(released, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    text = text.replace("<|endoftext|>", "<|end_of_text|>").replace("<|im_end|>", "<|begin_of_text|>")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    completer = Completer.load(folder)
    start = completer.tokenizer.special_id("<|begin_of_text|>")
    assert completer.tokenizer.start_id == start
    for prompt in ("x = 1\n", "x = 1\n" * 200):
        ids = completer.prompt_ids(InfillRequest(prompt), 8)
        assert ids[0] == start and ids.count(start) == 1 and len(ids) + 8 <= completer.context_length
    completer.complete([InfillRequest("x = 1\n" * 200)], CompletionParams(max_new_tokens=8, sampling=GREEDY))
