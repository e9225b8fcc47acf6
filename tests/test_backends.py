"""Other backends than PyTorch: the same greedy tokens, ends, samples, and fields that are refused."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codekiln.convert.models import export_model
from codekiln.errors import ConfigError
from codekiln.generate.backends.backend import Backend, TokenRules, token_rules
from codekiln.generate.complete import Completer, CompletionParams
from codekiln.generate.engine import Request
from codekiln.generate.model_cache import model_cache_path
from codekiln.generate.sampling import GREEDY, SamplingParams, TokenLogprobs
from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig, Lfm2Config, ModelConfig, StarCoder2Config
from codekiln.model.huggingface import load_model, save_model
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from tests.command import assert_refused, codekiln
from tests.small import assert_greedy

ctranslate2 = pytest.importorskip(
    "ctranslate2", reason="ctranslate2 is not installed: pip install 'codekiln[ctranslate2]'"
)
from codekiln.generate.backends.ctranslate2 import CTranslate2Backend  # noqa: E402
from codekiln.generate.backends.ctranslate2_model import write_ctranslate2  # noqa: E402
from codekiln.generate.backends.llama_cpp import LlamaCppBackend  # noqa: E402

pytestmark = pytest.mark.process

CONTEXT = 128
SIZES: dict[str, Any] = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_ff": 96, "vocab_size": 1040, "context_length": CONTEXT
}  # fmt: skip
FAMILIES: dict[str, ModelConfig] = {
    "codegen": CodeGenConfig(**SIZES, n_kv_heads=4, rotary_dim=8),
    "incoder": InCoderConfig(**SIZES, n_kv_heads=4),
    "llama": KilnConfig(**SIZES, n_kv_heads=2, qk_norm=False, tie_embeddings=False),
    "qwen3": KilnConfig(**SIZES | {"d_head": 32}, n_kv_heads=2, qk_norm=True),
    "qwen2": KilnConfig(**SIZES, n_kv_heads=2, qk_norm=False, qkv_bias=True),
    "deepseek": KilnConfig(**SIZES, n_kv_heads=4, qk_norm=False, tie_embeddings=False, rope_scale=4.0, rope_base=1e5),
    "starcoder2": StarCoder2Config(**SIZES, n_kv_heads=2),
}
LFM2 = Lfm2Config(**SIZES, n_kv_heads=2, attention_layers=(1,))
PROMPTS = ("def count(items):\n    ", "class", "import os\n\n\nfor path in ")
Make = Callable[[Path, Tokenizer, TokenRules], Backend]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codekiln"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories with random weights, a tokenizer of 1,024 ids, and 16 rows of the embedding that have no id."""
    root = tmp_path_factory.mktemp("models")
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path("codekiln").rglob("*.py"))]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=1024), texts)
    tokenizer.save(root / "tokenizer.json")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    torch.manual_seed(0)
    models = FAMILIES | {"lfm2": LFM2}
    for name, config in models.items():
        model = Transformer(config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.normal_(1.0 if key.endswith("norm.weight") else 0.0, 0.15)
        save_model(root / name, model, root / "tokenizer.json", hugging_face_configs(tokenizer, CONTEXT), ids)
    return {name: root / name for name in models}


def make_completer(folder: Path, make: Make) -> Completer:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    rules = token_rules(tokenizer, 1040, frozenset())
    return Completer(make(folder, tokenizer, rules), tokenizer, rules, precision="")


def make_ctranslate2(folder: Path, tokenizer: Tokenizer, rules: TokenRules) -> Backend:
    return CTranslate2Backend(folder, tokenizer, rules, "float32")


def make_llama_cpp(folder: Path, tokenizer: Tokenizer, rules: TokenRules) -> Backend:
    path = model_cache_path("llama.cpp", folder, "f32").with_suffix(".gguf")
    export_model(folder, path, "gguf", dtype="f32")
    return LlamaCppBackend(path, tokenizer, rules, CONTEXT)


def run(backend: Backend, *requests: Request) -> None:
    while not all(each.is_finished for each in requests):
        backend.step()


LOGPROB_TOLERANCE: dict[Make, float] = {
    make_ctranslate2: 1e-3,
    make_llama_cpp: 0.2,
}  # its keys and values are in half precision
BACKENDS: dict[str, Make] = {"ctranslate2": make_ctranslate2, "llama.cpp": make_llama_cpp}
each_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_ctranslate2_generates_the_greedy_tokens_of_pytorch(
    folders: dict[str, Path], family: str, compute_type: Any
) -> None:
    """In int8, logits of random weights differ by up to twice their standard deviation, so its tokens are often others.

    They must still have far greater logits than tokens at random, on average.
    """
    folder = folders[family]
    model, ours = load_model(folder), Completer.load(folder)
    theirs = make_completer(
        folder, lambda path, tokenizer, rules: CTranslate2Backend(path, tokenizer, rules, compute_type)
    )
    params = CompletionParams(sampling=GREEDY, max_new_tokens=30)
    prompts = [ours.tokenizer.encode(text) for text in PROMPTS]
    rules = token_rules(ours.tokenizer, 1040, frozenset())
    for prompt, found, expected in zip(
        prompts, theirs.complete(prompts, params), ours.complete(prompts, params), strict=True
    ):
        assert found.tokens and (found.finish_reason == "stop" or len(found.tokens) == 30)
        if compute_type == "float32":
            assert_greedy(model, prompt, found.tokens, tolerance=1e-3, forbidden=rules.forbidden)
            assert found.tokens[:8] == expected.tokens[:8]
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *found.tokens]]))[0, len(prompt) - 1 : -1]
        best, chosen = logits.amax(-1), logits.gather(1, torch.tensor(found.tokens)[:, None]).flatten()
        assert (best - chosen).mean() < 0.5 * (best - logits.mean(-1)).mean()


