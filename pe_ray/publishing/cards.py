"""What a published set says about itself: to people, to data set tools and to privacy reviewers.

Every figure is the ledger's, the configuration's or a score against public images.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pe_ray.publishing.about import About
from pe_ray.report.facts import Facts
from pe_ray.synthetic.scoring import read_scores

Tree = dict[str, Any]
_CONTEXT = "templates/croissant_context.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """One parquet file of the set. name: relative to its folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSet:
    """What the cards are about.

    num_images: rows of all `data`. expanded: whether they are variations of the final population.
    marked: whether each image carries the mark.
    """

    facts: Facts
    about: About
    data: tuple[PublishedFile, ...]
    num_images: int
    expanded: bool
    marked: bool

    @property
    def title(self) -> str:
        return self.about.name or self.facts.run.path.name

    @property
    def summary(self) -> str:
        shape, labels = self.facts.config.image_shape, self.facts.config.private.labels
        return (
            f"{self.num_images:,} synthetic images of {shape.width}x{shape.height} pixels with "
            f"{len(labels)} labels, made by Private Evolution. {self.claim}"
        )

    @property
    def claim(self) -> str:
        budget = self.facts.budget
        return (
            f"(epsilon = {self.facts.spent:.6g}, delta = {budget.delta:g})-differentially private "
            f"for adding or removing {self.neighbours}."
        )

    @property
    def neighbours(self) -> str:
        """What two neighbouring data sets differ in."""
        if self.facts.budget.unit == "user":
            return "all records of one user, over all labels"
        return "one record, whatever its label"


def describe_privacy(made: PublishedSet) -> Tree:
    """Return privacy_card.json.

    Its head is what `pe-ray ledger --json` prints. `registry` is a record for the registry of
    deployments (registry.opendp.org, schema of 2026), without the fields that `--about` lacks.
    `nist_sp_800_226` answers the questions of that guideline; null: not stated by the publisher.
    """
    facts, about = made.facts, made.about
    releases = [
        {**entry.release.as_tree(), "state": entry.state, "committed_at": entry.committed_at}
        for entry in facts.entries
    ]
    answers = _answer(made)
    return {
        "epsilon": facts.spent,
        "delta": facts.budget.delta,
        "unit": facts.budget.unit,
        "neighbouring_relation": answers["neighbouring_relation"],
        "budget_epsilon": facts.budget.epsilon,
        "accounting": facts.ledger.accounting,
        "releases": releases,
        "registry": _drop_missing(_fill_in_record(made, answers)),
        "nist_sp_800_226": {
            **answers,
            "utility_and_bias": _describe_utility(made),
            "security_and_access_control": about.access_control,
            "data_collection_exposure": about.data_collection,
        },
    }


def _answer(made: PublishedSet) -> dict[str, str]:
    """Answer what the configuration and the ledger know, once for both forms."""
    facts = made.facts
    unit, budget = facts.budget.unit, facts.budget
    composition = {
        "fixed": "the privacy loss distributions of the discrete mechanism, with pessimistic "
        "rounding (dp_accounting)",
        "adaptive": "a Gaussian-DP filter, as the releases of a search depend on earlier ones",
    }[facts.ledger.accounting]
    return {
        "privacy_parameters": f"epsilon {facts.spent:.6g}, delta {budget.delta:g}: an upper bound, "
        "computed from the ledger of all releases.",
        "unit_of_privacy": "All records of one user, as the private data's user column names them."
        if unit == "user"
        else "One record: an image with its label.",
        "neighbouring_relation": f"Unbounded: data sets that differ by {made.neighbours}, added or "
        "removed. To replace one is two steps.",
        "mechanism": "Exact discrete Gaussian noise (Canonne, Kamath, Steinke 2020) from the "
        "operating system's entropy, added to histograms of votes (each unit adds at most "
        "sensitivity^2 ones to different bins) and to sums of clipped vectors. "
        f"By pe_ray {version('pe_ray')}.",
        "composition": f"{len(facts.entries)} releases, reservations included, by {composition}.",
        "post_processing": "Denoising, selection, variation and labelling use released values "
        "only; so do further variations of the final population.",
        "trust_model": "Central. Whoever runs the job, root on its machines and Ray's workers see "
        "the private records and are trusted with them, as is an embedder that reads them. "
        "Generators and the services behind them see released values. Readers of what is published "
        "are trusted with nothing: they may know the code, the configuration, all seeds and all "
        "records but one unit's.",
        "side_channels": "The noise is exact integer arithmetic, so attacks on floating-point "
        "noise don't apply. Timing isn't protected: the ledger's times tell roughly how long an "
        "iteration took, which depends on the number of records.",
        "unprotected_quantities": "The configuration, the names of the labels, timing, and "
        "whatever was chosen by looking at the private data outside of the ledger.",
    }


