import itertools
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cj_pipeline.core.errors import InputError
from cj_pipeline.judges import models
from cj_pipeline.judges.models import JudgeOptions, ModelRules, call_shape, check_options, load_rules, model_rules
from cj_pipeline.judges.pricing import load_prices

TODAY = date(2026, 11, 21)
RULES = load_rules()
SHIPPED_PRICES = load_prices(Path(__file__).parents[2] / "assets_data" / "inputs" / "prices.yaml")
LISTED = [(rules.provider, model) for rules in RULES for model in rules.models if model != "*"]
EVERY = [*LISTED, ("anthropic", "claude-next"), ("openai", "gpt-next"), ("compatible", "llama3.1:8b")]
CLAUDES = [model for provider, model in EVERY if provider == "anthropic"]

ADAPTIVE = "claude-opus-4-8"
BUDGET = "claude-haiku-4-5"
ALWAYS_THINKING = "claude-opus-5-5"

RULE: dict[str, Any] = {
    "provider": "openai",
    "models": ["gpt-x"],
    "context_window": 1000,
    "max_output": 2000,
    "temperature": True,
    "reasoning_effort": [],
    "reasoning": "none",
    "default_effort": "none",
    "output_verbosity": [],
    "structured_output": True,
    "cache_min_tokens": None,
    "batch_api": True,
    "retires_on": None,
    "source": "somewhere",
}


def problems(provider: str, model: str, today: date = TODAY, **options: Any) -> list[str]:
    return check_options(provider, model, JudgeOptions(**options), today=today)


def only_problem(provider: str, model: str, **options: Any) -> str:
    found = problems(provider, model, **options)
    assert len(found) == 1, found
    return found[0]


def shape(provider: str, model: str, **options: Any) -> models.CallShape:
    return call_shape(provider, model, JudgeOptions(**options))


# --- which rules


def test_every_model_with_a_price_has_rules_of_its_own():
    for price in SHIPPED_PRICES.prices:
        assert not model_rules(price.provider, price.model).unlisted, price.model


