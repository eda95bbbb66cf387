"""Every threshold of the program: its default, its unit, its reason. Environment variables have the prefix `CJ_`.

Nothing is read at import: `load_settings()` reads the environment (and `.env`) when it is called. Overrides that
travel with a batch are `BatchOverrides`; `effective_settings` lays them over the environment.
"""

import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BATCH_ID_PATTERN, BatchApiMode, BatchingMode, PairDesign, StopRule

_DEFAULT_DATA_DIR = Path("assets_data")


class BatchTunables(BaseModel):
    """The settings a batch may override: what decides how it is paired, judged, stopped and reported."""

    model_config = ConfigDict(extra="forbid")

    comparisons_per_stability_check_iteration: int = Field(
        10,
        ge=1,
        description="comparisons. Least size of a wave; a wave is max(this, essays // 2), cut to what the budget "
        "leaves. Smaller waves look at stability more often, larger ones keep the judge busier.",
    )
    min_comparisons_for_stability_check: int = Field(
        10,
        ge=1,
        description="comparisons with an outcome before stability may stop a batch. Above the budget it means "
        "'use the full budget'.",
    )
    score_stability_threshold: float = Field(
        0.05,
        ge=0,
        description="logits. Largest |change of a score| between two waves that still counts as stable.",
    )
    stop_rule: StopRule = Field(
        StopRule.STABILITY,
        description="what may end a batch before its budget: stability (scores stand still) or precision (on two full "
        "waves in a row, 90 % of students have a grade known to 0.7 steps; without grades, a reliability of .80; or "
        "more judgments hardly help).",
    )
    min_success_rate_threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of comparisons with an outcome that must be judged; below it a batch fails rather than "
        "give grades from what happened to succeed.",
    )
    min_resampling_net_size: int = Field(
        10,
        ge=0,
        description="essays, anchors included. A batch of fewer is a small net: it stops after its resampling "
        "passes, because its few pairs are soon exhausted.",
    )
    max_resampling_passes_for_small_net: int = Field(
        2, ge=0, description="resampling waves a small net may have once every pair has been judged."
    )
    bt_mean_se_warn_threshold: float = Field(
        0.4,
        gt=0,
        description="logits. Mean standard error above which bt_se_inflated is flagged (report only).",
    )
    bt_max_se_warn_threshold: float = Field(
        0.8,
        gt=0,
        description="logits. Largest standard error above which bt_se_inflated is flagged (report only).",
    )
    bt_min_mean_comparisons_per_item: float = Field(
        1.0,
        ge=0,
        description="judged comparisons per essay, on average, below which comparison_coverage_sparse is flagged "
        "(report only).",
    )
    bt_max_isolated_items_tolerated: int = Field(
        0,
        ge=0,
        description="essays without a judged comparison before has_isolated_items is flagged (report only).",
    )
    bt_standard_error_max: float = Field(
        2.0,
        gt=0,
        description="logits. Reported standard errors are capped here; pairing and grades are not.",
    )
    enable_comparison_position_balancing: bool = Field(
        True, description="keep every essay's appearances as A and as B within one of each other."
    )
    pair_design: PairDesign = Field(
        PairDesign.ADAPTIVE,
        description="how pairs are chosen: adaptive (balanced first, then what tells most: the most accuracy for a "
        "budget), coverage (every pair once, then where it is uncertain), balanced (random, equal exposure: pairing "
        "that ignores results) or random. Small nets are always planned by coverage. calibrated places "
        "students among anchors that earlier nights have placed (the fewest judgments for a grade): it needs nights of "
        "the same assignment, judge and prompts, and a batch that has none is refused.",
    )
    pair_generation_seed: int = Field(
        20260101, ge=0, description="integer. With the batch id and wave it decides every tie in pairing."
    )
    max_judgment_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="calls per comparison before it is recorded as failed; lost calls do not count.",
    )
    judge_concurrency: int = Field(
        16, ge=1, le=1024, description="calls in flight at once; also the most that a crash can pay twice."
    )
    batch_timeout_hours: float = Field(
        4.0, gt=0, description="hours without activity after which the monitor ends a launched batch."
    )
    judgment_timeout_seconds: float = Field(
        120.0, gt=0, description="seconds one call may take before it counts as failed (error_type timeout)."
    )
    llm_batching_mode: BatchingMode = Field(
        BatchingMode.SERIAL_BUNDLE,
        description="how comparisons travel: per_request (one by one), serial_bundle (queued and measured in bundles, "
        "judged as separate calls), provider_batch_api (the whole batch as one provider job, at a discount).",
    )
    batch_api_mode: BatchApiMode = Field(
        BatchApiMode.DISABLED,
        description="when provider_batch_api may submit a job: disabled, nightly (in BATCH_API_NIGHT_WINDOW) or "
        "opportunistic (at once).",
    )
    serial_bundle_max_requests_per_call: int = Field(
        64, ge=1, le=64, description="comparisons. Largest bundle, whatever a hint prefers."
    )
    enable_llm_batching_metadata_hints: bool = Field(
        True, description="whether preferred_bundle_size (by default the wave's size) decides the size of bundles."
    )
    preferred_bundle_size: int | float | str | bool | None = Field(
        None,
        description="comparisons, 1 to 64: the bundle size to prefer; unset: the wave's size, at most 64. Anything "
        "else is ignored with a warning.",
    )
    judge_requests_per_minute: int | None = Field(
        None, ge=1, description="calls per minute this program allows itself; unset: what the provider's headers say."
    )
    judge_tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens per minute it allows itself; unset: what the provider's headers say."
    )
    breaker_failures: int = Field(
        8,
        ge=1,
        description="provider faults (overload, 5xx, timeout, lost connection, rate limit) in a row, without a "
        "judgment between them, after which the run ends and waits.",
    )
    breaker_pause_seconds: float = Field(
        60.0,
        gt=0,
        description="seconds of the first such wait; each further one in a row doubles, up to 15 minutes.",
    )
    max_cost_usd: float | None = Field(
        None,
        gt=0,
        description="US dollars the batch may cost. A wall like the budget: no call is sent that could exceed it.",
    )
    llm_max_tokens: int | None = Field(
        None, ge=64, description="output tokens per call, reasoning included; unset: enough for the model's reasoning."
    )
    llm_temperature: float | None = Field(
        None, ge=0, le=2, description="sampling temperature, where the model has one; unset: the model's own."
    )
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = Field(
        None, description="how much the model reasons, where it can; unset: the model's own."
    )
    output_verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="how much the model writes (GPT-5 family); unset: the model's own."
    )
    thinking_budget_tokens: int | None = Field(
        None, ge=1024, description="tokens of reasoning for Claude models that take a budget."
    )
    system_prompt: str | None = Field(
        None, min_length=1, description="who the judge is to be; wins over the assignment's. Usually given per batch."
    )
    judge_rubric: str | None = Field(
        None, min_length=1, description="what makes an essay better; wins over the assignment's. Usually per batch."
    )
    student_prompt: str | None = Field(
        None, min_length=1, description="what the students were asked; wins over the assignment's. Usually per batch."
    )
    system_prompt_name: str | None = Field(
        None, min_length=1, max_length=128, description="what reports call system_prompt, e.g. 003_language_control."
    )
    judge_rubric_name: str | None = Field(
        None, min_length=1, max_length=128, description="what reports call judge_rubric, e.g. 003_language_control."
    )

    @field_validator("preferred_bundle_size", mode="before")
    @classmethod
    def _number_if_it_is_one(cls, value: Any) -> Any:
        # the environment knows only text
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


