from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cj_pipeline.core.errors import InputError
from cj_pipeline.judges.pricing import Price, PriceList, base_model, cost_usd, load_prices, upper_bound_usd
from cj_pipeline.judges.protocol import Usage

TODAY = date(2026, 11, 21)
SHIPPED = load_prices(Path(__file__).parents[2] / "assets_data" / "inputs" / "prices.yaml")

ENTRY: dict[str, Any] = {
    "provider": "anthropic",
    "model": "claude-haiku-4-5",
    "effective_from": "2025-10-15",
    "usd_per_million": {"input": 1.0, "cache_read": 0.1, "cache_write": 1.25, "output": 5.0},
    "batch_discount": 0.5,
    "source": "https://platform.claude.com/docs/en/about-claude/pricing",
    "retrieved": "2026-11-21",
}


def entry(**changes: Any) -> dict[str, Any]:
    return ENTRY | changes


def rates(scale: float = 1.0) -> dict[str, float]:
    return {"input": 1.0 * scale, "cache_read": 0.1 * scale, "cache_write": 1.25 * scale, "output": 5.0 * scale}


def price(**changes: Any) -> Price:
    return Price.model_validate(entry(**changes))


def written(folder: Path, content: Any) -> Path:
    path = folder / "prices.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def shipped(provider: str, model: str, on: date = TODAY) -> Price:
    found = SHIPPED.price_of(provider, model, on)
    assert found is not None
    return found


# --- which price


def test_a_model_has_the_price_it_is_listed_with():
    assert shipped("anthropic", "claude-haiku-4-5").model == "claude-haiku-4-5"


@pytest.mark.parametrize("snapshot", ["claude-haiku-4-5-20251001", "claude-haiku-4-5-2025-10-01"])
def test_a_dated_snapshot_costs_what_its_base_model_costs(snapshot: str):
    assert shipped("anthropic", snapshot) == shipped("anthropic", "claude-haiku-4-5")


def test_a_snapshot_that_is_listed_itself_has_its_own_price():
    own = price(model="claude-haiku-4-5-20251001", usd_per_million=rates(2))
    prices = PriceList((price(), own))
    assert prices.price_of("anthropic", "claude-haiku-4-5-20251001", TODAY) == own
    assert prices.price_of("anthropic", "claude-haiku-4-5-20260101", TODAY) == price()


def test_a_snapshot_that_is_listed_from_a_later_day_does_not_borrow_a_price_before_it():
    own = price(model="claude-haiku-4-5-20251001", effective_from="2027-01-01")
    assert PriceList((price(), own)).price_of("anthropic", "claude-haiku-4-5-20251001", TODAY) is None


@pytest.mark.parametrize(
    "model",
    [
        "claude-haiku-4",
        "claude-haiku",
        "claude-haiku-4-5-fast",
        "claude-haiku-4-5-latest",
        "claude-haiku-4-5-2025",
        "claude-haiku-4-5-20251332",
        "claude-haiku-4-5-20251001-fast",
        "claude-haiku-4-5-20251001\n",
        "claude-haiku-4-5-٢٠٢٥١٠٠١",
        "Claude-Haiku-4-5",
        "",
    ],
)
def test_a_name_that_merely_begins_alike_has_no_price(model: str):
    assert SHIPPED.price_of("anthropic", model, TODAY) is None


def test_a_model_of_another_provider_has_no_price():
    assert SHIPPED.price_of("compatible", "gpt-5.1", TODAY) is None
    assert SHIPPED.price_of("simulated", "simulated/cj-generic", TODAY) is None


