"""The verb that makes a run public: publish."""

from __future__ import annotations

import argparse

from pe_ray.cli.printing import AddVerb, add_run, add_trust


def add_verbs(verb: AddVerb) -> None:
    """Add publish."""
    publish = verb(
        "publish",
        _publish,
        "Write a run as a data set with cards and checksums.",
        "runs/digits --output published/digits",
    )
    add_run(publish)
    publish.add_argument("--output", required=True, metavar="DIR", help="local folder to write")
    publish.add_argument(
        "--expansion", metavar="DIR", help="output of `pe-ray expand RUN`; default: the final set"
    )
    publish.add_argument("--about", metavar="FILE", help="YAML: license, intended_use and the like")
    publish.add_argument("--sign", metavar="KEY", help="SSH key to sign the checksums with")
    publish.add_argument(
        "--no-mark", action="store_true", help="leave out the images' mark of algorithmic media"
    )
    add_trust(publish)
    publish.add_argument(
        "--push", metavar="REPO", help="upload to this data set on Hugging Face's hub"
    )


def _publish(options: argparse.Namespace) -> None:
    from pe_ray.publishing.bundle import publish

    directory = publish(
        options.run,
        options.output,
        options.expansion,
        about=options.about,
        key=options.sign,
        mark=not options.no_mark,
        repo=options.push,
    )
    print(f"published   {directory}")
