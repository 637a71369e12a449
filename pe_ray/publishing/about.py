"""What only the publisher knows of a data set: `pe-ray publish --about FILE`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from pe_ray.config.yaml_tree import name_faults, read_tree
from pe_ray.files.storage import GivenPath
from pe_ray.plugins import Options

Sector = Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"]


class About(Options):
    """Keys of the file, all optional. A card leaves out, or says so, what is not given.

    Most have the names and meanings of the public registry of deployments.
    """

    name: str | None = None
    """Title of the data set; otherwise the run folder's name."""
    license: str | None = None
    """Identifier of the licence, as Hugging Face lists them."""
    description: str | None = None
    """What the images show, and of which private data they are."""
    intended_use: str | None = None
    """What the set is meant for, and what not."""
    data_curators: tuple[str, ...] = ()
    """Who publishes it."""
    data_product_region: str | None = None
    """Whose data, under which law."""
    data_product_sector: Sector | None = None
    """One of the registry's sectors."""
    publication_date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """As YYYY-MM-DD."""
    registry_authors: tuple[str, ...] = ()
    """Who fills in the registry's record."""
    preprocessing: str | None = None
    """How the private data were looked at, or used for choices, before and outside of this run."""
    justification: str | None = None
    """Why epsilon, delta and the unit were chosen so."""
    access_control: str | None = None
    """How the private data and the machines of the run are secured, and who has access."""
    data_collection: str | None = None
    """How the private data were collected, and who else holds them."""


def read_about(path: GivenPath | None) -> About:
    """Read the file of `--about`; InputError names all wrong keys."""
    tree = {} if path is None else read_tree(path)
    try:
        return About.model_validate(tree)
    except ValidationError as error:
        raise name_faults(error, tree, f"--about {path}: ") from None
