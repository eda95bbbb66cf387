"""What each model can be asked for, what a batch asks for, and the shape of the call that follows from both.

Here: the rules in `models.yaml` (its header explains the fields), the check of a batch's options against them, and the
defaults that a call is filled in with. Not here: prices (`judges.pricing`), which judges can be named
(`judges.catalogue`), and how a provider spells a parameter (the judges).
"""

import importlib.resources
from collections.abc import Mapping
from datetime import date, timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Value
from cj_pipeline.judges.pricing import Day, base_model, field_problems
from cj_pipeline.strict_yaml import load_yaml

Effort = Literal["none", "low", "medium", "high"]
Verbosity = Literal["low", "medium", "high"]
Reasoning = Literal["none", "effort", "adaptive", "budget"]

ANSWER_TOKENS: Final = 1024
"""Room for the answer itself: a JSON object of some 100 tokens, ten times over."""

_REASONING_TOKENS: Final[Mapping[Effort, int]] = {"none": 0, "low": 2048, "medium": 8192, "high": 16384}
_BUDGET_TOKENS: Final[Mapping[Effort, int]] = {"none": 0, "low": 1024, "medium": 4096, "high": 8192}
_LEAST_ANSWER_TOKENS: Final = 256  # what must be left for the answer beside a thinking budget
_SOON: Final = timedelta(days=30)


