"""Write a finished run as a folder to publish (docs/publish.md says what it holds).

Everything is made from the run directory again at each start, part by part. So a start that was
killed is repeated, and the same command gives the same bytes. The checksums come last.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.errors import InputError
from pe_ray.expansion import NOTE as EXPANSION_NOTE
from pe_ray.files.digests import read_with_digest, write_with_digest
from pe_ray.files.images import list_stored
from pe_ray.files.parts import Part, commit, list_parts, read_manifest, read_table, write_part
from pe_ray.files.storage import GivenPath, Location, atomic_write, name_left_aside, resolve_place
from pe_ray.publishing.about import read_about
from pe_ray.publishing.cards import (
    PublishedFile,
    PublishedSet,
    describe_data,
    describe_privacy,
    render_readme,
)
from pe_ray.publishing.hub import push, require_hub
from pe_ray.publishing.marks import MARK, add_mark
from pe_ray.publishing.signing import sign
from pe_ray.report.facts import Facts, gather
from pe_ray.runtime.progress import Progress
from pe_ray.runtime.run_directory import (
    RunDirectory,
    check_output,
    on_disk,
    others_cant_write,
    require_disk,
)
from pe_ray.synthetic.export_formats import LabelledImages, Parquet
from pe_ray.synthetic.filtering import count_dropped
from pe_ray.verifying.published import CHECKSUMS, SIGNATURE

_NOTE = ".publish.json"
_FILE_BYTES = 64 << 20  # of pixels and marks; PNGs take less
_LINEAGE = ["id", "label", "parent", "degree"]


@others_cant_write()
def publish(
    run_path: GivenPath,
    output: str | Path,
    expansion: GivenPath | None = None,
    *,
    about: str | Path | None = None,
    key: str | Path | None = None,
    mark: bool = True,
    repo: str | None = None,
) -> Path:
    """Write a run's final set, or an expansion of it, with cards, evidence and checksums.

    about: a YAML file with what only the publisher knows (publishing.about). key: SSH key to sign
    the checksums with. mark: whether images carry the mark of algorithmic media. repo: data set on
    Hugging Face's hub to upload the folder to. Raises InputError where the run is not finished or
    has no guarantee, a part of what is published isn't what was written, or the folder holds
    something else.

    Guarantee: what is written comes from the run directory and `about` alone. So the ledger's
    (epsilon, delta), which the cards state, covers it as far as `about` tells nothing private.
    """
    facts = gather(run_path)
    _require_publishable(facts)
    source = _find_set(facts, expansion)
    directory, told = resolve_place(output, "--output"), read_about(about)
    if not isinstance(directory, Path):
        raise InputError("--output: must be a local folder; copy it to a store, or use --push")
    if key is not None:
        sign(key, b"")
    if repo is not None:
        require_hub(repo)
    groups = _group_parts(facts, source)
    num_images = groups[-1][-1].stop - count_dropped(source)
    request = {
        "run": facts.config.fingerprint,
        "expanded": expansion is not None,
        "num_images": num_images,
        "num_files": len(groups),
        "marked": mark,
    }
    check_output(directory, facts.config, _NOTE, request)
    atomic_write(directory / _NOTE, json.dumps(request).encode())
    for name in (CHECKSUMS, SIGNATURE):  # they may be of other cards
        (directory / name).unlink(missing_ok=True)
    data = _write_data(facts, source, groups, directory, mark=mark)
    _write_evidence(facts, on_disk(directory / "evidence"))
    made = PublishedSet(
        facts=facts,
        about=told,
        data=data,
        num_images=num_images,
        expanded=expansion is not None,
        marked=mark,
    )
    atomic_write(directory / "README.md", render_readme(made).encode())
    atomic_write(directory / "croissant.json", _to_json(describe_data(made)))
    atomic_write(directory / "privacy_card.json", _to_json(describe_privacy(made)))
    checksums = _compute_checksums(directory)
    atomic_write(directory / CHECKSUMS, checksums)
    if key is not None:
        atomic_write(directory / SIGNATURE, sign(key, checksums))
    if repo is not None:
        push(directory, repo)
    return directory


def _require_publishable(facts: Facts) -> None:
    run, last = facts.run.path, facts.config.schedule.iterations
    if facts.num_final is None or len(facts.layouts) <= last:
        raise InputError(
            f"run {run}: not finished, or a population was deleted; run the same `pe-ray run` "
            "command first"
        )
    if not facts.spent < float("inf"):
        raise InputError(
            f"run {run}: no noise was added (privacy.epsilon: .inf), so it protects nobody; "
            "publish a run with a finite epsilon"
        )


def _find_set(facts: Facts, expansion: GivenPath | None) -> Location:
    """Return the folder of the images: the run's final set, or the expansion if it is one of it."""
    if expansion is None:
        return facts.run.synthetic
    place = resolve_place(expansion, "--expansion")
    try:
        request = json.loads((place / EXPANSION_NOTE).read_bytes())
    except (OSError, ValueError):
        raise InputError(
            f"--expansion: {place} is no folder that `pe-ray expand` wrote; give its --output"
        ) from None
    if request.get("run") != facts.config.fingerprint:
        raise InputError(f"--expansion: {place} was made from another run than {facts.run.path}")
    if request.get("format") != "parquet":
        raise InputError(f"--expansion: {place} isn't parquet; expand again with --format parquet")
    if read_manifest(place) is None:
        raise InputError(f"--expansion: {place} isn't finished; repeat its `pe-ray expand` command")
    return place