@pytest.mark.parametrize(
    "provider, snapshot, model",
    [
        ("anthropic", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("openai", "gpt-5.1-2025-11-13", "gpt-5.1"),
        ("openai", "gpt-5.4-mini-2026-03-17", "gpt-5.4-mini"),
    ],
)
def test_a_snapshot_has_the_rules_of_its_model(provider: str, snapshot: str, model: str):
    assert model_rules(provider, snapshot) == model_rules(provider, model)


def test_a_snapshot_with_rules_of_its_own_has_those():
    assert model_rules("openai", "gpt-4o-2024-05-13").max_output == 4096
    assert model_rules("openai", "gpt-4o-2024-11-20").max_output == 16_384


@pytest.mark.parametrize("model", ["gpt-5.4-pro", "gpt-5.1-codex", "gpt-5-chat-latest", "gpt-7", "", "[", "GPT-5.1"])
def test_a_name_that_merely_begins_alike_is_not_listed(model: str):
    assert model_rules("openai", model).unlisted


def test_the_same_name_at_another_provider_is_another_model():
    assert not model_rules("openai", "gpt-5.1").temperature
    assert model_rules("compatible", "gpt-5.1").temperature
    assert model_rules("anthropic", "gpt-5.1").unlisted


def test_an_unknown_provider_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'acme'.*anthropic, compatible, openai, simulated"):
        model_rules("acme", "m")


def test_no_rule_stands_behind_one_that_leaves_it_nothing():
    for place, rules in enumerate(RULES):
        for model in rules.models:
            if model != "*":
                assert model_rules(rules.provider, model) == rules, model
        assert "*" not in rules.models or all(later.provider != rules.provider for later in RULES[place + 1 :])


def test_the_end_of_a_model_is_the_one_that_the_sdk_knows():
    # fails when a newer SDK tells of an end that models.yaml does not have yet: add it there
    from anthropic.resources.messages.messages import DEPRECATED_MODELS
    from anthropic.types.model import Model

    named = str(Model)
    for provider, model in LISTED:
        if provider == "anthropic":
            assert f"'{model}'" in named
            ends = model_rules("anthropic", model).retires_on
            said = None if ends is None else f"{ends:%B} {ends.day}th, {ends.year}"
            assert DEPRECATED_MODELS.get(model) == said


def test_every_openai_model_is_one_that_the_sdk_names():
    from openai.types.shared.chat_model import ChatModel

    # released, or an alias added, after this SDK
    later = {"gpt-6.2-astra", "gpt-6.2-sol", "gpt-5.6"}
    named = str(ChatModel)
    for provider, model in LISTED:
        assert provider != "openai" or model in later or f"'{model}'" in named, model


# --- what is refused, and how it is said


@pytest.mark.parametrize("provider, model", EVERY)
def test_asking_for_nothing_is_fine_while_the_model_lives(provider: str, model: str):
    assert problems(provider, model, today=date(2026, 10, 1)) == []


@pytest.mark.parametrize("model", CLAUDES)
def test_no_claude_takes_a_temperature(model: str):
    assert "llm_temperature" in only_problem("anthropic", model, temperature=0.0)


@pytest.mark.parametrize(
    "model", [model for provider, model in LISTED if provider == "openai" and model.startswith(("gpt-5", "gpt-6"))]
)
def test_from_gpt_5_on_reasoning_effort_and_verbosity_replace_the_temperature(model: str):
    before_any_end = date(2026, 10, 1)
    found = problems("openai", model, today=before_any_end, temperature=1.0)
    assert len(found) == 1
    assert "reasoning_effort" in found[0]
    for effort, verbosity in itertools.product(("low", "medium", "high"), repeat=2):
        asked = {"reasoning_effort": effort, "output_verbosity": verbosity}
        assert problems("openai", model, today=before_any_end, **asked) == []


def test_older_openai_models_take_a_temperature_and_neither_effort_nor_verbosity():
    assert problems("openai", "gpt-4.1", temperature=0.0) == []
    found = problems("openai", "gpt-4.1", reasoning_effort="low", output_verbosity="low")
    assert [text.partition(":")[0] for text in found] == ["reasoning_effort", "output_verbosity"]


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-6-astra", "gpt-6.1-sol", "gpt-6.2-sol"])
def test_a_gpt_that_always_reasons_refuses_none_and_says_what_it_takes(model: str):
    assert "low, medium, high" in only_problem("openai", model, reasoning_effort="none")


@pytest.mark.parametrize("model", ["gpt-5.1", "gpt-5.2", "gpt-5.4", "gpt-5.5", "gpt-5.6-luna", "gpt-6-luna"])
def test_gpt_5_1_and_most_later_models_take_none(model: str):
    assert problems("openai", model, reasoning_effort="none") == []


@pytest.mark.parametrize("model", [ALWAYS_THINKING, "claude-fable-5-2", "claude-sonnet-5-5", "claude-haiku-5-5"])
def test_a_claude_that_thinks_by_itself_refuses_none(model: str):
    assert "low, medium, high" in only_problem("anthropic", model, reasoning_effort="none")


@pytest.mark.parametrize("model", [BUDGET, ADAPTIVE, "claude-sonnet-4-6", "claude-opus-4-5"])
def test_a_claude_that_thinks_when_asked_takes_none(model: str):
    assert problems("anthropic", model, reasoning_effort="none") == []


@pytest.mark.parametrize("model", CLAUDES)
def test_no_claude_takes_a_verbosity(model: str):
    assert only_problem("anthropic", model, output_verbosity="low").startswith("output_verbosity: ")


@pytest.mark.parametrize("provider, model", [("anthropic", ADAPTIVE), ("openai", "gpt-5.1"), ("openai", "gpt-4.1")])
def test_a_thinking_budget_is_for_claudes_up_to_4_5(provider: str, model: str):
    assert only_problem(provider, model, thinking_budget_tokens=2048).startswith("thinking_budget_tokens: ")
    for budget_model in (BUDGET, "claude-sonnet-4-5", "claude-opus-4-5"):
        assert problems("anthropic", budget_model, thinking_budget_tokens=2048) == []


def test_a_thinking_budget_contradicts_effort_none():
    text = only_problem("anthropic", BUDGET, thinking_budget_tokens=2048, reasoning_effort="none")
    assert text.startswith("thinking_budget_tokens: ")


def test_more_output_than_the_model_can_write_is_refused_with_what_it_can():
    assert problems("anthropic", BUDGET, max_tokens=64_000) == []
    assert "64000" in only_problem("anthropic", BUDGET, max_tokens=64_001)
    assert problems("openai", "gpt-5.1", max_tokens=128_000) == []
    assert "128000" in only_problem("openai", "gpt-5.1", max_tokens=128_001)


def test_the_limit_must_hold_the_thinking_and_256_tokens_of_answer():
    assert problems("anthropic", BUDGET, max_tokens=2304, thinking_budget_tokens=2048) == []
    text = only_problem("anthropic", BUDGET, max_tokens=2303, thinking_budget_tokens=2048)
    assert text.startswith("llm_max_tokens: ")
    assert "2304" in text


def test_the_limit_must_hold_the_thinking_that_an_effort_stands_for():
    # medium: 4,096 tokens of thinking
    assert problems("anthropic", BUDGET, max_tokens=4352, reasoning_effort="medium") == []
    text = only_problem("anthropic", BUDGET, max_tokens=4351, reasoning_effort="medium")
    assert "reasoning_effort medium" in text
    assert "4352" in text


def test_a_budget_that_leaves_no_room_for_an_answer_is_refused():
    assert problems("anthropic", BUDGET, thinking_budget_tokens=63_744) == []
    text = only_problem("anthropic", BUDGET, thinking_budget_tokens=63_745)
    assert text.startswith("thinking_budget_tokens: ")
    assert "63744" in text


def test_every_problem_is_told_at_once():
    options = {"temperature": 0.0, "reasoning_effort": "none", "output_verbosity": "low", "max_tokens": 128_001}
    found = problems("anthropic", ALWAYS_THINKING, thinking_budget_tokens=1024, **options)
    named = {text.partition(":")[0] for text in found}
    assert named == {
        "llm_temperature",
        "reasoning_effort",
        "output_verbosity",
        "llm_max_tokens",
        "thinking_budget_tokens",
    }


@pytest.mark.parametrize("provider, model", [("anthropic", "claude-next"), ("openai", "gpt-next")])
def test_an_unlisted_model_takes_default_parameters_only_and_the_remedy_is_to_list_it(provider: str, model: str):
    assert problems(provider, model, max_tokens=500_000) == []
    found = problems(
        provider, model, temperature=0.0, reasoning_effort="low", output_verbosity="low", thinking_budget_tokens=1024
    )
    assert len(found) == 4
    assert all("add the model to cj_pipeline/judges/models.yaml" in text for text in found)


def test_a_compatible_server_is_asked_as_told():
    options = {"temperature": 0.7, "max_tokens": 10**6}
    for effort in ("none", "low", "medium", "high"):
        assert problems("compatible", "llama3.1:8b", reasoning_effort=effort, **options) == []
    assert only_problem("compatible", "llama3.1:8b", output_verbosity="low").startswith("output_verbosity: ")


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-4-5-20250929"])
def test_a_model_can_be_asked_until_the_day_before_it_retires(model: str):
    end = date(2026, 11, 30)
    assert problems("anthropic", model, today=end - timedelta(days=1)) == []
    assert "retired on 2026-11-30" in problems("anthropic", model, today=end)[0]


def test_what_openai_shut_down_in_october_2026_is_a_problem():
    for model in ("o4-mini", "gpt-4.1-nano", "gpt-4o-2024-05-13"):
        assert "retired on 2026-10-23" in only_problem("openai", model)


def test_a_long_name_does_not_flood_the_sentence():
    found = check_options("openai", "x" * 5000, JudgeOptions(temperature=0.0), today=TODAY)
    assert all(len(text) < 400 for text in found)


@pytest.mark.parametrize(
    "option, value",
    [
        ("max_tokens", 63),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("reasoning_effort", "minimal"),
        ("output_verbosity", "none"),
        ("thinking_budget_tokens", 1023),
        ("top_p", 0.5),
    ],
)
def test_options_out_of_any_models_range_are_no_options(option: str, value: Any):
    with pytest.raises(ValidationError):
        JudgeOptions(**{option: value})


# --- warnings


def test_a_model_that_ends_within_thirty_days_is_warned_of_and_no_other():
    end = date(2026, 11, 30)
    for days, warned in ((31, False), (30, True), (1, True), (0, False), (-5, False)):
        found = models.warnings("anthropic", "claude-sonnet-4-5", today=end - timedelta(days=days))
        assert [("2026-11-30" in text) for text in found] == [True] * warned
    assert models.warnings("anthropic", BUDGET, today=TODAY) == []


def test_an_unlisted_model_is_warned_of():
    assert "models.yaml" in models.warnings("openai", "gpt-next", today=TODAY)[0]
    assert models.warnings("compatible", "llama3.1:8b", today=TODAY) == []


# --- what is sent


def test_a_model_that_does_not_reason_unasked_gets_room_for_the_answer_alone():
    expected = models.CallShape(
        max_tokens=1024, temperature=None, reasoning="none", effort=None, thinking_budget=None, verbosity=None
    )
    for provider, model in (
        ("anthropic", BUDGET),
        ("anthropic", ADAPTIVE),
        ("openai", "gpt-5.1"),
        ("openai", "gpt-4.1"),
        ("compatible", "llama3.1:8b"),
    ):
        assert shape(provider, model) == expected


@pytest.mark.parametrize(
    "provider, model, room",
    [
        ("openai", "gpt-5", 8192),
        ("openai", "gpt-6-luna", 8192),
        ("anthropic", "claude-haiku-5-5", 8192),
        ("anthropic", "claude-opus-5-5", 8192),
        ("anthropic", "claude-sonnet-5", 16_384),
        ("anthropic", "claude-fable-5-2", 16_384),
        ("openai", "gpt-next", 8192),
    ],
)
def test_a_model_that_reasons_unasked_gets_room_for_that_and_is_sent_nothing(provider: str, model: str, room: int):
    sent = shape(provider, model)
    assert sent.max_tokens == 1024 + room
    assert (sent.reasoning, sent.effort, sent.thinking_budget) == ("none", None, None)


@pytest.mark.parametrize("effort, room", [("low", 2048), ("medium", 8192), ("high", 16_384)])
@pytest.mark.parametrize(
    "provider, model, reasoning",
    [
        ("openai", "gpt-5.1", "effort"),
        ("compatible", "qwen3", "effort"),
        ("anthropic", ADAPTIVE, "adaptive"),
        ("anthropic", ALWAYS_THINKING, "adaptive"),
    ],
)
def test_an_effort_is_sent_in_the_models_form_with_room_for_it(
    provider: str, model: str, reasoning: str, effort: str, room: int
):
    sent = shape(provider, model, reasoning_effort=effort)
    assert (sent.reasoning, sent.effort, sent.thinking_budget) == (reasoning, effort, None)
    assert sent.max_tokens == 1024 + room


@pytest.mark.parametrize("effort, budget", [("low", 1024), ("medium", 4096), ("high", 8192)])
def test_an_effort_becomes_a_thinking_budget_where_there_is_no_effort(effort: str, budget: int):
    sent = shape("anthropic", BUDGET, reasoning_effort=effort)
    assert (sent.reasoning, sent.effort, sent.thinking_budget) == ("budget", None, budget)
    assert sent.max_tokens == 1024 + budget


def test_a_stated_budget_comes_before_the_one_that_an_effort_stands_for():
    for options in ({}, {"reasoning_effort": "high"}):
        sent = shape("anthropic", BUDGET, thinking_budget_tokens=3000, **options)
        assert (sent.reasoning, sent.thinking_budget, sent.max_tokens) == ("budget", 3000, 4024)


def test_effort_none_is_sent_to_openai_and_means_silence_to_a_claude():
    asked = shape("openai", "gpt-5.5", reasoning_effort="none")
    assert (asked.reasoning, asked.effort, asked.max_tokens) == ("effort", "none", 1024)
    for model in (ADAPTIVE, BUDGET):
        silent = shape("anthropic", model, reasoning_effort="none")
        assert (silent.reasoning, silent.effort, silent.thinking_budget) == ("none", None, None)
        assert silent.max_tokens == 1024


def test_a_stated_limit_is_kept():
    assert shape("openai", "gpt-5.1", max_tokens=300, reasoning_effort="high").max_tokens == 300
    assert shape("compatible", "llama3.1:8b", max_tokens=64).max_tokens == 64


def test_temperature_and_verbosity_are_passed_on():
    assert shape("openai", "gpt-4.1", temperature=0.0).temperature == 0.0
    assert shape("openai", "gpt-5.1", output_verbosity="high").verbosity == "high"


OPTIONS = st.builds(
    JudgeOptions,
    max_tokens=st.none() | st.integers(64, 200_000),
    temperature=st.none() | st.floats(0, 2),
    reasoning_effort=st.sampled_from([None, "none", "low", "medium", "high"]),
    output_verbosity=st.sampled_from([None, "low", "medium", "high"]),
    thinking_budget_tokens=st.none() | st.integers(1024, 200_000),
)


@given(st.sampled_from(EVERY), OPTIONS)
def test_whatever_is_asked_for_the_limits_hold(name: tuple[str, str], options: JudgeOptions):
    rules, sent = model_rules(*name), call_shape(*name, options)
    assert sent.max_tokens >= 64
    assert rules.max_output is None or sent.max_tokens <= rules.max_output
    assert (sent.thinking_budget is not None) == (sent.reasoning == "budget")
    assert sent.thinking_budget is None or sent.thinking_budget < sent.max_tokens
    assert (sent.effort is not None) == (sent.reasoning in ("effort", "adaptive"))


@given(st.sampled_from(EVERY), OPTIONS)
def test_what_is_accepted_is_sent_to_the_letter(name: tuple[str, str], options: JudgeOptions):
    if check_options(*name, options, today=date(2026, 10, 1)):
        return
    sent = call_shape(*name, options)
    assert (sent.temperature, sent.verbosity) == (options.temperature, options.output_verbosity)
    assert options.max_tokens in (None, sent.max_tokens)
    if sent.thinking_budget is not None:
        # what Anthropic asks for, and room for an answer
        assert 1024 <= sent.thinking_budget <= sent.max_tokens - 256
        assert options.thinking_budget_tokens in (None, sent.thinking_budget)
    if options.reasoning_effort not in (None, "none"):
        assert sent.reasoning == model_rules(*name).reasoning != "none"


# --- the file


def written(folder: Path, content: Any) -> Path:
    path = folder / "models.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_file_is_read_in_its_order(tmp_path: Path):
    path = written(tmp_path, {"rules": [RULE, RULE | {"models": ["*"], "unlisted": True}]})
    assert load_rules(path) == (
        ModelRules.model_validate(RULE),
        ModelRules.model_validate(RULE | {"models": ["*"], "unlisted": True}),
    )


def test_a_pattern_is_matched_as_file_names_are():
    rules = ModelRules.model_validate(RULE | {"models": ["claude-opus-4-[678]", "o?"], "provider": "p"})
    assert [rules.fits("p", model) for model in ("claude-opus-4-7", "o3", "o3-2025-04-16")] == [True] * 3
    assert [rules.fits("p", model) for model in ("claude-opus-4-5", "o3-mini", "O3")] == [False] * 3


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"models": []}, "models"),
        ({"max_output": 0}, "max_output"),
        ({"reasoning_effort": ["minimal"], "reasoning": "effort"}, "reasoning_effort.0"),
        ({"reasoning_effort": ["low"]}, "entry"),
        ({"reasoning": "effort"}, "entry"),
        ({"temperature": "maybe"}, "temperature"),
        ({"retires_on": 20261130}, "retires_on"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_rule_that_cannot_be_used_is_named_with_its_file_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str
):
    path = written(tmp_path, {"rules": [RULE, RULE | changes]})
    with pytest.raises(InputError) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)
    assert "rule 2 (openai" in str(caught.value)
    assert f"), {field}" in str(caught.value)


@pytest.mark.parametrize("content", ["", "rules: {", "[]", "rules: 1", "a: 1"])
def test_a_file_that_holds_no_rules_is_refused_by_name(tmp_path: Path, content: str):
    path = written(tmp_path, content)
    with pytest.raises(InputError, match="model rules") as caught:
        load_rules(path)
    assert str(path) in str(caught.value)
