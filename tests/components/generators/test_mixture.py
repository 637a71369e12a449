"""Mixtures: who draws what, that samples keep their member, and who takes over when one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray import Config, InputError
from pe_ray.components.generators.mixture import Mixture, MixtureOptions
from pe_ray.config.extras import require_paths
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import list_parts
from pe_ray.plugins import load
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.ledger import Ledger
from pe_ray.synthetic.population_files import read_population

FONTS = {"kind": "rendered_text", "image_size": 12}
THIN = {**FONTS, "stroke": [0.06, 0.08]}
BLOBS = {"kind": "gaussians", "image_size": 12, "coefficients": 4, "share": 0.4}
NAMES = [str(digit) for digit in range(10)]
LABELS = (np.arange(400) % 10).astype(np.int32)
SEEDS = row_seeds(3, "random", 0, np.arange(400))
MORE = row_seeds(3, "variation", 1, np.arange(400))


def options_of(**members: dict[str, Any]) -> MixtureOptions:
    return MixtureOptions.model_validate({"members": members})


def alone(tree: dict[str, Any]) -> Any:
    made = load("generator", tree["kind"])
    given = {name: value for name, value in tree.items() if name != "kind"}
    return made(made.Options.model_validate(given), NAMES)


def test_members_draw_by_share_what_they_draw_alone_and_keep_their_samples() -> None:
    options = options_of(
        fonts={"generator": FONTS, "share": 3, "degree": 0.5}, thin={"generator": THIN}
    )
    mixture = Mixture(options, NAMES)
    drawn = {**mixture.random(LABELS, SEEDS), "label": LABELS}
    of_fonts = drawn["member"] == 0
    assert 260 < of_fonts.sum() < 340
    varied = mixture.vary(drawn, 0.4, MORE)
    assert np.array_equal(varied["member"], drawn["member"])
    for tree, rows, name, degree in (
        (FONTS, of_fonts, "fonts", 0.2),
        (THIN, ~of_fonts, "thin", 0.4),
    ):
        member = alone(tree)
        own = {**member.random(LABELS[rows], SEEDS[rows]), "label": LABELS[rows]}
        assert np.array_equal(own["image"], drawn["image"][rows])
        assert np.array_equal(own["genome"], drawn[f"{name}_genome"][rows])
        assert not drawn[f"{name}_genome"][~rows].any()
        moved = member.vary(own, degree, MORE[rows])
        assert np.array_equal(moved["image"], varied["image"][rows])
    # The choice of a member tells nothing of what it draws.
    fonts = alone(FONTS).random(LABELS, SEEDS)["font"]
    assert fonts[of_fonts].mean() == pytest.approx(fonts.mean(), rel=0.15)


def test_an_heir_takes_over_what_an_ended_member_made() -> None:
    options = options_of(
        fonts={"generator": FONTS, "end": 2, "heir": "blobs"},
        blobs={"generator": BLOBS, "share": 0},
        thin={"generator": THIN},
    )
    drawn = {**Mixture(options.at(0), NAMES).random(LABELS, SEEDS), "label": LABELS}
    assert set(drawn["member"].tolist()) == {1, 2}
    before = Mixture(options.at(1), NAMES).vary(drawn, 0.3, MORE)
    assert np.array_equal(before["member"], drawn["member"])
    after = Mixture(options.at(2), NAMES).vary(drawn, 0.3, MORE)
    assert np.array_equal(after["member"], np.where(drawn["member"] == 1, 0, 2))
    handed = after["member"] == 0
    rows = {"image": drawn["image"][handed], "label": LABELS[handed]}
    assert np.array_equal(
        after["image"][handed], alone(BLOBS).vary(rows, 0.3, MORE[handed])["image"]
    )
    assert not after["fonts_genome"].any()


def test_a_run_mixes_hands_over_and_expands(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["generator"] = {
        "kind": "mixture",
        "members": {
            "fonts": {"generator": FONTS, "end": 2, "heir": "blobs"},
            "blobs": {"generator": BLOBS},
        },
    }
    tree["votes"] = {"lookahead": 1, "reuse_lookahead": True}
    tree["privacy"]["epsilon"] = 20.0
    config = Config.from_dict(tree)
    run = evolve(config)
    entries = Ledger.open(run / "ledger.sqlite").entries()
    assert [entry.release.key for entry in entries] == ["generator", "votes/0001", "votes/0002"]

    def members(iteration: int) -> set[int]:
        folder = run / "populations" / f"iter={iteration:04d}"
        rows = read_population(folder, np.arange(40), config.generator_at(iteration).options)
        return set(rows["member"].tolist())

    assert members(0) == {0, 1}
    assert members(2) == {0}
    more = expand(run, 50, tmp_path / "more")
    assert sum(part.stop - part.start for part in list_parts(more)) == 50


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "members"),
        ({"Fonts": {"generator": FONTS}}, "members"),
        ({"a": {"generator": FONTS, "share": 0}}, "share above 0"),
        ({"a": {"generator": FONTS}, "b": {"generator": {**FONTS, "image_size": 13}}}, "shape"),
        ({"a": {"generator": FONTS, "end": 1}}, "end and heir"),
        (
            {
                "a": {"generator": FONTS, "end": 1, "heir": "b"},
                "b": {"generator": THIN},
            },
            r"a\.heir",
        ),
        ({"a": {"generator": FONTS, "end": 1, "heir": "c"}}, r"a\.heir"),
        ({"a": {"generator": BLOBS, "degree": 3.0}}, "degree 1.5"),
        (
            {"a": {"generator": {"kind": "mixture", "members": {"b": {"generator": FONTS}}}}},
            "mixture itself",
        ),
        ({"a": {"generator": BLOBS}, "b": {"generator": {**BLOBS, "share": 0.3}}}, "only one"),
        (
            {
                "a": {
                    "generator": {
                        "kind": "nearest_image",
                        "data": "sklearn:digits",
                        "image_size": 12,
                        "channels": 1,
                    },
                    "degree": 4,
                }
            },
            "is private.data",
        ),
    ],
)
def test_members_that_do_not_go_together_are_refused(
    tree: dict[str, Any], members: dict[str, Any], message: str
) -> None:
    tree["generator"] = {"kind": "mixture", "members": members}
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree)


def test_a_degree_is_checked_where_its_member_is_at_work(tree: dict[str, Any]) -> None:
    model = {"generator": {**BLOBS, "share": 0.4}, "share": 0}
    fonts = {"generator": FONTS, "end": 2, "heir": "model"}
    tree["generator"] = {"kind": "mixture", "members": {"fonts": fonts, "model": model}}
    tree["schedule"]["degrees"] = [1.5, 0.5]  # 1.5 is for the fonts alone
    Config.from_dict(tree)
    tree["schedule"]["degrees"] = [1.5, 1.5]
    with pytest.raises(InputError, match=r"degree 1\.5"):
        Config.from_dict(tree)


def test_a_member_that_cannot_be_built_costs_nothing(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    members = {"a": {"generator": {**FONTS, "fonts": "/nowhere"}}, "b": {"generator": BLOBS}}
    tree["generator"] = {"kind": "mixture", "members": members}
    with pytest.raises(InputError, match=r"generator\.fonts: /nowhere"):
        evolve(Config.from_dict(tree))
    assert not Ledger.open(tmp_path / "run" / "ledger.sqlite").charged


def test_the_members_files_are_those_of_the_run(tree: dict[str, Any]) -> None:
    members = {"a": {"generator": {**FONTS, "fonts": "/nowhere"}}, "b": {"generator": THIN}}
    tree["generator"] = {"kind": "mixture", "members": members}
    with pytest.raises(InputError, match=r"generator\.members\.a.*/nowhere"):
        require_paths(Config.from_dict(tree))
