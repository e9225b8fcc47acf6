"""Import and export of checkpoints, compared with Transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from codekiln.convert.models import export_model, import_model, resolve_model
from codekiln.errors import CodekilnError
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.engine import Engine
from codekiln.generate.infilling import LEFT_TO_RIGHT_NOTE
from codekiln.generate.sampling import GREEDY
from codekiln.model.huggingface import load_model
from codekiln.recipes.finetune import objective_for
from codekiln.tokenizer.bpe import Tokenizer, save_tokenizer
from codekiln.tokenizer.codegen import WHITESPACE, codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.infill import require_fim
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.objectives import Chunk, FillInTheMiddle
from tests.command import assert_refused, codekiln, codekiln_process
from tests.released import CODEGEN2
from tests.small import assert_greedy, write_tree

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def codegen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CodeGen-Mono as released: half precision, two shards, wrong token ids, and the tokenizer in parts."""
    folder = tmp_path_factory.mktemp("codegen")
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        n_layer=2, n_embd=64, n_head=4, rotary_dim=8, vocab_size=51_200, n_positions=128, n_ctx=128,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.CodeGenForCausalLM(config).half().save_pretrained(folder, max_shard_size="8MB")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(load_gpt2_merges()) + "\n", encoding="utf-8")
    added = {run: 50_257 + k for k, run in enumerate(WHITESPACE)}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def incoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InCoder with random weights and a tokenizer with its special tokens."""
    folder = tmp_path_factory.mktemp("incoder")
    code = write_tree(tmp_path_factory.mktemp("code"))
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    plan = TokenizerConfig(
        vocab_size=256 + 64 + len(INCODER_SPECIAL_TOKENS),
        pattern=LINE_SPLIT_PATTERN,
        special_tokens=INCODER_SPECIAL_TOKENS,
    )
    tokenizer = train_tokenizer(plan, texts)
    save_tokenizer(folder, tokenizer)
    torch.manual_seed(0)
    config = transformers.XGLMConfig(
        num_layers=2, d_model=64, attention_heads=4, ffn_dim=128, vocab_size=tokenizer.vocab_size,
        max_position_embeddings=128, bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=1,
    )  # fmt: skip
    transformers.XGLMForCausalLM(config).save_pretrained(folder)
    return folder


def greedy_tokens(completer: Completer, ids: list[int], n: int) -> list[int]:
    """The greedy tokens after a prompt."""
    assert isinstance(completer.engine, Engine)
    return completer.engine.generate([ids], GREEDY, max_new_tokens=n)[0]


def test_imported_codegen_completes_as_in_transformers(codegen_folder: Path, tmp_path: Path) -> None:
    notes = import_model(codegen_folder, tmp_path / "model")
    assert any(all(part in note for part in ("bos_token_id", " 1", "50256")) for note in notes)
    assert any(all(part in note for part in ("eos_token_id", " 2", "50256")) for note in notes)
    assert any("tokenizer.json" in note for note in notes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = Completer.load(tmp_path / "model")
    prompt = "def add(a, b):\n    return"
    ids = ours.prompt_ids(InfillRequest(prompt), 20)
    assert ids == tokenizer.encode(prompt) == codegen_tokenizer(load_gpt2_merges()).encode(prompt)
    # Codekiln never samples ids without text, so they are forbidden for Transformers too.
    unused = range(50_295, 51_200)
    made = greedy_tokens(ours, ids, 20)
    assert_greedy(lambda batch: theirs(batch).logits, ids, made, tolerance=1e-3, forbidden=unused)
    answer = ours.complete([InfillRequest(prompt)], CompletionParams(max_new_tokens=20, sampling=GREEDY))[0]
    assert answer.text == tokenizer.decode(made, skip_special_tokens=True)
    with pytest.raises(ValueError, match="cannot infill"):
        ours.complete([InfillRequest(prompt, "\n")], CompletionParams(max_new_tokens=4, sampling=GREEDY))


def test_imported_incoder_infills_with_its_own_format(incoder_folder: Path, tmp_path: Path) -> None:
    import_model(incoder_folder, tmp_path / "model")
    ours = Completer.load(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    before, after = "def f(x):\n    ", "\n    return y\n"
    spelled = f"<|endoftext|>{before}<|mask:0|>{after}<|mask:1|><|mask:0|>"
    ids = ours.prompt_ids(InfillRequest(before, after), 16)
    assert ids == tokenizer.encode(spelled, add_special_tokens=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    stop_token_ids = [ours.tokenizer.special_id("<|endofmask|>"), ours.tokenizer.eos_id]
    made = greedy_tokens(ours, ids, 16)
    banned = ours.tokenizer.special_ids - set(stop_token_ids)
    assert_greedy(lambda batch: theirs(batch).logits, ids, made, tolerance=1e-3, forbidden=banned)
    answer = ours.complete([InfillRequest(before, after)], CompletionParams(max_new_tokens=16, sampling=GREEDY))[0]
    assert answer.text == ours.tokenizer.decode(made)


def test_codegen_exported_as_gptj_and_imported_is_equal(codegen_folder: Path, tmp_path: Path) -> None:
    export_model(codegen_folder, tmp_path / "gptj", "gptj")
    export_model(tmp_path / "gptj", tmp_path / "back", "hf")
    first, second = (load_model(folder) for folder in (tmp_path / "gptj", tmp_path / "back"))
    assert type(first.config) is type(second.config)
    ids = torch.arange(20)[None]
    assert torch.equal(first(ids), second(ids))
    with pytest.raises(ValueError, match=r"'onnx'.*hf, gptj, gguf"):
        export_model(codegen_folder, tmp_path / "other", "onnx")


def test_tokenizer_larger_than_the_imported_model_is_refused(
    incoder_folder: Path, codegen_folder: Path, tmp_path: Path
) -> None:
    for path in incoder_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    codegen_tokenizer(load_gpt2_merges()).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"50,295.*579"):
        import_model(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match=r"50,295.*579"):
        export_model(tmp_path, tmp_path / "model.gguf", "gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_export_replaces_only_its_own_output(incoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    for path in incoder_folder.iterdir():
        (tmp_path / "run" / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run" / "recipe.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    source = tmp_path / "run" / "model"
    for target in (tmp_path / "run", source, tmp_path / "notes.txt", tmp_path):
        with pytest.raises(CodekilnError, match=str(target)):
            export_model(source, target, "hf")
    assert (tmp_path / "run" / "recipe.json").is_file() and (tmp_path / "notes.txt").is_file()
    export_model(source, tmp_path / "new", "hf")
    export_model(source, tmp_path / "new", "hf")


def test_codegen25_is_imported_without_its_code(tmp_path: Path) -> None:
    """As released: a Llama, and a tokenizer that is Python code, which is not run."""
    source = tmp_path / "codegen25"
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=51_200,
        max_position_embeddings=128, bos_token_id=50_256, eos_token_id=50_256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    (source / "tokenization_codegen25.py").write_text("raise SystemExit('code of the model ran')", encoding="utf-8")
    auto_map = {"AutoTokenizer": ["tokenization_codegen25.CodeGen25Tokenizer", None]}
    named = {"tokenizer_class": "CodeGen25Tokenizer", "auto_map": auto_map}
    (source / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    notes = import_model(source, tmp_path / "model")
    assert len(notes) == 1 and "CodeGen2.5" in notes[0] and "not run" in notes[0]
    ours = Completer.load(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = ours.prompt_ids(InfillRequest("def f(x):\n    ", "\n    return y\n"), 16)
    spelled = "def f(x):\n    <mask_1>\n    return y\n<|endoftext|><sep><mask_1>"
    assert ids == theirs.encode(spelled, add_special_tokens=False)
    assert ours.can_infill and ours.complete(
        [InfillRequest("def f(", "): pass")], CompletionParams(max_new_tokens=4, sampling=GREEDY)
    )


def test_codegen2_is_imported_with_a_note(codegen_folder: Path, tmp_path: Path) -> None:
    """Of the 7B and 16B, only the tokenizer and `auto_map` differ from CodeGen's."""
    source = tmp_path / "codegen2"
    source.mkdir()
    for path in codegen_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | CODEGEN2), encoding="utf-8")
    added = json.loads((source / "added_tokens.json").read_text(encoding="utf-8"))
    special = ["<mask_1>", "<sep>", "<eom>"]
    added |= {token: 50_295 + k for k, token in enumerate(special)}
    (source / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    notes = import_model(source, tmp_path / "model")
    assert any("its own code, which was not run" in note and "CodeGen2" in note for note in notes)
    ours = Completer.load(tmp_path / "model")
    prompt = ours.prompt_ids(InfillRequest("a", "b"), 4)
    assert prompt == [*ours.tokenizer.encode("a"), 50_295, *ours.tokenizer.encode("b"), 50_256, 50_296, 50_295]
    assert isinstance(objective_for(ours.tokenizer.infill_format), FillInTheMiddle)
    ids = np.array(ours.tokenizer.encode("def f(x):\n    return x\n" * 4))
    examples = [
        FillInTheMiddle(fim_rate=1.0)(
            Chunk(ids, is_start=True, is_end=True), ours.tokenizer, np.random.default_rng(seed)
        )
        for seed in range(20)
    ]
    for example in examples:
        assert example.ids.count(50_295) == 2 and example.ids[-1] == 50_297
        assert len(example.ids) <= len(ids) + FillInTheMiddle().max_added_tokens


def test_missing_tokenizer_is_rebuilt_for_codegen_only(incoder_folder: Path, tmp_path: Path) -> None:
    for path in incoder_folder.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        import_model(tmp_path, tmp_path / "model")


def test_valid_eos_token_ids_are_kept(incoder_folder: Path, tmp_path: Path) -> None:
    for path in incoder_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    mask = Completer.load(incoder_folder).tokenizer.special_id("<|mask:7|>")
    stop_token_ids = [config["eos_token_id"], mask]
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": stop_token_ids}), encoding="utf-8")
    assert import_model(tmp_path, tmp_path / "model") == []
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["eos_token_id"] == stop_token_ids
    )
    assert mask in Completer.load(tmp_path / "model")._stop_token_ids


