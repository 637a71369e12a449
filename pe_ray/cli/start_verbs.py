"""Verbs for the first minutes: init, completion."""

from __future__ import annotations

import argparse
import json
import re
from importlib.resources import files
from pathlib import Path

from pe_ray.cli.printing import AddVerb
from pe_ray.errors import InputError
from pe_ray.files.storage import expand_home

_KINDS = ("photos", "characters", "service")


def add_verbs(verb: AddVerb) -> None:
    """Add init and completion."""
    init = verb(
        "init",
        _init,
        "Write a configuration for your own images, with comments and places to fill in.",
        "mine.yaml --kind photos --data data/mine",
    )
    init.add_argument("config", metavar="CONFIG", type=Path, help="YAML file to write; a new one")
    init.add_argument(
        "--kind",
        choices=_KINDS,
        required=True,
        help="photos, from public images or a diffusion model; characters, from fonts; or what an "
        "image service draws",
    )
    init.add_argument("--data", metavar="PATH", help="the private images, for private.data")
    verb(
        "completion",
        _completion,
        "Print a script that completes verbs and options, for bash.",
        '> ~/.pe-ray-completion; echo "source ~/.pe-ray-completion" >> ~/.bashrc',
    )


def _init(options: argparse.Namespace) -> None:
    template = files("pe_ray.cli") / "templates" / f"{options.kind}.yaml"
    text, file = template.read_text(encoding="utf-8"), expand_home(options.config)
    text = text.replace("FILE", str(options.config))
    if options.data is not None:
        place = json.dumps(options.data, ensure_ascii=False)  # as YAML quotes, too
        text = re.sub(r"(?m)^  data: #.*", lambda _: f"  data: {place}", text, count=1)
    try:
        with file.open("x", encoding="utf-8") as sink:
            sink.write(text)
    except FileExistsError:
        raise InputError(f"{file}: is there already; give another name") from None
    except OSError as error:
        raise InputError(f"{file}: can't be written ({type(error).__name__})") from None
    print(f"written     {file}")
    print(f"fill in     {text.count('# FILL IN')} lines that say FILL IN")
    print(f"next        pe-ray plan {options.config}")


def _completion(options: argparse.Namespace) -> None:
    """Print a bash script that completes verbs and their options; other words are files."""
    cases = []
    for name, parser in options.verbs.items():
        words = sorted(set(re.findall(r"(?<![\w-])--?\w[\w-]*", parser.format_usage())))
        cases.append(f'    {name}) words="{" ".join(words)}" ;;')
    print(
        "_pe_ray() {",
        '  local words=""',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac",
        f'  [ "$COMP_CWORD" = 1 ] && words="{" ".join(options.verbs)}"',
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
        "}",
        "complete -o default -F _pe_ray pe-ray",
        sep="\n",
    )
