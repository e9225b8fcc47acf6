"""The engine, in pairs that must agree: cached and not, batched and alone, drafted and not, int8 and float32."""

import copy
import math
import platform
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import codekiln.generate.engine
from codekiln.errors import PromptError
from codekiln.files import sha256_of
from codekiln.generate.complete import Completer
from codekiln.generate.engine import Engine, Request
from codekiln.generate.prefix_cache import PrefixCache, Range
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.model import cpu_kernels, int8_kernels, llvm_kernels
from codekiln.model.cache import BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.configs import KilnConfig, Lfm2Config, ModelConfig, codegen, incoder
from codekiln.model.decoder import Decoder, Int8Linear, Precision
from codekiln.model.huggingface import load_model
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import ShortConvolution, Transformer
from tests.small import assert_greedy, make_engine, run_program

SMALL: dict[str, Any] = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_ff": 96, "vocab_size": 300, "context_length": 512
}  # fmt: skip
FAMILIES: list[ModelConfig] = [
    KilnConfig(**SMALL, n_kv_heads=2),
    type(codegen("350M"))(**SMALL, n_kv_heads=4, rotary_dim=8),
    type(incoder("1B"))(**SMALL, n_kv_heads=4),
    Lfm2Config(**SMALL | {"n_layers": 4}, n_kv_heads=2, attention_layers=(1, 3)),
]


def random_model(config: ModelConfig) -> Transformer:
    """Weights large enough that the most likely token is clear in most places."""
    model = Transformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.normal_(1.0, 0.1, generator=generator)
        else:
            weight.normal_(0.0, 0.05 if name.endswith("bias") else 0.3, generator=generator)
    return model


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda config: config.family)
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(request.param)


@pytest.fixture(scope="module", params=[FAMILIES[0], FAMILIES[3]], ids=lambda config: config.family)
def modern(request: pytest.FixtureRequest) -> Transformer:
    """A model with attention alone, and one that has convolutions too."""
    return random_model(request.param)


def random_prompts(seed: int, *lengths: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300) for _ in range(length)] for length in lengths]


def run(engine: Engine, requests: Sequence[Request]) -> None:
    while not all(each.is_finished for each in requests):
        engine.step()


def tokens_of(request: Request) -> list[list[int]]:
    return [each.tokens for each in request.sequences]


def test_greedy_tokens_have_the_greatest_logits(model: Transformer) -> None:
    """The reference is the transformer that training uses, without a cache."""
    prompts = random_prompts(1, 1, 5, 17, 40, 100)
    for prompt, row in zip(prompts, make_engine(model).generate(prompts, GREEDY, max_new_tokens=30), strict=True):
        assert len(row) == 30
        assert_greedy(model, prompt, row, tolerance=2e-3)


def test_requests_that_join_a_running_batch_have_the_tokens_that_they_have_alone(modern: Transformer) -> None:
    params = [GREEDY, SamplingParams(temperature=1.0, seed=5), SamplingParams(temperature=0.7, top_k=20, seed=6)]
    prompts = random_prompts(2, 7, 300, 33)
    alone = []
    for prompt, sampling in zip(prompts, params, strict=True):
        engine = make_engine(modern, "int8")
        request = engine.add(prompt, sampling, max_new_tokens=24, n=2)
        run(engine, [request])
        alone.append(tokens_of(request))
    engine = make_engine(modern, "int8")
    requests = []
    for prompt, sampling in zip(prompts, params, strict=True):
        requests.append(engine.add(prompt, sampling, max_new_tokens=24, n=2))
        for _ in range(5):
            engine.step()
    run(engine, requests)
    assert [tokens_of(each) for each in requests] == alone
    assert engine.n_running == 0 and engine.is_idle