def test_ctranslate2_refuses_a_model_with_convolutions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no short convolutions: use --backend pytorch or --backend llama\.cpp"):
        write_ctranslate2(Transformer(LFM2), 1024, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["codegen", "incoder", "llama", "qwen3", "lfm2"])
def test_llama_cpp_generates_the_greedy_tokens_of_pytorch(folders: dict[str, Path], family: str) -> None:
    """llama.cpp keeps keys and values in half precision, and computes InCoder's GELU with tanh."""
    folder = folders[family]
    model, theirs = load_model(folder), make_completer(folder, make_llama_cpp)
    rules = token_rules(theirs.tokenizer, 1040, frozenset())
    prompts = [theirs.tokenizer.encode(text) for text in PROMPTS]
    completions = theirs.complete(prompts, CompletionParams(sampling=GREEDY, max_new_tokens=30))
    for prompt, found in zip(prompts, completions, strict=True):
        assert found.finish_reason == "stop" or len(found.tokens) == 30
        assert_greedy(model, prompt, found.tokens, tolerance=5e-2, forbidden=rules.forbidden)


def test_seeds_of_llama_cpp_repeat_samples(folders: dict[str, Path]) -> None:
    """A sample has the same tokens alone and next to others: they differ only in rounding."""
    backend = make_completer(folders["llama"], make_llama_cpp).engine
    rows = []
    for seed, n in ((1, 6), (1, 1), (2, 1)):
        request = backend.add([5, 6, 7], SamplingParams(temperature=1.0, seed=seed), max_new_tokens=8, n=n)
        run(backend, request)
        rows.append([each.tokens for each in request.sequences])
    assert len({tuple(tokens) for tokens in rows[0]}) == 6
    assert rows[1][0] == rows[0][0] != rows[2][0]


