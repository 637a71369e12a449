"""A run, or several side by side, as self-contained pages; from released values only.

`facts` reads a run, `scores` turns histograms into numbers by iteration, `samples` and `lineage`
read the few images that are shown, `charts` draws, `page` and `comparison` lay it all out.
"""

from __future__ import annotations

from pe_ray.files.storage import Location, atomic_write
from pe_ray.report.facts import gather
from pe_ray.report.lineage import lineages_of
from pe_ray.report.page import run_page
from pe_ray.report.samples import grid, samples_of
from pe_ray.report.score_tables import spreads_of, write_scores
from pe_ray.runtime.run_directory import others_cant_write
from pe_ray.synthetic.export import png


@others_cant_write()
def write_report(path: str | Location) -> Location:
    """Write samples/, metrics.jsonl, tensorboard/ and report.html of a run; returns the page.

    Works on a run in progress too: the page then says how far it is.

    Guarantee: reads the configuration, the ledger's releases, populations and the times of
    synthetic stages, all of which are covered by the ledger's (epsilon, delta).
    """
    facts = gather(path)
    shown = []
    for iteration, layout in enumerate(facts.layouts):
        strips = samples_of(facts, iteration)
        picture = facts.run.path / "samples" / f"iter={iteration:04d}.png"
        atomic_write(picture, png(grid(list(strips.values()))))
        shown.append((iteration, layout, strips))
    rows = write_scores(facts)
    page = run_page(facts, shown, lineages_of(facts), rows, spreads_of(facts))
    atomic_write(facts.run.report, page.encode())
    return facts.run.report
