"""What a call costs: the price list, the price of a model on a day, the cost of a call and its upper bound.

Here: reading `prices.yaml` (its header explains the fields) and arithmetic on it. Not here: where the file is
(settings), how a provider's answer becomes a `Usage` (the judges), cost limits (the workflow). A model without a price
has none: nothing here ever guesses one.

Conventions of `Usage`, which every judge keeps: `input` counts the prompt tokens that were neither read from nor
written to the provider's cache (Anthropic's `input_tokens` is that already; from OpenAI's, the judge takes the cached
ones away), so that input, cache_read and cache_write together are the prompt. `output` includes `reasoning`, which is
told beside it and never charged again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Value
from cj_pipeline.judges.protocol import Usage
from cj_pipeline.strict_yaml import load_yaml

_SNAPSHOT: Final = re.compile(r"(?P<base>.+)-(?P<day>[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2})")


def _calendar_day(value: Any) -> Any:
    """A number is no day, though pydantic would take it for seconds since 1970."""
    if isinstance(value, date | str):
        return value
    raise ValueError("must be a date such as 2026-11-21")


Day = Annotated[date, BeforeValidator(_calendar_day)]
"""A date in a file."""

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class Rates(Value):
    """US dollars per million tokens, by kind of token."""

    input: Dollars
    cache_read: Dollars
    cache_write: Dollars
    output: Dollars


class LongPrompt(Value):
    """What a whole call costs, per million tokens, when its prompt has more than `above_tokens` tokens."""

    above_tokens: int = Field(ge=1, strict=True)
    usd_per_million: Rates


class Price(Value):
    """The price of a model from a day on; the fields are explained at the top of `prices.yaml`."""

    provider: Literal["anthropic", "openai", "compatible", "simulated"]
    model: str = Field(min_length=1)
    effective_from: Day
    usd_per_million: Rates
    batch_discount: float = Field(ge=0, le=1, allow_inf_nan=False, strict=True)
    long_prompt: LongPrompt | None = None
    source: str = Field(min_length=1)
    retrieved: Day


@dataclass(frozen=True)
class PriceList:
    """Prices of several models, possibly several of one model from different days on."""

    prices: tuple[Price, ...]

    def price_of(self, provider: str, model: str, on: date) -> Price | None:
        """The price of a model on a day: the latest that has begun; None if none is known.

        A dated snapshot that is not listed itself costs what its base model costs. Nothing else that merely begins
        alike is taken for the same model.
        """
        known = self._listed(provider, model)
        base = base_model(model)
        if not known and base is not None:
            known = self._listed(provider, base)
        return max((p for p in known if p.effective_from <= on), key=lambda p: p.effective_from, default=None)

    def current(self, on: date) -> list[Price]:
        """The price of every listed model that has one on this day, by provider and model."""
        names = sorted({(price.provider, price.model) for price in self.prices})
        found = (self.price_of(provider, model, on) for provider, model in names)
        return [price for price in found if price is not None]

    def _listed(self, provider: str, model: str) -> list[Price]:
        return [price for price in self.prices if (price.provider, price.model) == (provider, model)]


def base_model(model: str) -> str | None:
    """The model that a dated snapshot (`MODEL-YYYYMMDD`, `MODEL-YYYY-MM-DD`) is one of; None for any other name."""
    match = _SNAPSHOT.fullmatch(model)
    if match is None:
        return None
    try:
        date.fromisoformat(match["day"])
    except ValueError:
        return None
    return match["base"]


def cost_usd(price: Price | None, usage: Usage, *, batch: bool) -> float | None:
    """What a call cost.

    Args:
        price: of its model on its day; None if unknown.
        usage: its tokens, by the conventions at the top.
        batch: whether it travelled in a provider batch job.

    Returns:
        US dollars; None if the price is unknown.
    """
    if price is None:
        return None
    prompt_tokens = usage.input + usage.cache_read + usage.cache_write
    long_prompt = price.long_prompt
    is_long = long_prompt is not None and prompt_tokens > long_prompt.above_tokens
    rates = long_prompt.usd_per_million if long_prompt is not None and is_long else price.usd_per_million
    millionths = (
        usage.input * rates.input
        + usage.cache_read * rates.cache_read
        + usage.cache_write * rates.cache_write
        + usage.output * rates.output
    )
    return millionths / 1e6 * _share(price, batch)


def upper_bound_usd(price: Price | None, *, input_tokens: int, max_output_tokens: int, batch: bool) -> float | None:
    """The most a call can cost, whatever the provider's cache does.

    Args:
        price: of its model on its day; None if unknown.
        input_tokens: the most tokens its prompt can have.
        max_output_tokens: the most tokens its answer can have, reasoning included.
        batch: whether it travels in a provider batch job.

    Returns:
        US dollars; None if the price is unknown.
    """
    if price is None:
        return None
    bands = [price.usd_per_million]
    if price.long_prompt is not None and input_tokens > price.long_prompt.above_tokens:
        bands.append(price.long_prompt.usd_per_million)
    millionths = max(
        input_tokens * max(rates.input, rates.cache_read, rates.cache_write) + max_output_tokens * rates.output
        for rates in bands
    )
    return millionths / 1e6 * _share(price, batch)


def _share(price: Price, batch: bool) -> float:
    return 1 - price.batch_discount if batch else 1.0


# --- the file


def load_prices(path: Path) -> PriceList:
    """Read a price list.

    Args:
        path: a YAML file in the form of `assets_data/inputs/prices.yaml`. If it does not exist, no price is known.

    Raises:
        InputError: every entry and field that cannot be used, or the file as a whole.
    """
    where = f"prices {path}"
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return PriceList(())
    # ValueError: a text that is not UTF-8, or a date that no calendar has, which the YAML reader meets first
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: cannot be read as YAML ({_first_line(error)}): mend the file") from error
    if not isinstance(content, Mapping) or set(content) != {"prices"} or not isinstance(content["prices"], list):
        raise InputError(f"{where}: must hold one field, prices, with a list of entries; see the shipped prices.yaml")
    problems: list[str] = []
    prices = []
    for number, entry in enumerate(content["prices"], start=1):
        try:
            prices.append(Price.model_validate(entry))
        except ValidationError as error:
            problems += [f"{_entry_name(number, entry)}, {problem}" for problem in field_problems(error)]
    problems += _repetitions(prices)
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}. Mend these entries or take them out")
    return PriceList(tuple(prices))


def field_problems(error: ValidationError) -> list[str]:
    """One text per field of a file that could not be read: the field's name, what is wrong, and what was found."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in problem["loc"]) or "entry"
        text = problem["msg"].removeprefix("Value error, ")
        value = "" if problem["type"] == "missing" else f" (it is {str(problem['input'])[:60]!r})"
        found.append(f"{field}: {text}{value}")
    return found


def _entry_name(number: int, entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return f"entry {number}"
    return f"entry {number} ({str(entry.get('provider'))[:40]}/{str(entry.get('model'))[:80]})"


def _repetitions(prices: Sequence[Price]) -> list[str]:
    seen: set[tuple[str, str, date]] = set()
    problems = []
    for price in prices:
        key = (price.provider, price.model, price.effective_from)
        if key in seen:
            problems.append(
                f"{price.provider}/{price.model}, effective_from: two entries begin on {price.effective_from}"
            )
        seen.add(key)
    return problems


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