def test_llama_cpp_honors_the_fields_of_a_request(folders: dict[str, Path]) -> None:
    backend = make_completer(folders["llama"], make_llama_cpp).engine
    only = SamplingParams(temperature=1.0, logit_bias=((300, 100.0),))
    biased = backend.add([5, 6, 7], only, max_new_tokens=4)
    tops = [SamplingParams(**{"temperature": 2.0, "top_p": 1.0, "seed": 3, "logprobs": 3} | {name: value})  # type: ignore[arg-type]
            for name, value in (("top_k", 2), ("min_p", 0.999), ("top_p", 1e-6))]  # fmt: skip
    requests = [backend.add([5, 6, 7], each, max_new_tokens=6) for each in tops]
    found: dict[Request, list[TokenLogprobs]] = {request: [] for request in requests}
    while not all(each.is_finished for each in (biased, *requests)):
        for new in backend.step():
            if new.logprobs is not None:
                found[new.sample.request].append(new.logprobs)
    assert biased.sequences[0].tokens == [300] * 4
    for request, limit in zip(requests, (2, 1, 1), strict=True):
        for each in found[request]:
            assert len(each.top) == 3
            assert each.token in [token for token, _ in each.top[:limit]]
    with pytest.raises(ConfigError, match=r"^presence_penalty: llama\.cpp cannot honor it"):
        backend.add([1], SamplingParams(presence_penalty=0.5), max_new_tokens=4)


@each_backend
def test_tokens_are_streamed_and_stop_strings_end_a_sample(folders: dict[str, Path], make: Make) -> None:
    theirs = make_completer(folders["qwen3"], make)
    prompt = theirs.tokenizer.encode(PROMPTS[0])
    params = CompletionParams(sampling=GREEDY, max_new_tokens=40)
    whole = theirs.complete([prompt], params)[0].text
    first = theirs.complete([prompt], replace(params, max_new_tokens=1))[0].text
    # Weights are random, so much of the text is no valid UTF-8.
    stop = next(
        match.group()
        for match in re.finditer(r"[^\ufffd]{1,3}", whole)
        if match.start() > len(first) and match.group() not in first
    )
    chunks = list(theirs.stream([prompt], replace(params, stop=(stop,))))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    completion = chunks[-1].completion
    assert completion is not None and completion.finish_reason == "stop"
    assert len(chunks) >= completion.completion_tokens > 1
    assert theirs.engine.is_idle


@each_backend
def test_a_sample_ends_with_a_stop_token(folders: dict[str, Path], make: Make) -> None:
    ours = Completer.load(folders["llama"])
    tokenizer, prompt = ours.tokenizer, ours.tokenizer.encode(PROMPTS[0])
    tokens = ours.complete([prompt], CompletionParams(sampling=GREEDY, max_new_tokens=10))[0].tokens
    rules = TokenRules(stop=frozenset({tokens[4]}), forbidden=token_rules(tokenizer, 1040, frozenset()).forbidden)
    backend = make(folders["llama"], tokenizer, rules)
    request = backend.add(prompt, GREEDY, max_new_tokens=10)
    run(backend, request)
    assert request.sequences[0].tokens == list(tokens[: tokens.index(tokens[4]) + 1])
    assert request.sequences[0].finish_reason == "stop"


@each_backend
def test_samples_of_a_request_differ_and_are_complete(folders: dict[str, Path], make: Make) -> None:
    backend = make_completer(folders["llama"], make).engine
    sampling = SamplingParams(temperature=1.0, top_p=1.0)
    many, one = (backend.add([5, 6, 7], sampling, max_new_tokens=8, n=n) for n in (40, 1))
    run(backend, many, one)
    for request in (many, one):
        for each in request.sequences:
            assert (each.finish_reason == "length") == (len(each.tokens) == 8) or each.finish_reason == "stop"
            assert all(0 <= token < 1024 for token in each.tokens)
    assert len({tuple(each.tokens) for each in many.sequences}) == 40
    assert backend.stats.generated_tokens == sum(len(each.tokens) for each in (*many.sequences, *one.sequences))


