"""Which JSON schemas the providers' structured outputs accept, as their documentation and their errors say."""

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
Place = tuple[str, ...]

_ANTHROPIC_ANYWHERE = frozenset(
    {"$defs", "$ref", "type", "anyOf", "allOf", "enum", "const", "description", "title", "default"}
)
_ANTHROPIC_BY_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems"}),
    "string": frozenset({"format"}),
    "integer": frozenset(),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_ANTHROPIC_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
_OPENAI_KEYWORDS = frozenset(
    {
        *("$schema", "$defs", "definitions", "$ref", "type", "anyOf", "enum", "const", "description", "title"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems", "pattern", "format"),
        *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)


def _subschemas(schema: Schema, place: Place = ()) -> Iterator[tuple[Place, Schema]]:
    """A schema and all schemas within it."""
    yield place, schema
    for holder in ("properties", "$defs", "definitions"):
        for name, inner in _as_dict(schema.get(holder)).items():
            yield from _subschemas(_as_dict(inner), (*place, holder, name))
    if isinstance(schema.get("items"), dict):
        yield from _subschemas(schema["items"], (*place, "items"))
    for holder in ("anyOf", "allOf"):
        for number, inner in enumerate(schema.get(holder) or ()):
            yield from _subschemas(_as_dict(inner), (*place, holder, str(number)))


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def anthropic_complaint(schema: object) -> str | None:
    """Why Anthropic would not take this schema as `output_config.format.schema`, or None."""
    if not isinstance(schema, dict) or not schema:
        return "Input should be a non-empty dictionary"
    for _, inner in _subschemas(schema):
        if complaint := _anthropic_complaint_about(inner):
            return complaint
    return None


def _anthropic_complaint_about(schema: Schema) -> str | None:
    if "$ref" in schema:
        return None
    stated = schema.get("type")
    types = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not types and not schema.keys() & {"anyOf", "allOf", "enum", "const", "oneOf"}:
        return "Schema must have a 'type', 'anyOf', 'allOf', 'enum' or 'const'"
    if unknown := [kind for kind in types if kind not in _ANTHROPIC_BY_TYPE]:
        return f"Invalid schema type: {unknown[0]!r}"
    if "oneOf" in schema:
        return "Schema type 'oneOf' is not supported"
    allowed = _ANTHROPIC_ANYWHERE.union(*(_ANTHROPIC_BY_TYPE[kind] for kind in types))
    if extra := sorted(schema.keys() - allowed):
        kind = types[0] if types else "any"
        if len(extra) == 1:
            return f"For '{kind}' type, property '{extra[0]}' is not supported"
        return f"For '{kind}' type, properties {', '.join(extra)} are not supported"
    if "object" in types and schema.get("additionalProperties") is not False:
        return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if schema.get("minItems", 0) not in (0, 1):
        return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if "format" in schema and schema["format"] not in _ANTHROPIC_FORMATS:
        return f"For 'string' type, format {schema['format']!r} is not supported"
    return None


def openai_complaint(name: object, schema: object) -> str | None:
    """Why OpenAI would not take this schema in strict mode, or None."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        return f"Invalid name {name!r}: expected 1 to 64 letters, digits, underscores and hyphens."
    where = f"Invalid schema for response_format '{name}': "
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return f"{where}schema must be a JSON Schema of 'type: \"object\"'."
    for place, inner in _subschemas(schema):
        if complaint := _openai_complaint_about(inner):
            return f"{where}In context={place}, {complaint}"
    return None


def _openai_complaint_about(schema: Schema) -> str | None:
    if extra := sorted(schema.keys() - _OPENAI_KEYWORDS):
        return f"'{extra[0]}' is not permitted."
    if not schema.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
        return "schema must have a 'type' key."
    if schema.get("type") != "object":
        return None
    if schema.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false."
    properties, required = _as_dict(schema.get("properties")), schema.get("required") or []
    if missing := [name for name in properties if name not in required]:
        return (
            "'required' is required to be supplied and to be an array including every key in properties. "
            f"Missing '{missing[0]}'."
        )
    if extra_required := [name for name in required if name not in properties]:
        return f"'required' has an extra key '{extra_required[0]}'."
    return None
