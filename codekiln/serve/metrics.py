"""What the server counts, as Prometheus reads it. Nothing of a prompt or a completion is among it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from codekiln.generate.engine import EngineStats

# Seconds. A suggestion is useful up to about 0.3 s; a batch job takes minutes.
LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "codekiln_requests", "Requests by route and status", ("route", "status"), registry=self._registry
        )
        self.cancelled = Counter(
            "codekiln_cancelled_requests", "Requests whose client left or sent a newer one", registry=self._registry
        )
        self.shared = Counter(
            "codekiln_shared_requests", "Requests answered by another one that was the same", registry=self._registry
        )
        self.withheld = Counter(
            "codekiln_withheld_completions", "Completions that copied too much", registry=self._registry
        )
        self.open = Gauge("codekiln_open_requests", "Requests that wait or are being answered", registry=self._registry)
        self.first_token = Histogram(
            "codekiln_time_to_first_token_seconds", "From the end of the body to the first token",
            registry=self._registry, buckets=LATENCY_BUCKETS,
        )  # fmt: skip
        self.duration = Histogram(
            "codekiln_request_seconds", "From the end of the body to the end of the answer",
            registry=self._registry, buckets=LATENCY_BUCKETS,
        )  # fmt: skip
        self._engine = {
            name: Gauge(f"codekiln_{name}", text, registry=self._registry)
            for name, text in {
                "prompt_tokens": "Tokens of prompts",
                "cached_prompt_tokens": "Tokens of prompts that were in the prefix cache",
                "generated_tokens": "Tokens that were generated",
                "drafted_tokens": "Tokens that were guessed by prompt lookup",
                "accepted_tokens": "Guessed tokens that were right",
                "steps": "Steps of the engine",
            }.items()
        }

    def page(self, stats: EngineStats) -> bytes:
        """All values in Prometheus' text format."""
        for name, gauge in self._engine.items():
            gauge.set(getattr(stats, name))
        return generate_latest(self._registry)