class BatchOverrides(BaseModel):
    """What a batch may bring along; stored with it and winning over the environment. Unset fields are None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_comparisons: int | None = Field(None, ge=1, description="comparisons: the batch's budget")
    comparisons_per_stability_check_iteration: int | None = Field(None, ge=1)
    min_comparisons_for_stability_check: int | None = Field(None, ge=1)
    score_stability_threshold: float | None = Field(None, ge=0)
    stop_rule: StopRule | None = None
    min_success_rate_threshold: float | None = Field(None, ge=0, le=1)
    min_resampling_net_size: int | None = Field(None, ge=0)
    max_resampling_passes_for_small_net: int | None = Field(None, ge=0)
    bt_mean_se_warn_threshold: float | None = Field(None, gt=0)
    bt_max_se_warn_threshold: float | None = Field(None, gt=0)
    bt_min_mean_comparisons_per_item: float | None = Field(None, ge=0)
    bt_max_isolated_items_tolerated: int | None = Field(None, ge=0)
    bt_standard_error_max: float | None = Field(None, gt=0)
    enable_comparison_position_balancing: bool | None = None
    pair_design: PairDesign | None = None
    pair_generation_seed: int | None = Field(None, ge=0)
    max_judgment_attempts: int | None = Field(None, ge=1, le=20)
    judge_concurrency: int | None = Field(None, ge=1, le=1024)
    batch_timeout_hours: float | None = Field(None, gt=0)
    judgment_timeout_seconds: float | None = Field(None, gt=0)
    llm_batching_mode: BatchingMode | None = None
    batch_api_mode: BatchApiMode | None = None
    serial_bundle_max_requests_per_call: int | None = Field(None, ge=1, le=64)
    enable_llm_batching_metadata_hints: bool | None = None
    preferred_bundle_size: int | float | str | bool | None = None
    judge_requests_per_minute: int | None = Field(None, ge=1)
    judge_tokens_per_minute: int | None = Field(None, ge=1)
    breaker_failures: int | None = Field(None, ge=1)
    breaker_pause_seconds: float | None = Field(None, gt=0)
    max_cost_usd: float | None = Field(None, gt=0)
    llm_max_tokens: int | None = Field(None, ge=64)
    llm_temperature: float | None = Field(None, ge=0, le=2)
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = None
    output_verbosity: Literal["low", "medium", "high"] | None = None
    thinking_budget_tokens: int | None = Field(None, ge=1024)
    system_prompt: str | None = Field(None, min_length=1)
    judge_rubric: str | None = Field(None, min_length=1)
    student_prompt: str | None = Field(None, min_length=1)
    system_prompt_name: str | None = Field(None, min_length=1, max_length=128)
    judge_rubric_name: str | None = Field(None, min_length=1, max_length=128)

    def stated(self) -> dict[str, Any]:
        """The fields that were given, without the budget (which the batch holds as `total_budget`)."""
        return self.model_dump(exclude_none=True, exclude={"max_comparisons"})


class CJSettings(BaseSettings, BatchTunables):
    """All settings. Construct through `load_settings` so that a bad value becomes an `InputError`."""

    model_config = SettingsConfigDict(env_prefix="CJ_", extra="ignore", frozen=True)

    max_pairwise_comparisons: int = Field(
        1000,
        ge=1,
        description="comparisons. Cap of any batch's budget, and the budget of one that names none.",
    )
    waves_per_run: int | None = Field(
        None, ge=1, description="waves one run may add before it scores and publishes; unset: no limit."
    )
    seconds_per_run: float | None = Field(
        None, gt=0, description="seconds after which a run starts no further wave; unset: no limit."
    )
    lease_seconds: float = Field(
        30.0,
        gt=0,
        description="seconds. How long the right to write a batch outlives its holder's last sign of life.",
    )
    interrupt_grace_seconds: float = Field(
        20.0,
        ge=0,
        description="seconds an interrupted run waits for answers in flight before it gives them up.",
    )
    run_silence_minutes: float = Field(
        10.0,
        gt=0,
        description="minutes a started run may be without lease and event before it is reported failed.",
    )
    inbox_settle_seconds: float = Field(
        10.0, ge=0, description="seconds a folder in the inbox must be unchanged before it is taken."
    )
    simulated_latency: bool = Field(
        False, description="whether simulated judges wait as their profile says; off: they answer at once."
    )
    batch_api_night_window: str = Field(
        "22:00-06:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="HH:MM-HH:MM in BATCH_API_TIMEZONE. When nightly provider jobs may be submitted.",
    )
    batch_api_timezone: str = Field("Europe/Stockholm", description="IANA time zone of the night window.")
    batch_api_poll_seconds: float = Field(
        60.0, ge=1, description="seconds between two looks at a provider batch job that is out."
    )
    openai_compatible_base_url: str | None = Field(
        None,
        description="URL of an OpenAI-compatible server (vLLM, Ollama, llama.cpp, ...), for judges compatible/MODEL. "
        "From the environment only: no batch may say where essays are sent.",
    )
    enforce_targets: bool = Field(
        False,
        description="whether a missed alignment target (judge against experts) fails the batch's run and makes "
        "`cj eng5` exit non-zero, instead of only being told; --enforce-targets does the latter for one command.",
    )
    nightly_calibration: Literal["on", "off"] = Field(
        "off",
        description="whether the schedules eng5_nightly_calibration (03:00 UTC) and eng5_calibration_watch (09:00 UTC) "
        "run where nobody has switched them in the UI. Read when the definitions are loaded.",
    )
    calibration_assignment: str = Field(
        "eng5-np-2016", min_length=1, description="assignment whose anchors are judged every night."
    )
    calibration_judge: str = Field(
        "eng5-anchor", min_length=1, description="judge of the nights: PROVIDER/MODEL, or a simulated one."
    )
    calibration_reasoning_effort: Literal["none", "low", "medium", "high"] | None = Field(
        None, description="how much the judge of the nights reasons; unset: REASONING_EFFORT."
    )
    calibration_output_verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="how much the judge of the nights writes; unset: OUTPUT_VERBOSITY."
    )
    calibration_max_comparisons: int = Field(
        150,
        ge=1,
        description="comparisons. Budget of a night, all of which it uses: with 12 anchors 150 know each to some 0.6 "
        "logits.",
    )
    calibration_max_cost_usd: float | None = Field(
        2.0,
        gt=0,
        description="US dollars one night may cost. A judge without a known price cannot be limited, and so not run.",
    )
    calibration_month_usd: float = Field(
        40.0,
        ge=0,
        description="US dollars all calibration batches of a calendar month (UTC) may cost, tonight's included. "
        "A night that could exceed it is skipped, with the figures.",
    )
    calibration_sigmas: float = Field(
        3.0,
        gt=0,
        le=8,
        description="standard deviations beyond which a night's figure is out of control; all anchors together raise "
        "as few false alarms as one figure.",
    )
    calibration_from: date | None = Field(
        None,
        description="YYYY-MM-DD, the first night that the history looks at; set it once a change of the judge has been "
        "looked into and accepted. Unset: all.",
    )
    data_dir: Path = Field(_DEFAULT_DATA_DIR, description="folder with inputs/ and outputs/; relative to the project.")
    eng5_assets_dir: Path | None = Field(
        None,
        description="folder with the ENG5 material (instructions, prompt, anchors, students, grade table), relative to "
        "the project; unset: DATA_DIR/inputs/eng5_np/ROLE_MODELS_ENG5_NP_2016, written for this project. Real scripts "
        "are confidential and belong outside the repository.",
    )
    ledger_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the ledger; unset: SQLite at DATA_DIR/outputs/ledger.sqlite. "
        "PostgreSQL: postgresql+psycopg2://...",
    )
    lake_url: str | None = Field(
        None, description="folder or fsspec URL of the asset outputs (Parquet); unset: DATA_DIR/outputs/lake."
    )
    log_format: Literal["console", "json"] = Field("console", description="console for people, json for machines.")

    @field_validator("calibration_assignment")
    @classmethod
    def _usable_as_a_folder(cls, value: str) -> str:
        if not re.fullmatch(BATCH_ID_PATTERN, value):
            raise ValueError("is not an assignment's id: 1 to 64 letters, digits, '_' or '-'")
        return value

    @field_validator("batch_api_timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, ZoneInfoNotFoundError):
            raise ValueError("is not an IANA time zone, e.g. Europe/Stockholm") from None
        return value

    @property
    def prices_path(self) -> Path:
        """Where the judges' prices are written down."""
        return self.data_dir / "inputs" / "prices.yaml"

    @property
    def outputs_dir(self) -> Path:
        """Where this machine's outputs go."""
        return self.data_dir / "outputs"

    @property
    def inbox_dir(self) -> Path:
        """Where a dropped batch folder is picked up."""
        return self.data_dir / "inputs" / "inbox"

    @property
    def effective_eng5_assets_dir(self) -> Path:
        """The folder with the ENG5 material, the default filled in."""
        return self.eng5_assets_dir or self.data_dir / "inputs" / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016"

    @property
    def calibration_dir(self) -> Path:
        """Where the anchor bank and the calibration history of the configured assignment are written."""
        return self.outputs_dir / "eng5" / "calibration" / self.calibration_assignment

    @property
    def prompt_variants_dir(self) -> Path:
        """Where the prompt variants of alignment runs are."""
        return self.data_dir / "inputs" / "prompts"

    @property
    def effective_ledger_url(self) -> str:
        """The ledger's SQLAlchemy URL, the default filled in."""
        if self.ledger_url:
            return self.ledger_url
        return f"sqlite:///{(self.outputs_dir / 'ledger.sqlite').resolve()}"

    @property
    def effective_lake_url(self) -> str:
        """The lake's folder or URL, the default filled in."""
        return self.lake_url or str((self.outputs_dir / "lake").resolve())

    @property
    def graph_path(self) -> Path:
        """The DuckDB file that analysts open."""
        return self.outputs_dir / "comparison_graph.duckdb"