def _write_data(
    facts: Facts, source: Location, groups: list[list[Part]], directory: Path, *, mark: bool
) -> tuple[PublishedFile, ...]:
    """Write the images as data/train-*.parquet, one file in memory at a time."""
    num_rows = groups[-1][-1].stop
    num_bytes = sum(part.num_bytes for group in groups for part in group)
    require_disk(directory, num_bytes + num_rows * len(MARK) * mark, "--output")
    written = []
    with Progress("publish", num_rows) as progress:
        for number, group in enumerate(groups):
            name = f"data/train-{number:05d}-of-{len(groups):05d}.parquet"
            content = _join(facts, source, group, mark=mark)
            atomic_write(directory / name, content)
            digest = hashlib.sha256(content).hexdigest()
            written.append(PublishedFile(name=name, num_bytes=len(content), sha256=digest))
            progress.add(group[-1].stop - group[0].start)
    return tuple(written)


def _group_parts(facts: Facts, source: Location) -> list[list[Part]]:
    """Return the parts of each file to write, in row order."""
    most = _FILE_BYTES // (facts.config.image_shape.num_bytes + len(MARK))
    groups: list[list[Part]] = []
    for part in list_parts(source):
        if groups and part.stop - groups[-1][0].start <= most:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _join(facts: Facts, source: Location, group: list[Part], *, mark: bool) -> bytes:
    table = pa.concat_tables(read_table(source, part, columns=["image", "label"]) for part in group)
    pngs: Iterable[Any] = (png for chunk in table["image"].chunks for png in list_stored(chunk))
    images = LabelledImages(
        first=group[0].start,
        pngs=[add_mark(png) if mark else png for png in pngs],
        labels=table["label"].to_numpy(),
        names=facts.config.private.labels,
    )
    return Parquet.write(source, images)


def _write_evidence(facts: Facts, evidence: RunDirectory) -> None:
    """Write what the claim is computed from, laid out as a run directory.

    Smoothed votes, which parents were drawn by, can't be computed without the embedder. Of the
    populations only which sample stems from which: no image and no column of a generator.
    """
    for t, layout in enumerate(facts.layouts):
        _write_lineage(facts.run.population(t), evidence.population(t))
        if t < facts.config.schedule.iterations:
            votes = facts.read_votes(t + 1)
            if votes is None:
                raise InputError(
                    f"{facts.run.histogram(t + 1)}: is missing; run the same `pe-ray run` command"
                )
            evidence.write_histogram(votes, layout)
            smoothed = facts.run.smoothed(t + 1)
            if smoothed.exists():
                write_with_digest(evidence.smoothed(t + 1), read_with_digest(smoothed))
    atomic_write(evidence.ledger, facts.ledger.copied())
    atomic_write(evidence.config, facts.run.config.read_bytes())


def _write_lineage(source: Location, target: Location) -> None:
    parts = []
    for part in list_parts(source):
        sink = io.BytesIO()
        pq.write_table(read_table(source, part, columns=_LINEAGE), sink, compression="zstd")
        parts.append(write_part(target, part.start, part.stop, "parquet", sink.getvalue()))
    manifest = read_manifest(source) or {}
    own = {"num_rows", "parts", "digest"}
    commit(target, parts, {name: value for name, value in manifest.items() if name not in own})


def _to_json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _compute_checksums(directory: Path) -> bytes:
    """Return the checksums of all files but their own, as `sha256sum -c` reads them.

    Removes what killed starts left behind.
    """
    lines = []
    files = {file.relative_to(directory).as_posix(): file for file in directory.rglob("*")}
    for name, file in sorted(files.items()):
        if file.is_dir():
            continue
        if name_left_aside(file.name):
            file.unlink()
            continue
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines).encode()