@pytest.mark.parametrize(
    "model, base",
    [
        ("gpt-5.1-2025-11-13", "gpt-5.1"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("gpt-5.1", None),
        ("gpt-5-2025-02-30", None),
        ("-20250929", None),
    ],
)
def test_only_a_real_date_at_the_end_makes_a_snapshot(model: str, base: str | None):
    assert base_model(model) == base


def test_the_latest_price_that_has_begun_counts_from_its_first_day_on():
    # Anthropic halved the cache reads of Sonnet 5.5 on 2026-10-07
    assert shipped("anthropic", "claude-sonnet-5-5", date(2026, 10, 6)).usd_per_million.cache_read == 0.20
    assert shipped("anthropic", "claude-sonnet-5-5", date(2026, 10, 7)).usd_per_million.cache_read == 0.10
    assert SHIPPED.price_of("anthropic", "claude-sonnet-5-5", date(2026, 9, 27)) is None


def test_the_order_of_entries_does_not_matter():
    early, late = price(effective_from="2026-01-01"), price(effective_from="2026-06-01", usd_per_million=rates(2))
    for prices in (PriceList((early, late)), PriceList((late, early))):
        assert prices.price_of("anthropic", "claude-haiku-4-5", date(2026, 5, 31)) == early
        assert prices.price_of("anthropic", "claude-haiku-4-5", date(2026, 6, 1)) == late


def test_the_current_prices_are_one_for_each_model_that_has_one():
    future = price(model="claude-next", effective_from="2027-01-01")
    early, late = price(effective_from="2026-01-01"), price(effective_from="2026-06-01")
    assert PriceList((future, late, early)).current(TODAY) == [late]


# --- costs, by hand from the published tables


@pytest.mark.parametrize(
    "provider, model, usage, batch, dollars",
    [
        # $1 in, $5 out: 2,000 x 1 + 100 x 5 = 2,500 millionths
        ("anthropic", "claude-haiku-4-5", Usage(input=2000, output=100), False, 0.0025),
        # written: 3,000 x 1.25 = 3,750; then 500 x 1 and 100 x 5
        ("anthropic", "claude-haiku-4-5", Usage(input=500, cache_write=3000, output=100), False, 0.00475),
        # read: 3,000 x 0.10 = 300
        ("anthropic", "claude-haiku-4-5", Usage(input=500, cache_read=3000, output=100), False, 0.0013),
        ("anthropic", "claude-haiku-4-5", Usage(input=500, cache_read=3000, output=100), True, 0.00065),
        # a million of each at Opus 5.5: 4 + 0.20 + 5 + 20
        (
            "anthropic",
            "claude-opus-5-5",
            Usage(input=10**6, cache_read=10**6, cache_write=10**6, output=10**6),
            False,
            29.20,
        ),
        # OpenAI before GPT-5.6 charges nothing for keeping: $1.25 in, $0.125 cached, $10 out
        ("openai", "gpt-5.1", Usage(input=1000, cache_read=1024, output=300), False, 0.004378),
        ("openai", "gpt-4o-mini", Usage(input=10_000, output=1000), True, 0.00105),
        # GPT-6 Luna: 0.10, cached 0.01, kept 0.125, out 0.50
        ("openai", "gpt-6-luna", Usage(input=1000, cache_read=2000, cache_write=4000, output=500), False, 0.00087),
    ],
)
def test_a_call_costs_what_the_published_table_says(
    provider: str, model: str, usage: Usage, batch: bool, dollars: float
):
    assert cost_usd(shipped(provider, model), usage, batch=batch) == pytest.approx(dollars, rel=1e-12)


def test_reasoning_is_part_of_the_output_and_is_not_charged_twice():
    silent, thoughtful = Usage(input=100, output=900), Usage(input=100, output=900, reasoning=800)
    assert cost_usd(price(), silent, batch=False) == cost_usd(price(), thoughtful, batch=False)


def test_a_prompt_over_the_threshold_makes_the_whole_call_dearer():
    # Haiku 5.5: up to 100,000 tokens 0.10 and 0.50, above 0.50 and 2.50; cached tokens count
    haiku = shipped("anthropic", "claude-haiku-5-5")
    at = Usage(input=40_000, cache_read=60_000, output=1000)
    above = Usage(input=40_001, cache_read=60_000, output=1000)
    assert cost_usd(haiku, at, batch=False) == pytest.approx((4000 + 600 + 500) / 1e6)
    assert cost_usd(haiku, above, batch=False) == pytest.approx((20_000.5 + 3000 + 2500) / 1e6)


def test_the_output_does_not_count_towards_the_threshold():
    haiku = shipped("anthropic", "claude-haiku-5-5")
    assert cost_usd(haiku, Usage(input=100_000, output=64_000), batch=False) == pytest.approx(0.042)


def test_without_a_price_there_is_no_cost_and_no_bound():
    assert cost_usd(None, Usage(input=1), batch=False) is None
    assert upper_bound_usd(None, input_tokens=1, max_output_tokens=1, batch=False) is None


# --- properties

TOKENS = st.integers(0, 300_000)
USAGES = st.builds(Usage, input=TOKENS, cache_read=TOKENS, cache_write=TOKENS, output=TOKENS)
DOLLARS = st.floats(0, 200, allow_nan=False)
RATES = st.fixed_dictionaries(dict.fromkeys(("input", "cache_read", "cache_write", "output"), DOLLARS))
BANDS = st.none() | st.builds(
    lambda above, long: {"above_tokens": above, "usd_per_million": long}, st.integers(1, 400_000), RATES
)
PRICES = st.builds(
    lambda standard, band, discount: price(usd_per_million=standard, long_prompt=band, batch_discount=discount),
    RATES,
    BANDS,
    st.floats(0, 1),
)


def plus(one: Usage, other: Usage) -> Usage:
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in Usage.model_fields})