def project_home() -> Path:
    """The folder that relative paths start from: DAGSTER_HOME, else the nearest with a dagster.yaml, else this one."""
    stated = os.environ.get("DAGSTER_HOME")
    if stated:
        return Path(stated)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dagster.yaml").is_file()), here)


def load_settings(**overrides: Any) -> CJSettings:
    """Read the settings from the environment and the project's `.env`; relative folders start at `project_home`.

    Args:
        overrides: values that win over the environment, by field name (for tests and command-line options).

    Raises:
        InputError: naming each variable that does not validate, without echoing its value.
    """
    home = project_home()
    try:
        settings = CJSettings(_env_file=home / ".env", **overrides)
    except ValidationError as error:
        lines = [f"CJ_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        raise InputError("settings: " + "; ".join(lines)) from None
    folders = {"data_dir": settings.data_dir, "eng5_assets_dir": settings.eng5_assets_dir}
    relative = {name: home / folder for name, folder in folders.items() if folder and not folder.is_absolute()}
    if not relative:
        return settings
    stated = settings.model_fields_set
    resolved = settings.model_copy(update=relative)
    # a copy counts the updated field as stated, which `cj settings` would show as coming from the environment
    resolved.__pydantic_fields_set__.intersection_update(stated)
    return resolved


def nightly_calibration_is_on() -> bool:
    """Whether the nightly schedules are to be on by default; also off where a setting does not validate.

    Whoever needs the other settings will say which: definitions must load all the same, or nothing could be shown.
    """
    try:
        return load_settings().nightly_calibration == "on"
    except InputError:
        return False


def parse_overrides(raw: Mapping[str, Any], *, where: str) -> BatchOverrides:
    """Validate a batch's overrides.

    Args:
        raw: field name (lower case) to value.
        where: the file or command they came from, for the message.

    Raises:
        InputError: naming `where`, each field and what is wrong with it.
    """
    try:
        return BatchOverrides.model_validate(dict(raw))
    except ValidationError as error:
        known = ", ".join(sorted(BatchOverrides.model_fields))
        lines = [
            f"{where}: override {'.'.join(map(str, e['loc']))}: {e['msg']}"
            + (f" (known: {known})" if e["type"] == "extra_forbidden" else "")
            for e in error.errors()
        ]
        raise InputError("; ".join(lines)) from None


def effective_tunables(settings: CJSettings, overrides: BatchOverrides) -> BatchTunables:
    """The settings of one batch: the environment's, with what the batch brought laid over them."""
    base = {name: getattr(settings, name) for name in BatchTunables.model_fields}
    return BatchTunables(**{**base, **overrides.stated()})


def resolve_budget(settings: CJSettings, overrides: BatchOverrides) -> int:
    """The `total_budget` of a batch at submission.

    Raises:
        InputError: if the batch asks for more than the cap of any batch's budget.
    """
    asked = overrides.max_comparisons
    if asked is None:
        return settings.max_pairwise_comparisons
    if asked > settings.max_pairwise_comparisons:
        raise InputError(
            f"max_comparisons {asked} is above CJ_MAX_PAIRWISE_COMPARISONS {settings.max_pairwise_comparisons}, "
            "the cap of any batch's budget: ask for less, or raise the cap"
        )
    return asked


def setting_sources(settings: CJSettings) -> list[tuple[str, Any, str, str]]:
    """Each setting as (variable, value, source, description); source is `environment` or `default`."""
    rows = []
    for name, field in CJSettings.model_fields.items():
        source = "environment" if name in settings.model_fields_set else "default"
        rows.append((f"CJ_{name.upper()}", getattr(settings, name), source, field.description or ""))
    return rows