def test_samples_of_a_request_are_those_of_requests_with_one(modern: Transformer) -> None:
    """20 samples share the prompt; sample 0 alone has the prompt in its own range. The first tokens differ."""
    prompt = random_prompts(3, 50)[0]
    sampling = SamplingParams(temperature=1.2, top_p=0.95, seed=9)
    engine = make_engine(modern)
    many, one = (engine.add(prompt, sampling, max_new_tokens=12, n=n) for n in (20, 1))
    run(engine, [many, one])
    assert tokens_of(many)[0] == tokens_of(one)[0]
    assert len({tuple(tokens) for tokens in tokens_of(many)}) == 20
    for tokens in tokens_of(many)[:3]:  # each is likely under the reference: its logits are those of the whole row
        logits = modern(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
        assert logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).min() > -14


def test_logprobs_are_those_of_the_transformer(model: Transformer) -> None:
    prompt = random_prompts(4, 60)[0]
    engine = make_engine(model)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, logprobs=3, seed=1)
    request = engine.add(prompt, sampling, max_new_tokens=10, n=2, score_from=20)
    found = {0: list[float](), 1: list[float]()}
    while not request.is_finished:
        for new in engine.step():
            assert new.logprobs is not None and len(new.logprobs.top) == 3
            found[new.sample.index].append(new.logprobs.logprob)
    for each in request.sequences:
        ids = torch.tensor([[*prompt, *each.tokens]])
        values = model(ids)[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).flatten()
        assert found[each.index] == pytest.approx(values[len(prompt) - 1 :].tolist(), abs=1e-3)
        scored = [logprobs.logprob for logprobs in request.prompt_logprobs]
        assert scored == pytest.approx(values[19 : len(prompt) - 1].tolist(), abs=1e-3)


def test_prompts_are_scored_without_new_tokens(modern: Transformer) -> None:
    prompt = random_prompts(5, 700)[0][:500]
    engine = make_engine(modern)
    request = engine.add(prompt, GREEDY, max_new_tokens=0, score_from=0)
    run(engine, [request])
    values = modern(torch.tensor([prompt]))[0].log_softmax(-1)[:-1].gather(1, torch.tensor(prompt)[1:, None]).flatten()
    assert [each.logprob for each in request.prompt_logprobs] == pytest.approx(values.tolist(), abs=1e-3)
    assert tokens_of(request) == [[]] and engine.is_idle


def test_a_cached_prefix_is_not_read_again_and_changes_nothing(modern: Transformer) -> None:
    """An editing session: each prompt is a beginning of the text before with some other tokens after it."""
    rng = random.Random(6)
    text = random_prompts(6, 200)[0]
    session, fresh = make_engine(modern), make_engine(modern)
    for turn in range(6):
        text = text[: len(text) - rng.randrange(10)] + [rng.randrange(300) for _ in range(rng.randrange(1, 12))]
        cached = session.add(text, GREEDY, max_new_tokens=8)
        run(session, [cached])
        if turn:
            assert cached.n_cached_tokens >= 150
        other = fresh.add(text, GREEDY, max_new_tokens=8, cache_key=str(turn))
        run(fresh, [other])
        assert other.n_cached_tokens == 0
        assert_greedy(modern, text, tokens_of(cached)[0], tolerance=2e-3)
    assert session.stats.prompt_tokens - session.stats.cached_prompt_tokens < 300


def test_a_prompt_that_is_being_read_is_not_read_twice(modern: Transformer) -> None:
    engine = make_engine(modern)
    first, *tails = random_prompts(13, 300, 5, 20, 40)
    prompts = [first + tail for tail in tails]
    requests = [engine.add(prompt, GREEDY, max_new_tokens=5) for prompt in prompts]
    other = engine.add(first, GREEDY, max_new_tokens=5, cache_key="another user")
    run(engine, [*requests, other])
    assert [each.n_cached_tokens for each in requests] == [0, 300, 300] and other.n_cached_tokens == 0
    for prompt, request in zip(prompts, requests, strict=True):
        assert_greedy(modern, prompt, tokens_of(request)[0], tolerance=2e-3)


def test_cached_prefixes_are_not_shared_between_keys(modern: Transformer) -> None:
    engine = make_engine(modern)
    prompt = random_prompts(7, 40)[0]
    first, same, other = (engine.add(prompt, GREEDY, max_new_tokens=4, cache_key=key) for key in ("a", "a", "b"))
    run(engine, [first])
    run(engine, [same, other])
    again = [engine.add(prompt, GREEDY, max_new_tokens=4, cache_key=key) for key in ("a", "b", "c")]
    run(engine, again)
    assert [each.n_cached_tokens for each in again] == [39, 39, 0]


