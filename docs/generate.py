"""Writes docs/configuration.md from the configuration's models: `python -m docs.generate`.

Names, types, bounds and defaults are the models'; meanings are the docstrings under their fields.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pe_ray import config, plugins
from pe_ray.config import blocks

PAGE = Path(__file__).with_name("configuration.md")

_HEAD = """\
# Configuration

<!-- Written by `python -m docs.generate`; change the models, not this page. -->

One YAML file is one run, made of the blocks below. An unknown key is an error. `pe-ray plan CONFIG`
checks a file and says what it would cost; `--set block.key=value` overrides a key on the command
line. There is no default for epsilon, delta, the privacy unit or where label fractions come from.
`pipelines/` has complete files.

A run is bound to what it was started with, but for `resources`, `private.node_label`,
`private.cache`, `output.ledger`, `metrics.audit*` and what generators.md names: start it again with
another value and it is refused. Until it has made or spent anything, it starts anew instead.

```yaml
private: {data: sklearn:digits, labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}
generator: {kind: rendered_text, image_size: 28}
embedder: {kind: pixels}
schedule: {iterations: 4, num_samples: 1000, degrees: {start: 0.5, end: 0.2}}
privacy: {epsilon: 1.0, delta: 1.0e-4, unit: record, label_fractions: uniform}
output: {path: runs/first}
```
"""
_PLUGINS = {
    "generator": "`generator: {kind: KIND, ...}`. What draws and varies images.",
    "embedder": "`embedder: {kind: KIND, ...}`. What tells how alike two images are.",
    "metric": "An entry of `metrics.public.metrics` or `metrics.audit`: `{kind: KIND, ...}`. "
    "How good a synthetic set is.",
}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for name, field in config.Config.model_fields.items():
        model = _model_of(field.annotation)
        if model is not None and not issubclass(model, blocks.Plugin):
            parts.append(_section(f"## `{name}`", name, model))
    parts.append(_section("## `generator`, changing by iteration", "generator", blocks.Switch))
    for plugin_type, words in _PLUGINS.items():
        parts.append(f"## Kinds of {plugin_type}\n\n{words}\n")
        for kind, target in plugins.registered(plugin_type).items():  # type: ignore[arg-type]
            if target.startswith("pe_ray."):
                loaded = plugins.load(plugin_type, kind)  # type: ignore[arg-type]
                said = inspect.getdoc(loaded) or ""
                parts.append(_section(f"### `{kind}`", kind, loaded.Options, said))
    return "\n".join(parts)


def _section(heading: str, path: str, model: type[BaseModel], said: str | None = None) -> str:
    """One model, then those of its fields; `path` is where in the file it stands."""
    words = (said if said is not None else inspect.getdoc(model)) or ""
    rows = [_row(name, field, model) for name, field in model.model_fields.items()]
    table = "| key | value | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    parts = [f"{heading}\n\n{words}\n\n{table if rows else 'No options.'}\n"]
    for name, field in model.model_fields.items():
        for below in _models_in(field.annotation):
            parts.append(_section(f"### `{path}.{name}`", f"{path}.{name}", below))
    return "\n".join(parts)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's value may be made of; plugins have sections of their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, blocks.Plugin) else [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _row(name: str, field: FieldInfo, model: type[BaseModel]) -> str:
    kind = _type(field.annotation) + _bounds(field)
    default = "**required**" if field.is_required() else _default(field)
    said = " ".join(_said(model).get(name, "").split())
    cells = (f"`{name}`", kind, default, said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, blocks.Plugin):
        return f"`{{kind: {value.kind}}}`"
    if isinstance(value, BaseModel):
        return "see there"
    return f"`{json.dumps(value)}`"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return "[" + ", ".join(_type(argument) for argument in arguments) + "]"
    if origin in (dict, Mapping):
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, blocks.Plugin):
        return "`{kind: ..., ...}`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return _WORDS.get(annotation, "anything")


def _bounds(field: FieldInfo) -> str:
    words = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=value):
                words.append(f"at least {value}")
            case Gt(gt=value):
                words.append(f"above {value}")
            case Le(le=value):
                words.append(f"at most {value}")
            case Lt(lt=value):
                words.append(f"below {value}" if value != 2**63 else "below 2^63")
            case MinLen(min_length=value) | Len(min_length=value):
                words.append(f"at least {value} of them")
            case Interval():
                raise TypeError("an interval comes as its two bounds")
            case _:
                pass
    return f", {', '.join(words)}" if words else ""


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The one model that a block is (if it is given), None where it may be several."""
    given = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    is_model = len(given) == 1 and isinstance(given[0], type) and issubclass(given[0], BaseModel)
    return given[0] if is_model else None


@cache
def _said(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, the model's bases included."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if part.__module__.startswith("pe_ray."):
            body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
            assert isinstance(body, ast.ClassDef)
            for field, after in zip(body.body, body.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    found[field.target.id] = str(after.value.value)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
