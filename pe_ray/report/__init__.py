"""A run as numbers and a page, several runs as one table; from released values only.

The package imports its modules late, as `run_status` needs neither Ray nor templates.
"""

from __future__ import annotations

from pe_ray.files.storage import GivenPath, Location, atomic_write
from pe_ray.runtime.run_directory import others_cant_write


@others_cant_write()
def write_report(path: GivenPath) -> Location:
    """Write samples/, metrics.jsonl, tensorboard/ and report.html of a run; return the page's path.

    A run in progress has a report too: its page says how far the run is. DamagedFileError where
    a part of the final set, or of what the page shows, isn't what was written.

    Guarantee: reads the configuration, the ledger's releases and populations, all of which are
    covered by the ledger's (epsilon, delta).
    """
    from pe_ray.files.parts import require_whole
    from pe_ray.files.png import encode_png
    from pe_ray.report.facts import gather
    from pe_ray.report.page import render_run
    from pe_ray.report.samples import join_images, read_samples
    from pe_ray.report.score_tables import write_scores

    facts = gather(path)
    require_whole(facts.run.synthetic)
    samples = [read_samples(facts, iteration) for iteration in range(len(facts.layouts))]
    for iteration, by_label in enumerate(samples):
        picture = facts.run.path / "samples" / f"iter={iteration:04d}.png"
        atomic_write(picture, encode_png(join_images(list(by_label.values()))))
    page = render_run(facts, samples, write_scores(facts))
    atomic_write(facts.run.report, page.encode())
    return facts.run.report