@given(USAGES, USAGES, st.booleans())
def test_within_a_band_the_cost_of_two_calls_is_the_cost_of_their_tokens(one: Usage, other: Usage, batch: bool):
    costs = [cost_usd(price(), usage, batch=batch) or 0.0 for usage in (one, other, plus(one, other))]
    assert costs[0] + costs[1] == pytest.approx(costs[2], rel=1e-9, abs=1e-15)


@given(PRICES, USAGES)
def test_a_batch_job_takes_its_discount_off_everything(listed: Price, usage: Usage):
    alone, in_job = (cost_usd(listed, usage, batch=batch) for batch in (False, True))
    assert alone is not None
    assert in_job == pytest.approx(alone * (1 - listed.batch_discount), rel=1e-9)


@given(PRICES, USAGES, st.integers(0, 1000), st.integers(0, 1000), st.booleans())
def test_no_call_within_its_bounds_costs_more_than_the_upper_bound(
    listed: Price, usage: Usage, spare_input: int, spare_output: int, batch: bool
):
    bound = upper_bound_usd(
        listed,
        input_tokens=usage.input + usage.cache_read + usage.cache_write + spare_input,
        max_output_tokens=usage.output + spare_output,
        batch=batch,
    )
    cost = cost_usd(listed, usage, batch=batch)
    assert bound is not None
    assert cost is not None
    assert cost <= bound * (1 + 1e-12) + 1e-15


def test_the_upper_bound_takes_the_dearest_rate_for_the_whole_prompt():
    # 10,000 x 1.25 + 1,024 x 5 = 17,620 millionths
    assert upper_bound_usd(price(), input_tokens=10_000, max_output_tokens=1024, batch=False) == pytest.approx(0.01762)
    assert upper_bound_usd(price(), input_tokens=10_000, max_output_tokens=1024, batch=True) == pytest.approx(0.00881)


def test_the_upper_bound_of_a_long_prompt_is_at_its_own_rates():
    haiku = shipped("anthropic", "claude-haiku-5-5")
    # 100,001 x 0.625 + 1,000 x 2.50
    bound = upper_bound_usd(haiku, input_tokens=100_001, max_output_tokens=1000, batch=False)
    assert bound == pytest.approx(0.065000625)


# --- the file


def test_without_a_file_no_price_is_known(tmp_path: Path):
    assert load_prices(tmp_path / "prices.yaml") == PriceList(())


def test_an_empty_list_is_a_list(tmp_path: Path):
    assert load_prices(written(tmp_path, {"prices": []})) == PriceList(())


def test_a_file_is_read_as_it_is_written(tmp_path: Path):
    long_prompt = {"above_tokens": 1000, "usd_per_million": rates(5)}
    found = load_prices(written(tmp_path, {"prices": [entry(), entry(model="other", long_prompt=long_prompt)]}))
    assert found.prices == (price(), price(model="other", long_prompt=long_prompt))


def test_whole_dollars_may_be_written_without_a_point(tmp_path: Path):
    path = written(tmp_path, {"prices": [entry(usd_per_million=rates() | {"input": 3})]})
    assert load_prices(path).prices[0].usd_per_million.input == 3.0


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"provider": "acme"}, "provider"),
        ({"model": ""}, "model"),
        ({"model": 4.5}, "model"),
        ({"effective_from": "yesterday"}, "effective_from"),
        ({"effective_from": 20261007}, "effective_from"),
        ({"effective_from": 0}, "effective_from"),
        ({"usd_per_million": rates() | {"input": -1.0}}, "usd_per_million.input"),
        ({"usd_per_million": rates() | {"output": "5 dollars"}}, "usd_per_million.output"),
        ({"usd_per_million": rates() | {"output": float("nan")}}, "usd_per_million.output"),
        ({"usd_per_million": rates() | {"output": True}}, "usd_per_million.output"),
        ({"usd_per_million": {"input": 1.0, "cache_read": 1.0, "output": 5.0}}, "usd_per_million.cache_write"),
        ({"usd_per_million": rates() | {"thinking": 1.0}}, "usd_per_million.thinking"),
        ({"batch_discount": 1.5}, "batch_discount"),
        ({"long_prompt": {"above_tokens": 0, "usd_per_million": rates()}}, "long_prompt.above_tokens"),
        ({"source": ""}, "source"),
        ({"retrieved": None}, "retrieved"),
        ({"discount": 0.1}, "discount"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_with_its_file_and_field(
    tmp_path: Path, changes: dict[str, Any], field: str
):
    path = written(tmp_path, {"prices": [entry(model="fine"), entry(**changes)]})
    with pytest.raises(InputError) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)
    assert "entry 2 (" in str(caught.value)
    assert f"), {field}: " in str(caught.value)
    assert "entry 1" not in str(caught.value)


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path):
    missing = {name: value for name, value in entry().items() if name != "source"}
    path = written(tmp_path, {"prices": [missing, entry(batch_discount=-1.0), "text"]})
    with pytest.raises(InputError) as caught:
        load_prices(path)
    for text in ("), source: ", "), batch_discount: ", "entry 3, entry: "):
        assert text in str(caught.value)