@each_backend
def test_log_probabilities_of_tokens_are_those_of_the_transformer(folders: dict[str, Path], make: Make) -> None:
    """Those of CTranslate2 are of the tokens that may be sampled."""
    model, theirs = load_model(folders["qwen3"]), make_completer(folders["qwen3"], make)
    prompt = theirs.tokenizer.encode(PROMPTS[0])
    masked = sorted(token_rules(theirs.tokenizer, 1040, frozenset()).forbidden) if make is make_ctranslate2 else []
    for sampling in (SamplingParams(temperature=0, logprobs=0), SamplingParams(temperature=0.7, top_k=50, logprobs=0)):
        [found] = theirs.complete([prompt], CompletionParams(sampling=sampling, max_new_tokens=20))
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *found.tokens]]))[0, len(prompt) - 1 : -1].clone()
            logits[:, masked] = -torch.inf
            values = logits.log_softmax(-1).gather(1, torch.tensor(found.tokens)[:, None]).flatten()
        assert [each.logprob for each in found.logprobs] == pytest.approx(values.tolist(), abs=LOGPROB_TOLERANCE[make])


@each_backend
def test_a_cancelled_request_has_no_further_tokens(folders: dict[str, Path], make: Make) -> None:
    backend = make_completer(folders["llama"], make).engine
    first, second = (backend.add([5, 6, 7], GREEDY, max_new_tokens=100, n=n) for n in (3, 1))
    backend.step()
    for each in first.sequences:
        backend.cancel(each)
    lengths = [len(each.tokens) for each in first.sequences]
    run(backend, second)
    assert [len(each.tokens) for each in first.sequences] == lengths
    assert backend.is_idle and backend.step() == []


@each_backend
def test_prompts_are_limited_as_by_the_engine(folders: dict[str, Path], make: Make) -> None:
    theirs = make_completer(folders["llama"], make)
    with pytest.raises(ConfigError, match=r"120 tokens and 10 new .*128"):
        theirs.engine.add([1] * 120, GREEDY, max_new_tokens=10)
    with pytest.raises(ConfigError, match=r"empty"):
        theirs.engine.add([], GREEDY, max_new_tokens=10)
    [nothing] = theirs.complete([[1, 2]], CompletionParams(sampling=GREEDY, max_new_tokens=0))
    assert (nothing.text, nothing.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("seed", {"seed": 3}),
        ("min_p", {"min_p": 0.1}),
        ("logit_bias", {"logit_bias": ((1, 2.0),)}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": 0.5}),
        ("logprobs", {"logprobs": 2}),
    ],
)
def test_ctranslate2_refuses_fields_by_name(folders: dict[str, Path], field: str, changes: dict[str, Any]) -> None:
    backend = make_completer(folders["llama"], make_ctranslate2).engine
    with pytest.raises(ConfigError, match=rf"^{field}: CTranslate2 cannot honor it"):
        backend.add([1], SamplingParams(**changes), max_new_tokens=4)
    with pytest.raises(ConfigError, match=r"^prompt_logprobs: "):
        backend.add([1], GREEDY, max_new_tokens=4, score_from=0)


def test_a_converted_model_is_kept_and_computes_in_int8_only_if_it_agrees(
    folders: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(folders["incoder"] / "tokenizer.json")
    rules = token_rules(tokenizer, 1040, frozenset())
    for number, (limit, expected) in enumerate(((1.01, "float32"), (0.0, "int8")), start=1):
        monkeypatch.setattr("codekiln.generate.backends.ctranslate2_model.MIN_AGREEMENT", limit)
        for _ in range(2):
            assert CTranslate2Backend(folders["incoder"], tokenizer, rules).compute_type == expected
        kept = sorted((cache / "ctranslate2").iterdir())
        assert len(kept) == number
    changed = [path.stat().st_mtime_ns for path in kept]
    time.sleep(0.01)
    CTranslate2Backend(folders["incoder"], tokenizer, rules)
    assert [path.stat().st_mtime_ns for path in kept] == changed


@pytest.mark.parametrize("backend", BACKENDS)
def test_commands_generate_on_the_backend_that_is_named(small_run: Path, backend: str) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "12")
    expected = codekiln("complete", small_run, "def open_door(", *greedy).stdout
    assert codekiln("complete", small_run, "def open_door(", *greedy, "--backend", backend).stdout == expected
    wrong = codekiln("complete", small_run, "x", "--backend", backend, "--weights", "int8")
    assert_refused(wrong, "--weights is for --backend pytorch", status=2)
