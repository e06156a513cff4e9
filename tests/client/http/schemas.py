"""As much of JSON Schema as openapi.json has."""

from __future__ import annotations

from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}
_TYPES["null"] = type(None)
_WORDS = {"type", "required", "properties", "additionalProperties", "items", "minItems", "minimum", "exclusiveMinimum"}
_WORDS |= {"anyOf", "enum", "const", "$ref", "description", "default"}


def faults(value: Any, schema: dict[str, Any], api: dict[str, Any], place: str = "$") -> list[str]:
    """What of the value the schema does not allow. Fields that it does not name are faults, too."""
    assert set(schema) <= _WORDS, set(schema) - _WORDS
    if "$ref" in schema:
        return faults(value, api["components"]["schemas"][schema["$ref"].rpartition("/")[2]], api, place)
    if "anyOf" in schema:
        found = [faults(value, each, api, place) for each in schema["anyOf"]]
        return [] if [] in found else found[0]
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return [] if value in allowed else [f"{place} is not one of {allowed}"]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is(value, each) for each in types):
        return [f"{place} is a {type(value).__name__}"]
    return _inner_faults(value, schema, api, place)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _inner_faults(value: Any, schema: dict[str, Any], api: dict[str, Any], place: str) -> list[str]:
    found = []
    if isinstance(value, dict) and (schema.get("properties") or schema.get("additionalProperties")):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        found += [f"{place} lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, field in value.items():
            inner = known.get(name, others)
            found += faults(field, inner, api, f"{place}.{name}") if inner else [f"{place}.{name} is not described"]
    elif isinstance(value, list):
        found += [f"{place} is too short"] * (len(value) < schema.get("minItems", 0))
        for index, each in enumerate(value):
            found += faults(each, schema["items"], api, f"{place}[{index}]")
    elif isinstance(value, int | float):
        found += [f"{place} is too small"] * (value < schema.get("minimum", value))
    return found
