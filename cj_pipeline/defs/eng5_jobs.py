"""The modes of the ENG5 programme as jobs, launched from the UI or by `dagster job execute`.

A job does what its mode's handler does. Modes that submit a batch end there: the batch is a partition then, and the
sensors take it up like any other; its artefact is the asset `assessment_run`. Not here: what a mode does
(`eng5.handlers`), nor the arguments of `cj eng5`.
"""

from datetime import UTC, datetime
from typing import Any, Final

from dagster import Config, JobDefinition, MetadataValue, OpExecutionContext, in_process_executor, job, op
from pydantic import create_model

from cj_pipeline.defs.partitions import add_partitions
from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.eng5.handlers import HANDLERS, Desk, ModeHandler, ModeOptions, Outcome


def _config(options: type[ModeOptions]) -> type[Config]:
    """A mode's options as the launchpad shows them, with the same descriptions and defaults."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in options.model_fields.items()}
    return create_model(f"{options.__name__}Config", __base__=Config, **fields)


def _mode_job(handler: ModeHandler[Any]) -> JobDefinition:
    name = "eng5_" + handler.mode.value.replace("-", "_")
    schema: Any = _config(handler.options).to_config_schema()

    @op(name=name, description=handler.__doc__, config_schema=schema)
    def run_mode(context: OpExecutionContext, cj: CJResource) -> None:
        stated = handler.options.model_validate(context.op_config)
        with plain_errors():
            done = handler.run(Desk(cj.settings(), cj.ledger, datetime.now(UTC)), stated)
        if done.submission is not None:
            add_partitions(context.instance, [done.batch_id])
        context.add_output_metadata(_metadata(done))

    @job(name=f"{name}_job", executor_def=in_process_executor, description=handler.__doc__)
    def mode_job() -> None:
        run_mode()

    return mode_job


def _metadata(done: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {
        "batch_id": done.batch_id,
        "correlation_id": done.correlation_id,
        "anchors": len(done.inventory.anchors),
        "students": len(done.inventory.students),
    }
    if done.plan is not None:
        told |= {"budget": done.plan.budget, "at_most_calls": done.plan.worst_case_calls, "judge": done.plan.judge}
        if done.plan.cost is not None:
            told["cost_at_budget_usd"] = done.plan.cost.at_budget
    if done.submission is not None:
        told |= {"budget": done.submission.total_budget, "judge": done.submission.judge}
        told["simulated"] = done.submission.simulated
    if done.path is not None:
        told["path"] = MetadataValue.path(str(done.path.resolve()))
    return told


ENG5_JOBS: Final[list[JobDefinition]] = [_mode_job(handler) for handler in HANDLERS]
