"""`cj judge`: who can judge, and one judgment to see that a key, a model and a prompt work."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cj_pipeline.cli.arguments import judge_name, name_and_value, prompt_file
from cj_pipeline.cli.context import open_ledger, print_json, say
from cj_pipeline.core.errors import InputError

judge_app = typer.Typer(no_args_is_help=True, help="Who can judge, and one judgment to try a key and a model.")


@judge_app.command("list")
def list_judges(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """The simulated judges, and the models whose price is known; any other model may be named too."""
    from cj_pipeline.cli.render import judges_text
    from cj_pipeline.judges.catalogue import judge_names
    from cj_pipeline.judges.models import model_rules
    from cj_pipeline.judges.pricing import load_prices
    from cj_pipeline.judges.simulated import load_profiles
    from cj_pipeline.settings import load_settings

    settings = load_settings()
    today = datetime.now(UTC).date()
    profiles = load_profiles()
    simulated = [{"judge": name, "description": profiles[name].description} for name in judge_names()]
    priced = []
    for price in load_prices(settings.prices_path).current(today):
        rules = model_rules(price.provider, price.model)
        priced.append(
            {
                "judge": f"{price.provider}/{price.model}",
                "input": price.usd_per_million.input,
                "cached": price.usd_per_million.cache_read,
                "output": price.usd_per_million.output,
                "reasoning_effort": ", ".join(rules.reasoning_effort),
                "retires": None if rules.retires_on is None else str(rules.retires_on),
            }
        )
    if as_json:
        print_json({"simulated": simulated, "priced": priced})
    else:
        judges_text(simulated, priced)


@judge_app.command("try")
def try_judge(
    essay_a: Annotated[Path, typer.Argument(help="The essay to be read first (txt, md, docx, pdf).")],
    essay_b: Annotated[Path, typer.Argument(help="The essay to be read second.")],
    provider: Annotated[str | None, typer.Option(help="anthropic, openai or compatible.")] = None,
    model: Annotated[str | None, typer.Option(help="The provider's model.")] = None,
    judge: Annotated[str | None, typer.Option(help="The same as PROVIDER/MODEL.")] = None,
    assignment: Annotated[
        str | None, typer.Option(help="Registered assignment whose prompt and rubric the judge reads.")
    ] = None,
    system_prompt: Annotated[Path | None, typer.Option(help="File: who the judge is to be.")] = None,
    rubric: Annotated[Path | None, typer.Option(help="File: what makes an essay better.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, e.g. reasoning_effort=low. Repeatable.")
    ] = None,
) -> None:
    """Make one judgment, and show it with its latency, tokens and cost. Keys come from the environment only.

    ANTHROPIC_API_KEY, OPENAI_API_KEY, or for an OpenAI-compatible server CJ_OPENAI_COMPATIBLE_BASE_URL (and, if it
    wants one, CJ_OPENAI_COMPATIBLE_API_KEY). Nothing is recorded; the call is paid.
    """
    from cj_pipeline.cli.render import trial_text
    from cj_pipeline.judges.catalogue import judge_problems, judge_warnings, open_judge
    from cj_pipeline.judges.prompts import build_prompt
    from cj_pipeline.judges.protocol import Judge, JudgeAnswer, JudgeRequest
    from cj_pipeline.settings import effective_tunables, parse_overrides
    from cj_pipeline.workflow.judging import judge_instructions, judge_setup

    name = judge_name(judge, provider, model)
    if name is None:
        raise InputError("name a judge: --provider anthropic --model claude-haiku-4-5 (`cj judge list` shows more)")
    text_a, text_b = prompt_file(essay_a, "ESSAY_A"), prompt_file(essay_b, "ESSAY_B")
    texts = {
        "system_prompt": None if system_prompt is None else prompt_file(system_prompt, "--system-prompt"),
        "judge_rubric": None if rubric is None else prompt_file(rubric, "--rubric"),
    }
    stated = {key: value for key, value in texts.items() if value is not None}
    overrides = parse_overrides({**dict(name_and_value(text) for text in override or []), **stated}, where="options")
    with open_ledger() as (settings, ledger):
        tunables = effective_tunables(settings, overrides)
        setup = judge_setup(settings, tunables)
        problems = judge_problems(name, setup)
        if problems:
            raise InputError("; ".join(problems))
        registered = None if assignment is None else ledger.assignment(assignment)
    prompt = build_prompt(judge_instructions(registered, tunables), text_a, text_b)
    opened = open_judge(name, setup)
    if opened.identity.simulated:
        raise InputError("a simulated judge reads nothing: name a real one, e.g. --provider anthropic --model ...")
    for warning in judge_warnings(name, setup):
        say(f"note: {warning}")

    async def ask(asked: Judge) -> JudgeAnswer:
        try:
            await asked.pace(prompt)
            return await asked.judge(JudgeRequest("trial", prompt, repeat=0, attempt=1))
        finally:
            await asked.aclose()

    started = time.monotonic()
    answer = asyncio.run(ask(opened))
    trial_text(name, answer, prompt, opened.upper_bound_usd(prompt), time.monotonic() - started)
