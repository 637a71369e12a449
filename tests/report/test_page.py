"""The page claims what the ledger says, and fetches nothing from anywhere."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from verified import differing

from pe_ray import Config
from pe_ray.config.blocks import MetricsConfig
from pe_ray.evolution import evolve
from pe_ray.files.parts import MANIFEST, list_parts, read_manifest
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import begin
from pe_ray.report import write_report
from pe_ray.report.facts import compute_privacy_curve, gather
from pe_ray.report.page import bound_certainty, draw_chart, render_run
from pe_ray.report.score_tables import list_scores
from pe_ray.runtime.run_directory import on_disk


class Elements(HTMLParser):
    """All elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


def test_the_page_requests_nothing_and_is_accessible(finished: Path) -> None:
    page = write_report(finished).read_text()
    assert differing(finished) == set()  # its files are a run's
    elements = Elements(page)
    assert not elements.all("script", "link", "iframe", "object", "base")
    keys = ("src", "href", "srcset", "xlink:href")
    addresses = [e[key] for _, e in elements.found for key in keys if key in e]
    addresses += re.findall(r"url\((.*?)\)", page)
    assert all(str(address).startswith(("data:image/", "#")) for address in addresses)
    assert "://" not in page
    assert "@import" not in page
    policy = [m.get("content") for m in elements.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert elements.all("html")[0]["lang"] == "en"
    assert len(elements.all("main")) == len(elements.all("header")) == len(elements.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(image.get("alt") for image in elements.all("img"))
    assert all(cell.get("scope") for cell in elements.all("th"))
    ids = [e["id"] for _, e in elements.found if "id" in e]
    assert len(set(ids)) == len(ids)
    links = [str(link["href"])[1:] for link in elements.all("a")]
    assert set(links) <= set(ids)


def test_the_guarantee_is_the_ledgers(finished: Path) -> None:
    text = Elements(write_report(finished).read_text()).text
    ledger = Ledger.open(finished / "ledger.sqlite")
    assert f"(ε = {ledger.spent():.6g}, δ = 0.0001)-differential privacy" in text
    assert len(ledger.entries()) == 4
    for entry in ledger.entries():
        assert entry.release.key in text
        assert f"{entry.release.sigma:g}" in text
    assert "of 3 iterations" not in text


def test_the_curve_is_what_the_accountant_says(finished: Path) -> None:
    facts = gather(finished)
    curve = compute_privacy_curve(facts)
    releases = [entry.release for entry in facts.entries]
    assert (facts.budget.delta, facts.spent) in curve
    assert all(epsilon == epsilon_of(releases, delta) for delta, epsilon in curve)
    assert [b for _, b in curve] == sorted(b for _, b in curve)


def test_names_are_escaped(finished: Path) -> None:
    facts = gather(finished)
    names = ("<script>alert(1)</script>", *facts.config.private.labels[1:])
    private = facts.config.private.model_copy(update={"labels": names})
    facts = replace(facts, config=facts.config.model_copy(update={"private": private}))
    page = render_run(facts, [], list_scores(facts))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_run_in_progress_says_how_far_it_is(copied: Callable[[str], Path]) -> None:
    run = copied("half")
    shutil.rmtree(run / "synthetic")
    shutil.rmtree(run / "populations" / "iter=0003")
    text = Elements(write_report(run).read_text()).text
    assert "2 of 3 iterations" in text
    assert "(iteration 2)" in text
    shutil.rmtree(run / "populations")
    text = Elements(write_report(run).read_text()).text
    assert "0 of 3 iterations" in text
    assert "(iteration" not in text


def test_without_noise_there_is_no_claim(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    short["privacy"]["epsilon"] = math.inf
    page = write_report(evolve(Config.from_dict(short))).read_text()
    assert 'class="warn"' in page
    assert 'class="claim"' not in page
    assert "differential privacy" not in Elements(page).text
    assert "may be published" not in Elements(page).text


def test_metrics_that_the_run_scored_are_shown(copied: Callable[[str], Path]) -> None:
    run = copied("scored")
    (run / "scores").mkdir(exist_ok=True)
    for iteration, score in ((0, 31.5), (3, 12.25)):
        file = run / "scores" / f"iter={iteration:04d}.json"
        file.write_text(json.dumps({"public/fid": score}))
    page = write_report(run).read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert rows[0] == {"iteration": 0, "public/fid": 31.5}
    assert rows[3]["public/fid"] == 12.25
    assert rows[3]["survivors"] > 0
    assert "public/fid by iteration" in [image["alt"] for image in Elements(page).all("img")]


def test_what_has_no_value_has_no_chart(finished: Path) -> None:
    """As the share of the heaviest tenth, where noise left no vote."""
    facts = gather(finished)
    rows = [{**row, "top_tenth_share": None} for row in list_scores(facts)]
    charts = [image["alt"] for image in Elements(render_run(facts, [], rows)).all("img")]
    assert "survivors by iteration" in charts
    assert "top tenth share by iteration" not in charts


def test_scores_say_which_way_is_better_and_what_is_not_known(finished: Path) -> None:
    facts = gather(finished)
    assert "was not scored" in render_run(facts, [], list_scores(facts))
    public = {"data": "/public", "metrics": ["frechet"]}
    metrics = MetricsConfig.model_validate({"public": public})
    facts = replace(facts, config=facts.config.model_copy(update={"metrics": metrics}))
    rows = [{"iteration": 3, "public/frechet_distance/pixels": 0.5}]
    assert "lower is better" in Elements(render_run(facts, [], rows)).text


def test_the_claim_in_plain_words_is_how_often_a_guess_can_be_right() -> None:
    """By randomised response, which is as bad as a claim without delta allows."""
    assert bound_certainty(math.log(3), 0) == pytest.approx(3 / (3 + 1))
    assert bound_certainty(0, 0.5) == 0.75  # half of the time it shows all, else nothing
    assert bound_certainty(math.inf, 1e-5) == 1


def test_equal_charts_are_equal_bytes_and_change_no_setting() -> None:
    before = dict(matplotlib.rcParams)
    chart = draw_chart([(1, 2), (2, 3)], "x", "<b>")
    assert chart == draw_chart([(1, 2), (2, 3)], "x", "<b>")
    assert chart != draw_chart([(1, 2), (2, 4)], "x", "<b>")
    assert "<b>" not in chart
    assert dict(matplotlib.rcParams) == before


def test_only_synthetic_stages_are_timed(finished: Path) -> None:
    for iteration in (1, 2, 3):  # nothing else is kept: no time of votes or of private records
        kept = json.loads(on_disk(finished).embedding_time(iteration).read_text())
        assert set(kept) == {"num_rows", "rows_made", "seconds"}


def test_only_rows_of_the_last_start_are_timed(copied: Callable[[str], Path]) -> None:
    run = copied("again")
    config = gather(run).config
    tree = config.model_dump(mode="json")
    tree["output"]["path"] = str(run)
    (run / "config.yaml").unlink()
    lost = list_parts(run / "synthetic")[1]
    (run / "synthetic" / lost.file).unlink()
    (run / "synthetic" / MANIFEST).unlink()
    _rebind(run, Config.from_dict(tree))
    evolve(Config.from_dict(tree))
    manifest = read_manifest(run / "synthetic") or {}
    assert manifest["rows_made"] == lost.stop - lost.start == 17


def _rebind(run: Path, config: Config) -> None:
    """Tie the copied ledger to the copy, which has another path."""
    with begin(run / "ledger.sqlite") as database:
        database.execute("UPDATE budget SET fingerprint = ?", (config.fingerprint,))


def test_no_file_names_the_machine(copied: Callable[[str], Path]) -> None:
    run = copied("anywhere")
    write_report(run)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    host = socket.gethostname()
    assert [path for path in files if host in path.name.split(".")] == []