class ModelRules(Value):
    """What a model can be asked for; the fields and their units are explained at the top of `models.yaml`."""

    provider: str = Field(min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    context_window: int | None = Field(ge=1)
    max_output: int | None = Field(ge=ANSWER_TOKENS)
    temperature: bool
    reasoning_effort: tuple[Effort, ...]
    reasoning: Reasoning
    default_effort: Effort
    output_verbosity: tuple[Verbosity, ...]
    structured_output: bool
    cache_min_tokens: int | None = Field(ge=1)
    batch_api: bool
    retires_on: Day | None
    source: str = Field(min_length=1)
    unlisted: bool = False

    @model_validator(mode="after")
    def _effort_has_a_form(self) -> Self:
        # an effort that is accepted and then not sent would be a setting without effect
        if bool(self.reasoning_effort) != (self.reasoning != "none"):
            raise ValueError("reasoning must say how reasoning_effort is asked for, or both be empty (none, [])")
        return self

    def fits(self, provider: str, model: str) -> bool:
        """Whether this rule is about the model, or about the model that it is a dated snapshot of."""
        names = [name for name in (model, base_model(model)) if name is not None]
        return provider == self.provider and any(fnmatchcase(n, pattern) for n in names for pattern in self.models)


class JudgeOptions(Value):
    """What a batch may ask of a real judge; None: nothing is asked, and the model's own default holds.

    Attributes:
        max_tokens: most output tokens of a call, reasoning included.
        temperature: of sampling.
        reasoning_effort: how hard the model is to think before it answers.
        output_verbosity: how long its answer is to be.
        thinking_budget_tokens: most tokens of thinking, for a Claude that takes a budget.
    """

    max_tokens: int | None = Field(None, ge=64)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    reasoning_effort: Effort | None = None
    output_verbosity: Verbosity | None = None
    thinking_budget_tokens: int | None = Field(None, ge=1024)


class CallShape(Value):
    """What a judge sends beside the prompt.

    Attributes:
        max_tokens: most output tokens, reasoning included.
        temperature: None: not sent.
        reasoning: how reasoning is asked for; "none": nothing about it is sent.
        effort: to send with "effort" and "adaptive"; None: not sent.
        thinking_budget: tokens, to send with "budget"; below `max_tokens`.
        verbosity: None: not sent.
    """

    max_tokens: int
    temperature: float | None
    reasoning: Reasoning
    effort: Effort | None
    thinking_budget: int | None
    verbosity: Verbosity | None


def model_rules(provider: str, model: str) -> ModelRules:
    """The rules for a model; for one that is not listed, its provider's rule for such models.

    Raises:
        InputError: no provider has this name.
    """
    table = _own_rules()
    for rules in table:
        if rules.fits(provider, model):
            return rules
    providers = sorted({rules.provider for rules in table})
    raise InputError(f"provider {provider[:40]!r} is not known: use one of {', '.join(providers)}")


def check_options(provider: str, model: str, options: JudgeOptions, *, today: date) -> list[str]:
    """Everything that stands against asking this of the model, a sentence each, with its remedy; empty if nothing does.

    Args:
        provider: the judge's provider.
        model: as the provider names it.
        options: what the batch asks for.
        today: a model whose announced end has come can no longer be asked.

    Raises:
        InputError: no provider has this name.
    """
    rules = model_rules(provider, model)
    name = _name(provider, model)
    problems = []
    if rules.retires_on is not None and rules.retires_on <= today:
        problems.append(f"{name} was retired on {rules.retires_on}: choose another model")
    if options.temperature is not None and not rules.temperature:
        remedy = "leave it out"
        if "low" in rules.reasoning_effort:
            remedy += ", or steer the model by reasoning_effort"
        problems.append(f"llm_temperature: {name} takes no temperature: {_remedy(rules, remedy)}")
    problems += _effort_problems(rules, name, options)
    if options.output_verbosity is not None and options.output_verbosity not in rules.output_verbosity:
        problems.append(f"output_verbosity: {name} has no such parameter: {_remedy(rules, 'leave it out')}")
    problems += _token_problems(rules, name, options)
    return problems


def warnings(provider: str, model: str, *, today: date) -> list[str]:
    """What to know about a model before asking it: that it ends within 30 days, that it is not listed.

    Raises:
        InputError: no provider has this name.
    """
    rules = model_rules(provider, model)
    name = _name(provider, model)
    found = []
    if rules.retires_on is not None and today < rules.retires_on <= today + _SOON:
        found.append(f"{name} retires on {rules.retires_on}: judge what is compared with it before that day")
    if rules.unlisted:
        found.append(
            f"{name} is not listed in cj_pipeline/judges/models.yaml: its limits are not known, and it is asked with "
            "default parameters only"
        )
    return found


def call_shape(provider: str, model: str, options: JudgeOptions) -> CallShape:
    """What to send for options that `check_options` accepts: what they ask for, and a limit of output tokens.

    Unless stated, the limit is 1,024 tokens for the answer and room for the reasoning that is asked for or, if nothing
    is asked, that the model does by itself; never more than the model can write.

    Raises:
        InputError: no provider has this name.
    """
    rules = model_rules(provider, model)
    effort = options.reasoning_effort
    budget = _thinking_budget(rules, options)
    room = budget if budget is not None else _REASONING_TOKENS[effort or rules.default_effort]
    max_tokens = _within(options.max_tokens or ANSWER_TOKENS + room, rules.max_output)
    reasoning: Reasoning = "none"
    if budget is not None:
        reasoning = "budget"
    elif effort is not None and rules.reasoning == "effort":
        reasoning = "effort"  # none is a value like any other, and must be sent to models that reason by themselves
    elif effort not in (None, "none") and rules.reasoning == "adaptive":
        reasoning = "adaptive"
    return CallShape(
        max_tokens=max_tokens,
        temperature=options.temperature,
        reasoning=reasoning,
        effort=effort if reasoning in ("effort", "adaptive") else None,
        thinking_budget=None if budget is None else min(budget, max_tokens - 1),
        verbosity=options.output_verbosity,
    )


def _effort_problems(rules: ModelRules, name: str, options: JudgeOptions) -> list[str]:
    effort = options.reasoning_effort
    if effort is None or effort in rules.reasoning_effort:
        return []
    if not rules.reasoning_effort:
        return [f"reasoning_effort: {name} has no such parameter: {_remedy(rules, 'leave it out')}"]
    accepted = ", ".join(rules.reasoning_effort)
    if effort == "none":
        return [
            f"reasoning_effort: {name} does not take none, its reasoning cannot be switched off here: choose one of "
            f"{accepted}, or another model"
        ]
    return [f"reasoning_effort: {name} does not take {effort}: choose one of {accepted}"]


def _token_problems(rules: ModelRules, name: str, options: JudgeOptions) -> list[str]:
    problems = []
    stated, limit, most = options.thinking_budget_tokens, options.max_tokens, rules.max_output
    if stated is not None and rules.reasoning != "budget":
        remedy = "use reasoning_effort" if rules.reasoning_effort else "leave it out"
        problems.append(f"thinking_budget_tokens: {name} takes no thinking budget: {_remedy(rules, remedy)}")
    if stated is not None and options.reasoning_effort == "none":
        problems.append("thinking_budget_tokens: reasoning_effort none switches thinking off: leave one of them out")
    if limit is not None and most is not None and limit > most:
        problems.append(f"llm_max_tokens: {name} writes at most {most} tokens, not {limit}: ask for {most} or fewer")
    budget = _thinking_budget(rules, options)
    if budget is None:
        return problems
    needed = budget + _LEAST_ANSWER_TOKENS
    if most is not None and needed > most:
        problems.append(
            f"thinking_budget_tokens: {budget} tokens of thinking leave too little of the {most} that {name} can "
            f"write: ask for {most - _LEAST_ANSWER_TOKENS} or fewer"
        )
    elif limit is not None and limit < needed:
        which = "thinking_budget_tokens" if stated is not None else f"reasoning_effort {options.reasoning_effort}"
        problems.append(
            f"llm_max_tokens: {limit} is too few for {budget} tokens of thinking ({which}) and an answer: ask for at "
            f"least {needed}, or for less thinking"
        )
    return problems


def _thinking_budget(rules: ModelRules, options: JudgeOptions) -> int | None:
    """Tokens of thinking to ask for, where a budget is how it is asked for; None: none."""
    if rules.reasoning != "budget" or options.reasoning_effort == "none":
        return None
    if options.thinking_budget_tokens is not None:
        return options.thinking_budget_tokens
    return None if options.reasoning_effort is None else _BUDGET_TOKENS[options.reasoning_effort]


def _within(tokens: int, most: int | None) -> int:
    return tokens if most is None else min(tokens, most)


def _remedy(rules: ModelRules, otherwise: str) -> str:
    if rules.unlisted:
        return f"{otherwise}, or, if the model can do it, add the model to cj_pipeline/judges/models.yaml"
    return otherwise


def _name(provider: str, model: str) -> str:
    return f"{provider}/{model[:80]}"


# --- the file


def load_rules(path: Path | None = None) -> tuple[ModelRules, ...]:
    """Read the rules, the most specific first.

    Args:
        path: a YAML file in the form of `models.yaml`; the package's own if None.

    Raises:
        InputError: every rule and field that cannot be used, or the file as a whole.
    """
    source = path or importlib.resources.files("cj_pipeline.judges").joinpath("models.yaml")
    where = f"model rules {source}"
    try:
        content = load_yaml(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: cannot be read as YAML ({type(error).__name__}): mend the file") from error
    if not isinstance(content, Mapping) or set(content) != {"rules"} or not isinstance(content["rules"], list):
        raise InputError(f"{where}: must hold one field, rules, with a list of rules")
    table = []
    problems: list[str] = []
    for number, entry in enumerate(content["rules"], start=1):
        try:
            table.append(ModelRules.model_validate(entry))
        except ValidationError as error:
            problems += [f"{_rule_name(number, entry)}, {problem}" for problem in field_problems(error)]
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}. Mend these rules or take them out")
    return tuple(table)


@cache
def _own_rules() -> tuple[ModelRules, ...]:
    return load_rules()


def _rule_name(number: int, entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return f"rule {number}"
    return f"rule {number} ({str(entry.get('provider'))[:40]} {str(entry.get('models'))[:80]})"
