"""structlog set-up: one line per event, key=value for people or JSON for machines.

What may be logged: ids, counts, decisions, durations. Never essay text, justifications, prompts or keys.
"""

import logging
import sys
from typing import Any, Literal

import structlog


def configure_logging(log_format: Literal["console", "json"], *, level: int = logging.INFO) -> None:
    """Send structlog events to stderr in the given format. Safe to call again."""
    renderer: Any
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(sort_keys=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # looked up for each logger: whoever redirects standard error later gets its lines too
        logger_factory=lambda *_arguments: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def ensure_logging(log_format: Literal["console", "json"]) -> None:
    """Configure logging unless this process has done so already (a command chose its own level)."""
    if not structlog.is_configured():
        configure_logging(log_format)


def get_logger(**context: Any) -> Any:
    """A logger that adds `context` to each of its events."""
    return structlog.get_logger().bind(**context)
