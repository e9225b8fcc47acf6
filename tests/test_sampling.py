"""Sampling of tokens, compared with Transformers and with the definition of each setting."""

import math
from collections import Counter

import pytest
import torch
import transformers

from codekiln.errors import ConfigError
from codekiln.generate.sampling import GREEDY, Row, SamplingParams, sample, token_logprobs


def draw(logits: list[float] | torch.Tensor, sampling: SamplingParams, n: int, **row: list[int]) -> Counter[int]:
    """How often each token is sampled with `n` seeds."""
    rows = [
        Row(SamplingParams(**{**vars(sampling), "seed": seed}), 0, row.get("prompt", []), row.get("generated", []))
        for seed in range(n)
    ]
    return Counter(sample(torch.as_tensor(logits, dtype=torch.float32).repeat(n, 1), rows))


def test_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    counts = draw(logits, SamplingParams(temperature=1.0, top_p=0.8), 2000)
    assert set(counts) == {0, 1}
    assert counts[0] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"top_p": 1.0}, []),
        ({"top_p": 0.9}, [transformers.TopPLogitsWarper(0.9)]),
        ({"top_p": 0.995}, [transformers.TopPLogitsWarper(0.995)]),
        (
            {"top_p": 0.995, "min_p": 0.001},
            [transformers.MinPLogitsWarper(0.001), transformers.TopPLogitsWarper(0.995)],
        ),
        ({"top_p": 1.0, "top_k": 7}, [transformers.TopKLogitsWarper(7)]),
        ({"top_p": 1.0, "top_k": 300}, [transformers.TopKLogitsWarper(300)]),
        ({"top_p": 1.0, "min_p": 0.1}, [transformers.MinPLogitsWarper(0.1)]),
        (
            {"top_p": 0.7, "top_k": 20, "min_p": 0.02},
            [
                transformers.MinPLogitsWarper(0.02),
                transformers.TopKLogitsWarper(20),
                transformers.TopPLogitsWarper(0.7),
            ],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_frequencies_are_the_probabilities_of_transformers(
    settings: dict[str, float], warpers: list[transformers.LogitsProcessor]
) -> None:
    """A vocabulary of 400 is larger than what is sorted first, so with top_p 1 the slow way is taken too."""
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(1)) * 2
    expected = logits / 0.8
    for warper in warpers:
        expected = warper(torch.zeros(1, 1, dtype=torch.long), expected)
    probabilities = expected.softmax(-1)[0]
    n = 20_000
    counts = draw(logits[0], SamplingParams(temperature=0.8, **settings), n)  # type: ignore[arg-type]
    found = torch.tensor([counts[token] for token in range(400)]) / n
    assert not found[probabilities == 0].any()
    # Each frequency has a standard deviation of sqrt(p (1 - p) / n); five of them fail once in 4,000 tables.
    deviation = ((found - probabilities).abs() / (probabilities * (1 - probabilities) / n + 1e-9).sqrt()).max()
    assert deviation < 5


def test_tokens_do_not_depend_on_the_batch() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    settings = [
        SamplingParams(temperature=1.0, seed=1),
        GREEDY,
        SamplingParams(temperature=1.5, top_p=1.0, seed=2),
        SamplingParams(temperature=0.7, top_k=5, seed=3),
        SamplingParams(temperature=1.0, min_p=0.2, repetition_penalty=1.5, seed=4),
        SamplingParams(temperature=1.0, top_p=0.99, logit_bias=((3, 2.0),), seed=5),
    ]
    rows = [Row(each, number, [1, 2, 3], [4] * number) for number, each in enumerate(settings)]
    together = sample(logits.clone(), rows)
    alone = [sample(logits[number : number + 1].clone(), [row])[0] for number, row in enumerate(rows)]
    backwards = sample(logits.flip(0), rows[::-1])[::-1]
    assert together == alone == backwards


def test_samples_and_positions_have_different_random_numbers() -> None:
    logits = torch.zeros(200, 1000)
    params = SamplingParams(temperature=1.0, top_p=1.0)
    by_index = sample(logits, [Row(params, index, [], []) for index in range(200)])
    by_position = sample(logits, [Row(params, 0, [], [0] * position) for position in range(200)])
    assert len(set(by_index)) > 150 and len(set(by_position)) > 150 and by_index != by_position


def test_smallest_temperature_and_top_p_are_greedy() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 40
    for sampling in (
        SamplingParams(temperature=1e-40),
        SamplingParams(temperature=1e-4, top_p=1e-3),
        SamplingParams(temperature=1e-5, top_p=1e-50),
        SamplingParams(temperature=1.0, top_p=1e-50),
    ):
        rows = [Row(sampling, 0, [], [])] * 20
        assert sample(logits.clone(), rows) == logits.argmax(dim=-1).tolist()


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    seen = [int(logits.argmax()), 7, 7, 9]
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([seen]), logits.clone()).argmax(-1)
    found = sample(logits.clone(), [Row(SamplingParams(temperature=0, repetition_penalty=1.7), 0, seen[:2], seen[2:])])
    assert found == expected.tolist()


def test_penalties_and_biases_are_those_of_the_openai_api() -> None:
    """The documentation: logit -= frequency_penalty * count + presence_penalty, for tokens of the completion."""
    greedy = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.3)
    generated = [0, 0, 1]  # token 0 loses 1.1, token 1 loses 0.8
    for logits, expected in (([1.2, 0, 0.0], 0), ([1.0, 0, 0.0], 2), ([0, 0.9, 0.0], 1), ([0, 0.7, 0.0], 2)):
        assert sample(torch.tensor([logits]), [Row(greedy, 0, [2, 2, 2], generated)]) == [expected]
    biased = SamplingParams(temperature=0, logit_bias=((2, 100.0), (0, -100.0)))
    assert sample(torch.tensor([[5.0, 1.0, -60.0]]), [Row(biased, 0, [], [])]) == [2]


def test_forbidden_tokens_are_never_sampled() -> None:
    logits = torch.full((500,), -torch.inf)
    logits[[3, 400]] = torch.tensor([1.0, -9.0])
    counts = draw(logits, SamplingParams(temperature=2.0, top_p=1.0), 3000)
    assert set(counts) == {3, 400}


def test_logprobs_are_those_of_the_softmax() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(5))
    found = token_logprobs(logits, [4, 5], [0, 3])
    expected = [math.log(math.exp(row[t]) / sum(map(math.exp, row))) for row, t in zip(logits.tolist(), (4, 5))]  # noqa: B905
    assert [each.logprob for each in found] == pytest.approx(expected, abs=1e-5)
    assert found[0].top == () and [token for token, _ in found[1].top] == logits[1].topk(3).indices.tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 3),
        ("temperature", math.nan),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("logprobs", 21),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, 1.0),) * 301),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
