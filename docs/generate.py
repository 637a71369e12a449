"""Write docs/schema.json and docs/configuration.md from the models: `python -m docs.generate`.

Names, types, bounds and defaults are the models'; meanings are the strings under their fields.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.kinds import Whitening
from pe_ray.plugins.registry import BUILT_IN
from pe_ray.tuning.search import TuningConfig

PAGE = Path(__file__).with_name("configuration.md")
SCHEMA = Path(__file__).with_name("schema.json")

Tree = dict[str, Any]

_HEAD = """\
# Configuration

<!-- Written by `python -m docs.generate`; change the models, not this page. -->

One YAML file is one run, made of the blocks below. An unknown key is an error, which names the
nearest known one. `pe-ray plan CONFIG` checks a file and says what it would cost;
`--set block.key=value` overrides a key on the command line. There is no default for epsilon, delta,
the privacy unit or where label fractions come from. `pipelines/` has complete files.

Values are read by the core schema of YAML 1.2: `yes`, `off`, `1:30` and dates are text, `1e-5` is a
number. `true`, `false` and numbers are text only in quotes. A number that begins with a zero (010,
0x10) is refused, as it may be octal. In every path a leading ~ is the home folder; what a run
publishes keeps the text as it is written.

A run continues only with the configuration that it was started with; another value is refused.
Exceptions are `resources`, `metrics`, `private.node_label`, `private.cache`, `output.ledger`,
`privacy.account`, `privacy.spender` and the options that generators.md names. The files that it
names must stay the same too (storage.md). Until a run has made or spent anything, it starts again
with the new values.

A stored label is matched with `labels` by name. Text is a name, and a file that carries class
names (a ClassLabel, `classes.json`) says what its integers mean. Other integers are names if all of
`labels` are numbers, and positions only with `label_values: position`; else they are refused.
storage.md says what is read, and what is done to each kind of image.

`docs/schema.json` describes the same keys to editors that complete YAML (VS Code with the YAML
extension, Neovim and others with yaml-language-server). The first line of a file names the schema:

```
# yaml-language-server: $schema=../docs/schema.json
```

The path is relative to the file; write it as your file needs it. Options of plugins from outside
the package (`kind: module:Class`) are not in the schema; `pe-ray plan` checks them.

```yaml
private: {data: sklearn:digits, labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}
generator: {kind: rendered_text, image_size: 28}
embedder: {kind: pixels}
schedule: {iterations: 4, num_samples: 1000, degrees: {start: 0.5, end: 0.2}}
privacy: {epsilon: 1.0, delta: 1.0e-4, unit: record, label_fractions: uniform}
output: {path: runs/first}
```
"""
_PLUGINS: dict[plugins.PluginType, str] = {
    "generator": "`generator: {kind: KIND, ...}`. What draws and varies images.",
    "embedder": "`embedder: {kind: KIND, ...}`. What tells how alike two images are.",
    "metric": "An entry of `metrics.public.metrics` or `metrics.audit`: `{kind: KIND, ...}`. "
    "How good a synthetic set is.",
    "denoiser": "`selection.denoise: {kind: KIND, ...}`. How noisy counts become weights.",
    "tuning_strategy": "`tuning.strategy: {kind: KIND, ...}`. How a search is paid for.",
    "tuning_objective": "`tuning.objective: {kind: KIND, ...}`. How a trial is scored.",
}
_TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
    "minItems": "at least",
}


class ConfigFile(Config):
    """One run, and what `pe-ray tune` searches."""

    tuning: TuningConfig | None = None


def schema() -> Tree:
    """Return the JSON schema of a configuration file, every built-in plugin's options included."""
    made = ConfigFile.model_json_schema()
    for plugin_type in _PLUGINS:
        kinds = [_kind(made["$defs"], plugin_type, kind) for kind in BUILT_IN[plugin_type]]
        free = [each["title"] for each in kinds if each["required"] == ["kind"]]
        other = {"kind": {"type": "string", "pattern": ":", "description": "module:Class"}}
        kinds.append({"type": "object", "properties": other, "required": ["kind"]})
        named = {"anyOf": [{"enum": free}, {"type": "string", "pattern": ":"}]}
        made["$defs"][plugin_type] = {"anyOf": [*kinds, named]}
    text = json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **made})
    for plugin_type in _PLUGINS:  # what PluginOf leaves to fill in
        text = text.replace(f'"plugin_type": "{plugin_type}"', f'"$ref": "#/$defs/{plugin_type}"')
    filled: Tree = json.loads(text)
    return filled