def test_server_refuses_a_suffix_if_the_model_cannot_infill(codegen_folder: Path, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from codekiln.serve.server import make_app

    import_model(codegen_folder, tmp_path / "model")
    with TestClient(make_app(Completer.load(tmp_path / "model"), "codegen", "testserver")) as client:
        for body, message in (
            ({"prompt": "a", "suffix": "b"}, "cannot infill"),
            ({"prompt": "a", "suffix": "b", "stream": True}, "cannot infill"),
            ({"prompt": ""}, "the prompt is empty"),
            ({"prompt": "", "stream": True}, "the prompt is empty"),
        ):
            answer = client.post("/v1/completions", json=body | {"max_tokens": 4})
            assert answer.status_code == 400 and message in answer.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 4}),
        ("/v1/fim/completions", {"model": "codegen", "prompt": "a", "suffix": "b", "max_tokens": 4}),
        ("/api/generate", {"model": "codegen", "prompt": "a", "suffix": "b", "stream": False}),
        ("/v1/completions", {"segments": {"prefix": "a", "suffix": "b"}}),
    ],
)
def test_editors_get_a_continuation_and_a_note_if_the_model_cannot_infill(
    codegen_folder: Path, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    from fastapi.testclient import TestClient

    from codekiln.serve.server import make_app

    import_model(codegen_folder, tmp_path / "model")
    with TestClient(make_app(Completer.load(tmp_path / "model"), "codegen", "testserver")) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["codekiln-note"] == LEFT_TO_RIGHT_NOTE
        assert "codekiln-note" not in client.post(path, json=without_suffix(body)).headers


def without_suffix(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request with no text after the hole."""
    names = {"suffix", "input_suffix"}
    return {
        key: without_suffix(value) if isinstance(value, dict) else "" if key in names else value
        for key, value in body.items()
    }


def test_qwen_prompts_are_prefix_suffix_middle() -> None:
    record = codegen_tokenizer(load_gpt2_merges()).record
    names = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>")
    added = [record["added_tokens"][0] | {"id": 50_295 + k, "content": name} for k, name in enumerate(names)]
    qwen = Tokenizer(record | {"added_tokens": record["added_tokens"] + added}, origin="Qwen")
    assert require_fim(qwen.infill_format).prompt([1], [2]) == [50_295, 1, 50_297, 2, 50_296]
    assert qwen.stop_token_ids == {50_256, 50_298, 50_299} and qwen.bos_ids == []


def test_import_command_prints_its_corrections(codegen_folder: Path, tmp_path: Path) -> None:
    done = codekiln("import", codegen_folder, "--out", tmp_path / "model")
    assert done.returncode == 0 and "eos_token_id 2" in done.stderr, done.stderr
    assert codekiln("complete", tmp_path / "model", "def f", "--max-new-tokens", 4).returncode == 0
    missing = codekiln_process("import", "no-one/nothing", "--out", tmp_path / "other", HF_HUB_OFFLINE="1")
    assert_refused(missing, "no-one/nothing")
    with pytest.raises(FileNotFoundError, match="none"):
        resolve_model(str(tmp_path / "none"))


def test_llama_3_start_and_end_tokens_are_used(tmp_path: Path) -> None:
    control = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    texts = ["def f(x):\n    return x + 1\n" * 20]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(control))
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.load(tmp_path / "tokenizer.json")
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        vocab_size=found.vocab_size, max_position_embeddings=64, bos_token_id=found.special_id(control[0]),
        eos_token_id=[found.special_id(token) for token in control[1:]],
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert import_model(tmp_path, tmp_path / "model") == []
    ours = Completer.load(tmp_path / "model")
    assert ours.prompt_ids(InfillRequest("def"), 4) == [found.special_id(control[0]), *found.encode("def")]
    assert found.eos_id == found.special_id("<|end_of_text|>") and found.stop_token_ids == {found.eos_id}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (theirs.bos_token, theirs.eos_token) == control[:2]
