"""Counts and durations of a server, in Prometheus' text format (version 0.0.4).

Does: count requests, tokens, repairs, tool calls and escalations from the events of runs. Does not: keep texts, keys or names of
callers.
"""

from __future__ import annotations

import threading
from collections import defaultdict

from agents.events import Escalated, Event, ModelCalled, Repaired, ToolReturned

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
MOST_SERIES = 2000
"""Different names and labels kept apart; what comes after is counted under the label "other"."""
_HELP = {
    "penknife_requests_total": ("counter", "Requests by route and HTTP status"),
    "penknife_requests_in_flight": ("gauge", "Requests being worked on"),
    "penknife_tokens_total": ("counter", "Tokens by persona and kind (prompt, reused, completion)"),
    "penknife_model_calls_total": ("counter", "Model calls by persona and why they ended"),
    "penknife_tool_calls_total": ("counter", "Tool calls by persona, tool and outcome"),
    "penknife_repairs_total": ("counter", "Malformed calls mended or sent back, by persona and rung"),
    "penknife_escalations_total": ("counter", "Escalations to a larger model, by persona and reason"),
    "penknife_request_seconds": ("histogram", "Seconds from a request to the end of its answer"),
}


class Metrics:
    """Safe to feed from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter or gauge."""
        with self._lock:
            key = name, tuple(sorted(labels.items()))
            if key not in self._values and len(self._values) >= MOST_SERIES:  # names that callers and models made up
                key = name, tuple((label, "other") for label, _ in key[1])
            self._values[key] += amount

    def took(self, seconds: float) -> None:
        """One answer's duration."""
        with self._lock:
            self._seconds += seconds
            self._buckets[next((i for i, limit in enumerate(BUCKETS_S) if seconds <= limit), len(BUCKETS_S))] += 1

    def see(self, event: Event) -> None:
        """Count what an event of a run says."""
        if isinstance(event, ModelCalled):
            usage = event.usage
            self.add("penknife_model_calls_total", persona=event.persona, ended=event.stop_reason)
            for kind, tokens in (
                ("prompt", usage.prompt_tokens),
                ("reused", usage.reused_tokens),
                ("completion", usage.completion_tokens),
            ):
                self.add("penknife_tokens_total", tokens, persona=event.persona, kind=kind)
        elif isinstance(event, ToolReturned):
            self.add("penknife_tool_calls_total", persona=event.persona, tool=event.name, outcome="ok" if event.ok else "failed")
        elif isinstance(event, Repaired):
            self.add("penknife_repairs_total", persona=event.persona, rung=event.rung)
        elif isinstance(event, Escalated):
            self.add("penknife_escalations_total", persona=event.persona, reason=event.reason)

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        with self._lock:
            values, buckets, seconds = dict(self._values), list(self._buckets), self._seconds
        lines: list[str] = []
        for name, (kind, help) in _HELP.items():
            lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                so_far = 0
                for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets):
                    so_far += count
                    lines.append(f'{name}_bucket{{le="{limit}"}} {so_far}')
                lines += [f"{name}_sum {seconds:.6f}", f"{name}_count {so_far}"]
                continue
            for (found, labels), value in sorted(values.items()):
                if found == name:
                    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                    lines.append(f"{name}{'{' + inner + '}' if inner else ''} {value:g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