def test_drafts_change_no_token_and_are_accepted_where_text_repeats(small_run: Path) -> None:
    """The model repeats itself, so drafts are often right."""
    completer = Completer.load(small_run)
    model = load_model(small_run / "model")
    prompts = [completer.tokenizer.encode(text) for text in ("def count(items):\n    n = 0\n", "class Open", "x")]
    for sampling in (GREEDY, SamplingParams(temperature=0.5, top_p=0.9, seed=3)):
        plain, drafting = make_engine(model, has_drafts=False), make_engine(model)
        expected = plain.generate(prompts, sampling, max_new_tokens=100)
        found = drafting.generate(prompts, sampling, max_new_tokens=100)
        if sampling is GREEDY:
            for prompt, row in zip(prompts, found, strict=True):
                assert_greedy(model, prompt, row, tolerance=1e-3)
        else:
            assert found == expected
        assert plain.stats.drafted_tokens == 0
        assert drafting.stats.accepted_tokens <= drafting.stats.drafted_tokens
        if sampling is GREEDY:
            assert drafting.stats.accepted_tokens > 0 and drafting.stats.steps < plain.stats.steps


def test_rejected_drafts_leave_nothing_in_the_cache(modern: Transformer) -> None:
    """Two tokens in random order: their n-grams repeat, and drafts are wrong half of the time."""
    prompt = random_prompts(12, 40)[0]
    engine = make_engine(modern)
    two = SamplingParams(temperature=2.0, top_p=1.0, seed=1, logit_bias=((1, 100.0), (2, 100.0)))
    request = engine.add(prompt, two, max_new_tokens=60)
    run(engine, [request])
    stats = engine.stats
    assert stats.drafted_tokens > stats.accepted_tokens > 0
    again = engine.add([*prompt, *tokens_of(request)[0]], GREEDY, max_new_tokens=20)
    run(engine, [again])
    assert again.n_cached_tokens >= len(prompt) + 59
    assert_greedy(modern, again.prompt, tokens_of(again)[0], tolerance=2e-3)


def test_a_full_pool_makes_requests_wait_and_forgets_the_oldest_prefix(modern: Transformer) -> None:
    decoder = make_decoder(modern, "float32")
    none = frozenset[int]()
    engine = Engine(decoder, stop_token_ids=none, forbidden_token_ids=none, pool_tokens=700)
    prompts = random_prompts(9, 200, 200, 200, 200, 200)
    expected = make_engine(modern).generate(prompts, GREEDY, max_new_tokens=20)
    requests = [engine.add(prompt, GREEDY, max_new_tokens=20) for prompt in prompts]
    engine.step()
    assert engine.n_running >= 2 and engine.n_waiting >= 1
    run(engine, requests)
    assert [tokens_of(each)[0] for each in requests] == expected
    many = engine.add(prompts[0], SamplingParams(temperature=1.0), max_new_tokens=100, n=12)  # 5 fit at the same time
    run(engine, [many])
    assert all(len(tokens) == 100 for tokens in tokens_of(many))


def test_a_cached_prefix_makes_room_for_the_samples_of_a_request(modern: Transformer) -> None:
    none = frozenset[int]()
    engine = Engine(
        make_decoder(modern, "float32"),
        stop_token_ids=none,
        forbidden_token_ids=none,
        pool_tokens=128,
        has_drafts=False,
    )
    [prompt] = random_prompts(14, 60)
    run(engine, [engine.add(prompt, GREEDY, max_new_tokens=40)])  # its range is most of the pool
    several = engine.add(prompt, SamplingParams(temperature=1.0), max_new_tokens=60, n=3)
    run(engine, [several])
    assert several.n_cached_tokens == 0 and all(len(tokens) == 60 for tokens in tokens_of(several))
    with pytest.raises(PromptError, match=r"a prompt of 60 tokens and 69 new tokens need 129 tokens of cache.*are 128"):
        engine.add(prompt, SamplingParams(temperature=1.0), max_new_tokens=69, n=3)


