"""How fast comparisons are judged when the provider answers in 200 ms: the pipeline against a bare loop over the SDK.

Both talk, through the provider's official SDK, to the same server on loopback (a process of its own) with the same
prompts. The bare loop keeps N calls in flight and does nothing else; the pipeline plans, records every call before and
after it in the ledger (SQLite, synchronous=FULL), parses and prices. Printed: judgments per second between the first
call and the last recorded answer, as a ratio to the latency limit (N / latency) and to the bare loop, and what planning
the wave before that and fitting the scale after it take in addition.

Run: python benchmarks/judging_throughput.py [--latency 0.2] [--answers 80] [--concurrency 16 64] [--repeats 3]
"""

import argparse
import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

MODELS = {"anthropic": "claude-haiku-4-5", "openai": "gpt-5.1"}
KEY = "test-key"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds an answer takes")
    parser.add_argument("--answers", type=int, default=80, help="answers per call in flight")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--provider", choices=sorted(MODELS), default="anthropic")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder, Server(options.latency) as server:
        os.environ.update(server.environment)
        print(
            f"{options.provider}, latency {options.latency} s, {options.answers} answers per call in flight, one wave"
        )
        for concurrency in options.concurrency:
            limit, comparisons = concurrency / options.latency, concurrency * options.answers
            bare, ours, around = [], [], []
            for repeat in range(options.repeats):
                # in turns, so that what else the machine does meets both
                bare.append(bare_loop(options.provider, concurrency, comparisons))
                path = Path(folder) / f"ledger-{concurrency}-{repeat}.sqlite"
                rate, extra = pipeline(path, options.provider, concurrency, comparisons)
                ours.append(rate)
                around.append(extra)
            b, o = median(bare), median(ours)
            print(
                f"concurrency {concurrency:3d}: bare loop {b:6.1f}/s ({b / limit:.2f} of the limit), "
                f"pipeline {o:6.1f}/s ({o / limit:.2f} of the limit, {o / b:.2f} of the bare loop; "
                f"median of {options.repeats}; planning and fitting {median(around):.1f} s)"
            )


def quiet() -> None:
    """Nothing on the terminal but figures."""
    from cj_pipeline.logs import configure_logging

    configure_logging("console", level=logging.ERROR)


class Server:
    """The provider server as a process of its own."""

    def __init__(self, latency: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._latency = latency
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What leads the SDKs here."""
        base = f"http://127.0.0.1:{self.port}"
        return {
            "ANTHROPIC_BASE_URL": f"{base}/anthropic",
            "ANTHROPIC_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{base}/openai/v1",
            "OPENAI_API_KEY": KEY,
        }

    def __enter__(self) -> "Server":
        command = [sys.executable, "-m", "cj_pipeline_tests.providers.server", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--latency", str(self._latency), "--api-key", KEY], cwd=PROJECT, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        raise TimeoutError("the provider server did not start")

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


def essays(count: int) -> list[str]:
    """Texts of about 250 words."""
    return [f"Essay number {i}. " + f"A sentence of some {i} plain words here. " * 30 for i in range(count)]


def essays_for(comparisons: int) -> int:
    """Enough essays that no pair is judged twice."""
    count = 12
    while count * (count - 1) // 2 < comparisons:
        count += 1
    return count


def bare_loop(provider: str, concurrency: int, comparisons: int) -> float:
    """Judgments per second of nothing but the SDK, N calls in flight."""
    from itertools import combinations, islice

    from cj_pipeline.judges.prompts import RESPONSE_SCHEMA, JudgeInstructions, build_prompt

    texts = essays(essays_for(comparisons))
    prompts = [
        build_prompt(JudgeInstructions(rubric="Content before language."), a, b)
        for a, b in islice(combinations(texts, 2), comparisons)
    ]

    async def run() -> float:
        queue = iter(prompts)
        if provider == "anthropic":
            import anthropic

            client = anthropic.AsyncAnthropic(max_retries=0)
            schema = anthropic.transform_schema(RESPONSE_SCHEMA)

            async def call(prompt):
                await client.messages.create(
                    model=MODELS[provider],
                    max_tokens=1024,
                    system=prompt.system,
                    messages=[{"role": "user", "content": f"{prompt.stable}\n\n{prompt.essays}"}],
                    output_config={"format": {"type": "json_schema", "schema": schema}},
                )
        else:
            import openai

            client = openai.AsyncOpenAI(max_retries=0)
            schema = {**RESPONSE_SCHEMA, "additionalProperties": False}

            async def call(prompt):
                await client.responses.create(
                    model=MODELS[provider],
                    instructions=prompt.system,
                    input=f"{prompt.stable}\n\n{prompt.essays}",
                    max_output_tokens=1024,
                    text={"format": {"type": "json_schema", "name": "judgment", "strict": True, "schema": schema}},
                )

        async def slot() -> None:
            for prompt in queue:
                await call(prompt)

        started = time.perf_counter()
        await asyncio.gather(*(slot() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
        await client.close()
        return comparisons / seconds

    return asyncio.run(run())


def pipeline(path: Path, provider: str, concurrency: int, comparisons: int) -> tuple[float, float]:
    """Judgments per second while the wave is judged, and the seconds that the wave loop takes besides."""
    from cj_pipeline.core.models import BatchKind
    from cj_pipeline.ledger import Ledger
    from cj_pipeline.settings import BatchOverrides, CJSettings
    from cj_pipeline.workflow.intake import BatchRequest, EssaySubmission
    from cj_pipeline.workflow.loop import advance_batch
    from cj_pipeline.workflow.registration import submit_batch

    settings = CJSettings(_env_file=None, data_dir=PROJECT / "assets_data", max_pairwise_comparisons=100_000)
    ledger = Ledger.open(f"sqlite:///{path}")
    try:
        request = BatchRequest(
            batch_id="throughput",
            assignment_id=None,
            kind=BatchKind.ANCHOR_ALIGN,
            judge=f"{provider}/{MODELS[provider]}",
            overrides=BatchOverrides(
                max_comparisons=comparisons,
                comparisons_per_stability_check_iteration=comparisons,
                judge_concurrency=concurrency,
            ),
            students=tuple(
                EssaySubmission(f"essay-{i:03d}", text, None, f"essay-{i:03d}.txt")
                for i, text in enumerate(essays(essays_for(comparisons)))
            ),
        )
        submit_batch(ledger, settings, request)
        started = time.perf_counter()
        done = advance_batch(ledger, "throughput", settings)
        seconds = time.perf_counter() - started
        if done.judged != comparisons:
            raise RuntimeError(f"{done.judged} of {comparisons} were judged: {done.stop_reason}")
        attempts = ledger.attempts("throughput")
        judging = (max(a.finished_at for a in attempts) - min(a.sent_at for a in attempts)).total_seconds()
        return comparisons / judging, seconds - judging
    finally:
        ledger.close()


if __name__ == "__main__":
    main()