def _describe_utility(made: PublishedSet) -> str:
    scores = read_final_scores(made)
    told = ", ".join(f"{name} {value:.6g}" for name, value in scores.items())
    return (
        (f"Final population against public images: {told}. " if told else "No score was released. ")
        + "Noise weighs most on labels and kinds of images with few records; the generator's own "
        "biases remain."
    )


def read_final_scores(made: PublishedSet) -> dict[str, float]:
    """Return the released scores of S_T, by name; empty without `metrics.public`."""
    facts = made.facts
    return read_scores(facts.run.scores(facts.config.schedule.iterations)) or {}


def _fill_in_record(made: PublishedSet, answers: dict[str, str]) -> Tree:
    facts, about = made.facts, made.about
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", made.title.lower()).strip("-"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": {
                "name": made.title,
                "data_curators": list(about.data_curators) or None,
                "intended_use": about.intended_use,
                "data_product_type": "Synthetic data",
                "data_product_region": about.data_product_region,
                "description": about.description or made.summary,
                "publication_date": about.publication_date,
                "data_product_sector": about.data_product_sector,
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": "Sets of images, each with one of the declared labels.",
                "unprotected_quantities": answers["unprotected_quantities"],
            },
            "privacy_loss": {
                "privacy_unit": f"{facts.budget.unit}-level",
                "privacy_unit_details": f"{answers['unit_of_privacy']} "
                f"{answers['neighbouring_relation']}",
                "privacy_parameters": {"epsilon": facts.spent, "delta": facts.budget.delta},
                "privacy_parameters_details": answers["privacy_parameters"],
            },
            "deployment_model": {
                "model_name": "Central",
                "actors": answers["trust_model"],
                "release_type": "One release",
                "release_type_details": "Other publications on the same records add up with it.",
                "data_source_type": "Static",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "post_processing": answers["post_processing"],
                "composition": answers["composition"],
            },
            "implementation": {
                "preprocessing_and_hyperparameter_tuning": about.preprocessing,
                "mechanisms": f"{answers['mechanism']} {answers['side_channels']}",
                "justification": about.justification,
            },
            "administrative": {"registry_authors": list(about.registry_authors)}
            if about.registry_authors
            else None,
        },
    }


def _drop_missing(tree: Tree) -> Tree:
    return {
        name: _drop_missing(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if value is not None
    }


def describe_data(made: PublishedSet) -> Tree:
    """Return croissant.json: the set as ML Commons' Croissant 1.0 describes one."""
    about = made.about
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": file.name,
            "name": file.name,
            "contentUrl": file.name,
            "contentSize": f"{file.num_bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": file.sha256,
        }
        for file in made.data
    ]
    labels = made.facts.config.private.labels
    return _drop_missing(
        {
            "@context": json.loads(files("pe_ray.publishing").joinpath(_CONTEXT).read_bytes()),
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": made.title,
            "description": about.description or made.summary,
            "license": about.license,
            "creator": [{"@type": "sc:Organization", "name": name} for name in about.data_curators]
            or None,
            "datePublished": about.publication_date,
            "distribution": [
                *objects,
                {
                    "@type": "cr:FileSet",
                    "@id": "data",
                    "encodingFormat": "application/x-parquet",
                    "includes": "data/*.parquet",
                },
            ],
            "recordSet": [
                {
                    "@type": "cr:RecordSet",
                    "@id": "labels",
                    "dataType": "sc:Enumeration",
                    "key": {"@id": "labels/id"},
                    "field": [
                        _field("labels/id", "sc:Integer"),
                        _field("labels/name", "sc:Text"),
                    ],
                    "data": [
                        {"labels/id": number, "labels/name": name}
                        for number, name in enumerate(labels)
                    ],
                },
                {
                    "@type": "cr:RecordSet",
                    "@id": "images",
                    "description": made.summary,
                    "field": [
                        _field("images/image", "sc:ImageObject")
                        | _source("image", transform={"jsonPath": "bytes"}),
                        _field("images/label", "sc:Integer")
                        | _source("label")
                        | {"references": {"field": {"@id": "labels/id"}}},
                    ],
                },
            ],
        }
    )


def _field(name: str, kind: str) -> Tree:
    return {"@type": "cr:Field", "@id": name, "dataType": kind}


def _source(column: str, **more: Any) -> Tree:
    return {"source": {"fileSet": {"@id": "data"}, "extract": {"column": column}, **more}}


def render_readme(made: PublishedSet) -> str:
    """Return README.md, with the front matter that Hugging Face reads."""
    about, config = made.about, made.facts.config
    head = {
        "pretty_name": made.title,
        **({"license": about.license} if about.license else {}),
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "differential-privacy", "private-evolution"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*"}],
            }
        ],
    }
    templates = Environment(
        loader=PackageLoader("pe_ray.publishing"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("README.md").render(
        made=made,
        about=about,
        config=config,
        generator=config.generator_at(config.schedule.iterations),
        scores=read_final_scores(made),
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        labels=json.dumps(config.private.labels, ensure_ascii=False),
        version=version("pe_ray"),
    )