def test_two_prices_of_a_model_from_the_same_day_are_refused(tmp_path: Path):
    path = written(tmp_path, {"prices": [entry(), entry(usd_per_million=rates(2))]})
    with pytest.raises(
        InputError, match=r"anthropic/claude-haiku-4-5, effective_from: two entries begin on 2025-10-15"
    ):
        load_prices(path)


@pytest.mark.parametrize(
    "content",
    ["", "prices: {", "prices: 3", "[]", "{}", "a: 1", "prices: []\nmore: 1", "prices: [{effective_from: 2026-13-45}]"],
)
def test_a_file_that_is_no_price_list_is_refused_by_name(tmp_path: Path, content: str):
    path = written(tmp_path, content)
    with pytest.raises(InputError, match="prices") as caught:
        load_prices(path)
    assert str(path) in str(caught.value)


def test_an_entry_that_states_a_field_twice_is_refused_for_either_might_be_meant(tmp_path: Path):
    path = written(tmp_path, "prices:\n- provider: anthropic\n  provider: openai\n")
    with pytest.raises(InputError, match="key 'provider' is stated twice") as caught:
        load_prices(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_bytes(b"\xff\xfe\x00prices")
    with pytest.raises(InputError, match="cannot be read"):
        load_prices(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_prices(tmp_path)  # a folder


# --- the shipped list


def test_anthropic_charges_a_quarter_more_for_keeping_a_prompt_five_minutes():
    # https://platform.claude.com/docs/en/build-with-claude/prompt-caching: 1.25 times the base input price
    for listed in SHIPPED.prices:
        if listed.provider == "anthropic":
            bands = [listed.usd_per_million]
            bands += [] if listed.long_prompt is None else [listed.long_prompt.usd_per_million]
            for band in bands:
                assert band.cache_write == pytest.approx(1.25 * band.input)


def test_openai_charges_for_keeping_a_prompt_from_gpt_5_6_on():
    for listed in SHIPPED.prices:
        if listed.provider == "openai":
            factor = 1.25 if listed.model.startswith(("gpt-5.6", "gpt-6")) else 1.0
            assert listed.usd_per_million.cache_write == pytest.approx(factor * listed.usd_per_million.input)


def test_openai_doubles_input_and_adds_half_to_output_above_272_000_tokens():
    bands = [(p.usd_per_million, p.long_prompt) for p in SHIPPED.prices if p.provider == "openai" and p.long_prompt]
    assert bands
    for standard, long_prompt in bands:
        assert long_prompt is not None
        assert long_prompt.above_tokens == 272_000
        for name, factor in (("input", 2), ("cache_read", 2), ("cache_write", 2), ("output", 1.5)):
            assert getattr(long_prompt.usd_per_million, name) == pytest.approx(factor * getattr(standard, name))


def test_every_shipped_price_makes_sense_says_where_it_is_from_and_has_begun():
    for listed in SHIPPED.prices:
        rate = listed.usd_per_million
        assert 0 < rate.cache_read < rate.input <= rate.cache_write < rate.output
        assert listed.batch_discount == 0.5
        assert listed.source.startswith("https://")
        assert listed.effective_from <= listed.retrieved <= TODAY


@pytest.mark.parametrize(
    "provider, model, input_, cached, output",
    [
        ("anthropic", "claude-sonnet-4-6", 3.00, 0.30, 15.00),
        ("anthropic", "claude-opus-5", 5.00, 0.50, 25.00),
        ("anthropic", "claude-fable-5-1", 10.00, 0.25, 50.00),
        ("openai", "gpt-4.1-mini", 0.40, 0.10, 1.60),
        ("openai", "gpt-5-nano", 0.05, 0.005, 0.40),
        ("openai", "gpt-5.6-sol", 4.00, 0.40, 20.00),
        ("openai", "gpt-5.6", 4.00, 0.40, 20.00),
        ("openai", "gpt-6.1-terra", 1.00, 0.05, 5.00),
    ],
)
def test_the_shipped_list_says_what_the_providers_pages_say(
    provider: str, model: str, input_: float, cached: float, output: float
):
    rate = shipped(provider, model).usd_per_million
    assert (rate.input, rate.cache_read, rate.output) == (input_, cached, output)