def test_cancelled_requests_leave_the_batch_at_once(modern: Transformer) -> None:
    engine = make_engine(modern)
    first, second, third = (engine.add(p, GREEDY, max_new_tokens=100, n=2) for p in random_prompts(10, 20, 30, 400))
    for _ in range(3):
        engine.step()
    for request in (first, third):
        for each in request.sequences:
            engine.cancel(each)
    new = engine.step()
    assert {id(each.sample.request) for each in new} == {id(second)}
    run(engine, [second])
    assert engine.is_idle and [len(tokens) for tokens in tokens_of(second)] == [100, 100]


def test_ranges_never_overlap() -> None:
    """Random use of the prefix cache, compared with a list of places."""
    rng = random.Random(0)
    cache = PrefixCache(1000)
    used: list[Range] = []
    for _ in range(2000):
        if used and rng.random() < 0.5:
            cache.release(used.pop(rng.randrange(len(used))))
        elif (found := cache.allocate(rng.randrange(1, 200), "")) is not None:
            found.tokens = [1] * rng.randrange(found.capacity + 1)
            used.append(found)
        places = sorted((each.start, each.stop) for each in used)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(places))
        assert not places or places[-1][1] <= 1000


@pytest.mark.parametrize("shape", [(1, 4, 32), (9, 70, 50), (16, 5, 1), (37, 130, 200), (3, 33, 20_000)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_products_are_exact_sums_of_rounded_factors(shape: tuple[int, int, int], has_bias: bool) -> None:
    """Rows, outputs, inputs: also such that do not fill a tile, and so many inputs that activations have fewer bits."""
    n_rows, n_outputs, n_inputs = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_outputs, n_inputs, generator=generator)
    x = torch.randn(n_rows, n_inputs, generator=generator)
    x[0] = x[0].abs()
    weight[0] = weight[0].abs()  # with x[0], a sum near the largest that 32 bits hold
    if n_rows > 8:
        x[3] *= 1000
        x[4] = 0
    bias = torch.randn(n_outputs, generator=generator) if has_bias else None
    found = Int8Linear(weight, bias)(x)
    weight_scales = (weight.abs().amax(1) / 127).double()
    limit = min(4095, (2**31 - 1) // (127 * (n_inputs + -n_inputs % 32)))
    x_scales = (x.abs().amax(1).clamp_min(1e-20) / limit).double()
    rounded = [
        (a / scales[:, None]).round() for a, scales in ((weight.double(), weight_scales), (x.double(), x_scales))
    ]
    expected = (rounded[1] @ rounded[0].T) * x_scales[:, None] * weight_scales + (0 if bias is None else bias)
    scale = x.norm(dim=1, keepdim=True) * weight.norm(dim=1) + 1e-9
    # Float32 may round a factor in the middle of two integers to the other one.
    assert ((found - expected).abs() / scale).max() < 3e-4
    assert ((found - (x @ weight.T + (0 if bias is None else bias))).abs() / scale).max() < 0.02
    assert torch.equal(found, torch.cat([Int8Linear(weight, bias)(row[None]) for row in x]))


@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for processors of the family x86-64")
def test_int8_products_of_older_processors_are_the_same(processor: str, tmp_path: Path) -> None:
    """The tiles for AVX2, and those without instructions of their own, compute the same numbers as this processor's."""
    if processor == "x86-64-v3" and not llvmlite.binding.get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(70, 200, generator=generator), torch.randn(9, 200, generator=generator)
    np.savez(tmp_path / "input.npz", weight=weight.numpy(), x=x.numpy())
    feature = "avx2" if processor == "x86-64-v3" else "none"
    cache = str(tmp_path / "cache")
    run_program(
        "multiply_int8.py", tmp_path, feature, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=cache
    )
    assert np.array_equal(np.load(tmp_path / "output.npy"), Int8Linear(weight, None)(x).numpy())


@pytest.mark.parametrize("width", [8, 16, 40, 64, 80, 128])
@pytest.mark.parametrize("n_before", [0, 1, 5])
@pytest.mark.parametrize("n_sharing", [0, 20])
def test_attention_kernel_computes_what_pytorch_computes(
    width: int, n_before: int, n_sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths that fill vectors or not, lengths around eight tokens, and a softmax that goes on after `n_before` keys.

    `n_sharing` tokens with the same keys are more than those that read them together. All bits are the same in threads.
    """
    monkeypatch.setattr(cpu_kernels, "MIN_PARALLEL", 0)
    generator = torch.Generator().manual_seed(width)
    lengths, n_heads, n_keys = [*([6, 7, 13, 14, 24, 42] * n_sharing)[:n_sharing], 6, 7, 13, 14, 24, 42], 6, 2
    starts = np.cumsum([0, *lengths[:-1]])
    starts[:n_sharing] = 0
    q = torch.randn(len(lengths), n_heads, width, generator=generator)
    k, v = (torch.randn(sum(lengths), n_keys, width, generator=generator) for _ in range(2))
    out = torch.zeros(len(lengths), n_heads * width)
    maxima, sums = torch.full((len(lengths), n_heads), -torch.inf), torch.zeros(len(lengths), n_heads)
    expected = torch.empty_like(out)
    for n, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        keys, values = (
            each[start : start + length].repeat_interleave(n_heads // n_keys, 1).transpose(0, 1) for each in (k, v)
        )
        expected[n] = F.scaled_dot_product_attention(q[n][:, None], keys, values).flatten()
        if n_before:
            scores = torch.einsum("hd,hsd->hs", q[n], keys[:, :n_before]) / math.sqrt(width)
            maxima[n] = scores.amax(1)
            weights = (scores - maxima[n][:, None]).exp()
            sums[n], out[n] = weights.sum(1), torch.einsum("hs,hsd->hd", weights, values[:, :n_before]).flatten()
    arguments = (q.numpy(), k.numpy(), v.numpy(), starts + n_before, np.array(lengths) - n_before)
    found = []
    for n_threads in (1, 2, 4, 7):
        states = (maxima.numpy().copy(), sums.numpy().copy(), out.numpy().copy())
        cpu_kernels.attend(*arguments, *states, n_threads)
        found.append(states[2])
    assert_close(torch.from_numpy(found[0]), expected, atol=2e-6, rtol=1e-5)
    assert all(np.array_equal(each, found[0]) for each in found)


@pytest.mark.parametrize(("kind", "name"), [(cpu_kernels.SILU_GATED, "silu"), (cpu_kernels.GELU_TANH, "gelu_tanh")])
def test_activations_of_any_size(kind: int, name: str) -> None:
    """Also where the exponential is too small or too large for 32 bits."""
    x = torch.cat((torch.linspace(-200, 200, 8001), torch.tensor([0.0, -1e-30, 1e-30, -1e20, 1e20])))[None]
    out = np.empty(x.shape, np.float32)
    product = torch.cat((x, torch.ones_like(x)), 1) if name == "silu" else x
    cpu_kernels.activate(product.numpy(), kind, out)
    expected = F.silu(x.double()) if name == "silu" else F.gelu(x.double(), approximate="tanh")
    assert_close(torch.from_numpy(out), expected.float(), atol=1e-6, rtol=1e-6)


def test_kernels_are_compiled_again_if_what_they_use_changes() -> None:
    path = Path(llvm_kernels.__file__)
    checksum = sha256_of(path)[:16]
    message = f"set LLVM_KERNELS to {checksum}"
    assert (checksum, checksum) == (cpu_kernels.LLVM_KERNELS, int8_kernels.LLVM_KERNELS), message


def test_int8_products_are_the_same_in_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = Int8Linear(torch.randn(1030, 1000, generator=generator), None)
    x = torch.randn(20, 1000, generator=generator)
    n_threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(linear(x))
    torch.set_num_threads(n_threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_compiled_kernels_compute_what_pytorch_computes(model: Transformer, precision: Precision) -> None:
    prompts = random_prompts(11, 3, 9, 20)
    sampling = SamplingParams(temperature=0, logprobs=5)
    logprobs = []
    for decoder in (make_decoder(model, precision), Decoder(model, precision)):
        none = frozenset[int]()
        engine = Engine(decoder, stop_token_ids=none, forbidden_token_ids=none, has_drafts=False)
        requests = [engine.add(prompt, sampling, max_new_tokens=6, n=2) for prompt in prompts]
        found = []
        while not all(each.is_finished for each in requests):
            found += [each.logprobs.logprob for each in engine.step() if each.logprobs is not None]
        logprobs.append(found)
    assert type(make_decoder(model, precision)) is not Decoder
    # Rounding differs in the last bit, and can move an activation to the next integer.
    assert logprobs[0] == pytest.approx(logprobs[1], abs=2e-3 if precision == "float32" else 0.02)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("lengths", [(1, 1, 1, 9), (7, 2, 3), (30,)])
def test_convolutions_of_parts_are_those_of_the_whole_text(width: int, lengths: tuple[int, ...]) -> None:
    """A text that is read in parts, each after the ones before or after a shared prefix, by PyTorch and by compiled kernels."""
    config = Lfm2Config(**SMALL | {"n_layers": 1}, n_kv_heads=2, attention_layers=(), conv_width=width)
    convolution = ShortConvolution(config).requires_grad_(False)
    x = torch.randn(sum(lengths), config.d_model, generator=torch.Generator().manual_seed(0))
    expected = convolution(x[None], None)[0]
    product = convolution.in_proj(x)
    gate_before, gate_after, inner = product.chunk(3, -1)
    kernel = convolution.kernel.weight.squeeze(1).contiguous()
    for prefix in (0, lengths[0]):
        for is_compiled in (False, True):
            pool = KVPool(config, 128, like=x)
            found, at = [], 0
            for n in lengths:
                is_after_prefix = prefix and at >= prefix
                chunk = Chunk(n, 60, at - prefix, 10, prefix) if is_after_prefix else Chunk(n, 10, at)
                attend, part = BatchAttention(pool, [chunk]), slice(at, at + n)
                if is_compiled:
                    out = np.empty((n, config.d_model), np.float32)
                    attend.convolve_arrays(0, product[part].contiguous().numpy(), kernel.numpy(), out)
                    found.append(torch.from_numpy(out))
                else:
                    y = attend.convolve(0, (gate_before * inner)[part], kernel)
                    found.append(gate_after[part] * y)
                at += n
            torch.testing.assert_close(convolution.out(torch.cat(found)), expected, rtol=1e-5, atol=1e-5)


def test_tokens_in_bfloat16_have_the_greatest_logits(model: Transformer) -> None:
    """The reference is in bfloat16 too, so only the order of sums differs."""
    reference = copy.deepcopy(model).to(torch.bfloat16)
    prompts = random_prompts(1, 1, 5, 17, 40)
    scale = float(reference(torch.tensor([prompts[-1]])).float().std())
    engine = make_engine(copy.deepcopy(model), "bfloat16")
    for prompt, row in zip(prompts, engine.generate(prompts, GREEDY, max_new_tokens=20), strict=True):
        assert_greedy(reference, prompt, row, tolerance=0.2 * scale)


def test_the_pool_is_limited_by_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes its keys and values, and its inputs of convolutions, in float32."""
    config = FAMILIES[3]
    n_bytes = 4 * (2 * 2 * 2 * 16 + 2 * 64)  # two layers with attention with two key heads, and two convolutions
    pool = KVPool(config, 10, like=torch.empty(0))
    assert KVPool.bytes_per_token(config, torch.float32) == n_bytes
    assert n_bytes * 10 == sum(each.numel() * 4 for each in (pool.keys, pool.values, pool.inputs))
    context = config.context_length
    size = n_bytes * context
    found = ((None, 32), (10**12, 32), (200 * size, 20), (50 * size, 8), (int(3.5 * size / 0.4), 3), (1, 1))
    for memory, contexts in found:
        monkeypatch.setattr(codekiln.generate.engine, "memory_bytes", lambda memory=memory: memory)
        assert make_engine(random_model(config))._cache.n_tokens == contexts * context