def _kind(definitions: Tree, plugin_type: plugins.PluginType, kind: str) -> Tree:
    """Return the schema of one kind's mapping; put the models in it into `definitions`."""
    loaded = plugins.load(plugin_type, kind)
    prefix = f"{plugin_type}.{kind}"
    template = f"#/$defs/{prefix}.{{model}}"
    own: Tree = plugins.options_of(loaded).model_json_schema(ref_template=template)
    definitions |= {f"{prefix}.{name}": below for name, below in own.pop("$defs", {}).items()}
    learnt = getattr(plugins.options_of(loaded), "learnt", None)
    if learnt is plugins.EmbedderOptions.learnt:  # others are whitened already
        definitions["Whitening"] = Whitening.model_json_schema()
        words = "Public images that it is whitened on (`embedder` and `teacher.embedder` only)."
        kinds = [{"$ref": "#/$defs/Whitening"}, {"type": "null"}]
        whiten = {"anyOf": kinds, "default": None, "description": words}
        own["properties"] = {**own.get("properties", {}), "whiten": whiten}
    return {
        **own,
        "title": kind,
        "description": inspect.getdoc(loaded) or "",
        "properties": {"kind": {"const": kind}, **own.get("properties", {})},
        "required": ["kind", *own.get("required", [])],
    }


def page(made: Tree) -> str:
    """Return the page as Markdown."""
    parts, seen = [_HEAD], set[str]()
    for name, field in made["properties"].items():
        parts += _nested_sections(made, field, f"## `{name}`", name, seen)
    for plugin_type, words in _PLUGINS.items():
        kinds = [each for each in made["$defs"][plugin_type]["anyOf"] if "title" in each]
        if kinds:
            parts.append(f"## Kinds of {plugin_type.replace('_', ' ')}\n\n{words}\n")
        for kind in kinds:
            parts += _sections(made, kind, f"### `{kind['title']}`", kind["title"], seen)
    return "\n".join(parts)


def _sections(made: Tree, model: Tree, heading: str, path: str, seen: set[str]) -> list[str]:
    """Return the section of one model, then those of the models in its fields."""
    fields = {name: each for name, each in model.get("properties", {}).items() if name != "kind"}
    kind = model.get("properties", {}).get("kind", {}).get("const")
    heading += f", kind `{kind}`" if kind and kind != path else ""
    rows = [_row(made, name, field, model) for name, field in fields.items()]
    table = "| key | value | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    found = [f"{heading}\n\n{model.get('description', '')}\n\n{table if rows else 'No options.'}\n"]
    for name, field in fields.items():
        place = f"{path}.{name}"
        found += _nested_sections(made, field, f"### `{place}`", place, seen)
    return found


def _nested_sections(made: Tree, field: Tree, heading: str, path: str, seen: set[str]) -> list[str]:
    """Return sections of the models that a field's value is made of; each model has one only."""
    name = field.get("$ref", "").removeprefix("#/$defs/")
    if name and name not in seen and name not in _PLUGINS:
        seen.add(name)
        return _sections(made, made["$defs"][name], heading, path, seen)
    below = [*field.get("anyOf", ()), *field.get("oneOf", ())]
    below += [field[key] for key in ("items", "additionalProperties") if field.get(key)]
    return [part for each in below for part in _nested_sections(made, each, heading, path, seen)]


def _row(made: Tree, name: str, field: Tree, model: Tree) -> str:
    default = field.get("default")
    shown = f"`{json.dumps(default)}`" if "default" in field else "see there"
    if isinstance(default, dict) and default:
        shown = "see there"
    if name in model.get("required", ()):
        shown = "**required**"
    words = " ".join(field.get("description", "").split())
    cells = (f"`{name}`", _type(made, field), shown, words)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(made: Tree, field: Tree) -> str:
    """Return the values that a field takes, in words."""
    if "$ref" in field:
        name = field["$ref"].removeprefix("#/$defs/")
        model = made["$defs"][name]
        return "`{kind: ..., ...}`" if name in _PLUGINS else f"{{{', '.join(model['properties'])}}}"
    branches = field.get("anyOf") or field.get("oneOf")
    if branches:
        return " or ".join(dict.fromkeys(_type(made, each) for each in branches))
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"[{', '.join(_type(made, each) for each in field['prefixItems'])}]"
    words = _TYPES.get(field.get("type", "anything"), field.get("type", "anything"))
    if words == "array":
        words = f"list of {_type(made, field.get('items', {}))}"
    if words == "object":
        words = f"mapping of names to {_type(made, field.get('additionalProperties') or {})}"
    bounds = [f"{bound} {field[key]}" for key, bound in _BOUNDS.items() if key in field]
    return f"{words} ({', '.join(bounds)})" if bounds else words


if __name__ == "__main__":
    made = schema()
    SCHEMA.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(made), encoding="utf-8")
    print(PAGE, SCHEMA)
