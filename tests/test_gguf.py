"""GGUF files in llama.cpp: the same tokens, logits and greedy completions, for every family."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest
import torch
import transformers
import xllamacpp

from codekiln.convert.gguf_vocab import gguf_vocab_fields, pre_tokenizer_name
from codekiln.convert.models import export_model
from codekiln.errors import OutputExistsError
from codekiln.files import read_json, write_json
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.model.configs import KilnConfig, Lfm2Config, ModelConfig, StarCoder2Config
from codekiln.model.huggingface import load_model, save_model
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import codegen25_tokenizer, codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.infill import require_spm
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from tests.released import save_code_llama, save_deepseek_coder, save_starcoder2, train_sentencepiece
from tests.small import assert_greedy, run_program

pytestmark = pytest.mark.process

SOURCES = sorted(Path("codekiln").rglob("*.py"))
CONTEXT = 128
SIZES: dict[str, Any] = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_ff": 96, "vocab_size": 1024,
    "context_length": CONTEXT,
}  # fmt: skip
FAMILIES = (
    "codegen", "incoder", "qwen3", "qwen2", "llama", "smollm", "lfm2", "starcoder2", "granite", "deepseek", "code_llama",
    "codegen25",
)  # fmt: skip
# llama.cpp sums in another order, and computes GELU with tanh from a table in half precision.
TOLERANCE = dict.fromkeys(FAMILIES, 2e-4) | {"codegen": 4e-3, "incoder": 2e-2, "starcoder2": 4e-3}


class LlamaCpp:
    """llama.cpp's own server on a GGUF file, with keys and values in float32."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.warmup = str(path), CONTEXT, False
        params.cpuparams.n_threads = 2
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(self.server.listening_address + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.call("/tokenize", {"content": text, "add_special": False, "parse_special": False})[
            "tokens"
        ]
        return found

    def log_probabilities(self, ids: list[int], n: int) -> torch.Tensor:
        """Log-probabilities of the next token, (n,), before sampling.

        The sampled token is always a letter, because the server hides probabilities of incomplete characters.
        """
        letter = self.ids("a")
        body = {
            "prompt": ids, "n_predict": 1, "n_probs": n, "cache_prompt": False, "logit_bias": [[letter[0], 1e4]],
        }  # fmt: skip
        found = torch.full((n,), torch.nan)
        for entry in self.call("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def greedy(self, ids: list[int], n: int, banned: frozenset[int]) -> list[int]:
        body = {
            "prompt": ids, "n_predict": n, "top_k": 1, "return_tokens": True, "cache_prompt": False,
            "logit_bias": [[i, False] for i in sorted(banned)],
        }  # fmt: skip
        found: list[int] = self.call("/completion", body)["tokens"]
        return found


@contextmanager
def llama_cpp(folder: Path, target: Path, dtype: str = "f32") -> Iterator[LlamaCpp]:
    export_model(folder, target, "gguf", dtype=dtype)
    yield LlamaCpp(target)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory with random weights and a tokenizer for every family."""
    root = tmp_path_factory.mktemp("models")
    texts = [path.read_text(encoding="utf-8") for path in SOURCES]
    lines = train_tokenizer(
        TokenizerConfig(vocab_size=1024, pattern=LINE_SPLIT_PATTERN, special_tokens=INCODER_SPECIAL_TOKENS), texts
    )
    torch.manual_seed(0)
    codegen = transformers.CodeGenConfig(
        n_layer=2, n_embd=64, n_head=4, rotary_dim=8, vocab_size=51_200, n_positions=CONTEXT, n_ctx=CONTEXT,
        bos_token_id=50_256, eos_token_id=50_256,
    )  # fmt: skip
    incoder = transformers.XGLMConfig(
        num_layers=2, d_model=64, attention_heads=4, ffn_dim=128, vocab_size=1024, max_position_embeddings=CONTEXT,
        bos_token_id=lines.eos_id, eos_token_id=lines.eos_id, pad_token_id=1,
    )  # fmt: skip
    for model, tokenizer in (
        (transformers.CodeGenForCausalLM(codegen), codegen_tokenizer(load_gpt2_merges())),
        (transformers.XGLMForCausalLM(incoder), lines),
    ):
        name = "codegen" if tokenizer is not lines else "incoder"
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape), alpha=0.1)
        model.save_pretrained(root / name)
        tokenizer.save(root / name / "tokenizer.json")
    for name, d_head, settings in (
        ("qwen3", 32, {}), ("qwen2", 16, {"qk_norm": False, "qkv_bias": True}), ("llama", 32, {"qk_norm": False}),
    ):  # fmt: skip
        config = KilnConfig(
            n_layers=2,
            d_model=64,
            n_heads=4,
            n_kv_heads=2,
            d_head=d_head,
            d_ff=96,
            vocab_size=1024,
            context_length=CONTEXT,
            tie_embeddings=name == "qwen3",
            **settings,
        )
        model = Transformer(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.15)
        save_model(root / name, model, *_words(root))
    # SmolLM has Llama's architecture, and splits text into single digits before GPT-2's rule.
    shutil.copytree(root / "llama", root / "smollm")
    path = root / "smollm" / "tokenizer.json"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    rule = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    write_json(path, read_json(path) | {"pre_tokenizer": rule})
    llama = {"qk_norm": False, "tie_embeddings": False, "n_kv_heads": 4}
    biases = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
    released: dict[str, ModelConfig] = {
        "lfm2": Lfm2Config(**SIZES | {"n_layers": 3}, attention_layers=(1,), tie_embeddings=False),
        "starcoder2": StarCoder2Config(**SIZES),
        "granite": KilnConfig(**SIZES | llama | biases),
        "deepseek": KilnConfig(**SIZES | llama, rope_scale=4.0, rope_base=1e5),
        "code_llama": KilnConfig(**SIZES | llama),
        "codegen25": KilnConfig(**SIZES | llama | {"vocab_size": 51_200}),
    }
    for name, shape in released.items():
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        match name:
            case "lfm2" | "starcoder2" | "granite":
                save_starcoder2(path, texts, 1024)
            case "deepseek":
                save_deepseek_coder(path, texts, 1024)
            case "code_llama":
                save_code_llama(path, train_sentencepiece(texts, 1000))
            case _:
                codegen25_tokenizer(load_gpt2_merges()).save(path)
        model = Transformer(shape)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.15)
        tokenizer = Tokenizer.load(path)
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        save_model(root / name, model, path, hugging_face_configs(tokenizer, CONTEXT), ids)
    return {name: root / name for name in FAMILIES}


def log_probabilities(model: Transformer, ids: list[int], n: int) -> torch.Tensor:
    """Of the first `n` ids, after `ids`."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0, -1, :n]
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_logits_and_completions_equal_those_of_llama_cpp(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    ours, model = Completer.load(folders[family]), load_model(folders[family])
    ids = ours.tokenizer.encode(SOURCES[5].read_text(encoding="utf-8"))[:60]
    with llama_cpp(folders[family], tmp_path / "model.gguf") as theirs:
        for path in SOURCES[:12]:
            text = path.read_text(encoding="utf-8")
            assert theirs.ids(text) == ours.tokenizer.encode_document(text), path
        odd = "a\tb  \r\n\t\tx = 'Ünï 日本 ٣'\n\n\n   \n<|endoftext|> <|mask:0|>" + " " * 40 + "z"
        assert theirs.ids(odd) == ours.tokenizer.encode_document(odd)
        for n in (1, 17, 60):
            expected = log_probabilities(model, ids[:n], ours.tokenizer.vocab_size)
            found = theirs.log_probabilities(ids[:n], ours.tokenizer.vocab_size)
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[family])
        if family != "incoder":  # llama.cpp computes another GELU
            banned = ours.tokenizer.special_ids
            unused = range(ours.tokenizer.vocab_size, model.config.vocab_size)
            tokens = theirs.greedy(ids[:17], 32, banned)
            assert len(tokens) == 32
            assert_greedy(
                model,
                ids[:17], tokens, tolerance=2 * TOLERANCE[family], forbidden=[*banned, *unused],
            )  # fmt: skip


@pytest.mark.parametrize(("dtype", "share", "tolerance"), [("f16", 0.51, 0.02), ("q8_0", 0.28, 0.5)])
def test_quantization_changes_logits_little(
    folders: dict[str, Path], dtype: str, share: float, tolerance: float, tmp_path: Path
) -> None:
    ours, model = Completer.load(folders["qwen3"]), load_model(folders["qwen3"])
    ids = ours.tokenizer.encode(SOURCES[5].read_text(encoding="utf-8"))[:40]
    with llama_cpp(folders["qwen3"], tmp_path / "model.gguf", dtype) as theirs:
        found = theirs.log_probabilities(ids, ours.tokenizer.vocab_size)
    torch.testing.assert_close(found, log_probabilities(model, ids, ours.tokenizer.vocab_size), rtol=0, atol=tolerance)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = sum(int(tensor.n_bytes) for tensor in tensors.values())
    assert stored < share * 4 * sum(weight.numel() for weight in model.parameters())
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert tensors["blk.0.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType[dtype.upper()]


def test_trained_model_infills_equally_in_transformers_and_llama_cpp(small_run: Path, tmp_path: Path) -> None:
    ours = Completer.load(small_run)
    hugging = transformers.AutoModelForCausalLM.from_pretrained(small_run / "model")
    before, after = "def area(width, height):\n    ", "\n    return size\n"
    ids = ours.prompt_ids(InfillRequest(before, after), 12)
    banned = sorted(ours.tokenizer.special_ids - {ours.tokenizer.eos_id})
    made = hugging.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, bad_words_ids=[[i] for i in banned],
        pad_token_id=ours.tokenizer.pad_id,
    )[0, len(ids) :]  # fmt: skip
    answer = ours.complete([InfillRequest(before, after)], CompletionParams(max_new_tokens=12, sampling=GREEDY))[0]
    assert ours.tokenizer.decode(made.tolist()) == answer.text
    with llama_cpp(small_run / "model", tmp_path / "model.gguf") as theirs:
        body = {
            "prompt": ids, "n_predict": 12, "top_k": 1, "cache_prompt": False,
            "logit_bias": [[i, False] for i in banned],
        }  # fmt: skip
        assert theirs.call("/completion", body)["content"] == answer.text
        fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
        assert (
            fields["tokenizer.ggml.fim_mid_token_id"].contents() == require_spm(ours.tokenizer.infill_format).middle_id
        )


def test_unused_embedding_rows_are_not_exported(folders: dict[str, Path], tmp_path: Path) -> None:
    export_model(folders["codegen"], tmp_path / "model.gguf", "gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name in ("token_embd.weight", "output.weight", "output.bias"):
        assert tensors[name].shape[-1] == 50_295


def test_models_that_llama_cpp_cannot_run_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match=r"'q4_0'.*f32, f16, q8_0"):
        export_model(folders["qwen3"], target, "gguf", dtype="q4_0")
    with pytest.raises(OutputExistsError, match=r"is a folder: name a file"):
        export_model(folders["qwen3"], tmp_path, "gguf")
    wide = KilnConfig(
        n_layers=1,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        d_head=32,
        d_ff=96,
        vocab_size=1024,
        context_length=CONTEXT,
        qk_norm=False,
        qkv_bias=True,
    )
    save_model(
        tmp_path / "wide",
        Transformer(wide),
        folders["qwen3"] / "tokenizer.json",
        {},
        {"bos_token_id": 0, "eos_token_id": 0},
    )
    with pytest.raises(ValueError, match=r"qwen2 .*4 \* 32 is not 64"):
        export_model(tmp_path / "wide", target, "gguf")
    record = Tokenizer.load(folders["qwen3"] / "tokenizer.json").record
    record["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+|\W"}
    odd = Tokenizer(record, origin="odd")
    with pytest.raises(ValueError, match=r"llama\.cpp"):
        pre_tokenizer_name(odd)
    assert not target.exists()


@pytest.mark.slow
def test_export_holds_one_tensor_in_memory(tmp_path: Path) -> None:
    """The process may grow by half of the 400 MB of weights."""
    config = KilnConfig(
        n_layers=9,
        d_model=1024,
        n_heads=16,
        n_kv_heads=8,
        d_head=64,
        d_ff=2816,
        vocab_size=4096,
        context_length=CONTEXT,
        tie_embeddings=False,
    )
    save_model(tmp_path / "model", Transformer(config), *_words(tmp_path))
    done = run_program("export_gguf_memory.py", tmp_path / "model", tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").stat().st_size > 400e6
    assert int(done.stdout) < 200e6


def _words(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The tokenizer file, configs and ids that a model directory needs, for a tokenizer of 1,024 ids."""
    words = train_tokenizer(TokenizerConfig(vocab_size=1024), [path.read_text(encoding="utf-8") for path in SOURCES])
    words.save(folder / "words.json")
    ids = {"bos_token_id": words.bos_id, "eos_token_id": words.eos_id}
    return folder / "words.json", hugging_face_configs(words, CONTEXT), ids


def test_tokens_with_the_space_symbol_have_unique_names(folders: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp aborts if two tokens have the same name."""
    texts = ['SPACE = "\u2581"\nother = " "\n\u2581 \u2581 x = y\n' * 50]
    plan = TokenizerConfig(
        vocab_size=256 + 20 + len(INCODER_SPECIAL_TOKENS),
        pattern=LINE_SPLIT_PATTERN,
        special_tokens=INCODER_SPECIAL_TOKENS,
    )
    tokenizer = train_tokenizer(plan, texts)
    assert any("\u2581".encode() in token for token in tokenizer.token_bytes)
    fields = gguf_vocab_fields(tokenizer)
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) and fields["tokenizer.ggml.pre"] == "gemma4"
