"""A published folder, besides its evidence: checksums, signature, cards, images."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.verifying.findings import Checks, NotChecked, Step, require
from pe_ray.verifying.run_claims import Claims
from pe_ray.verifying.run_names import list_names
from pe_ray.verifying.stage_files import decode_images, require_labels

CHECKSUMS = "checksums.sha256"
SIGNATURE = "checksums.sha256.sig"
NAMESPACE = "pe_ray"
_KNOWN = re.compile(
    r"README\.md|croissant\.json|privacy_card\.json|\.publish\.json"
    r"|data/train-\d{5,}-of-\d{5,}\.parquet|evidence/.+"
)
_CARDS = ("README.md", "croissant.json", "privacy_card.json")
_FIGURES = re.compile(r"epsilon (?:= )?([\d.e+-]*\d), delta (?:= )?([\d.e+-]*\d)")
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_MARK_NAMES = {"XML:com.adobe.xmp", "xmp"}
"""What Pillow calls the mark of a PNG."""


def check_sums(checks: Checks, folder: Path, allowed_signers: str | Path | None) -> None:
    """Check that the folder holds the files of its list, and who signed the list."""
    checks.make("files are those of the list of checksums", _list_sum_steps(folder))
    look = partial(_check_signature, folder, allowed_signers)
    checks.make("the signature is one of the allowed signers'", [(str(folder / SIGNATURE), look)])


def _list_sum_steps(folder: Path) -> Iterator[Step]:
    listed: dict[str, str] = {}

    def read() -> None:
        for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
            require(match is not None, "has a line that is no checksum")
            assert match is not None
            listed[match[2]] = match[1]

    yield str(folder / CHECKSUMS), read
    held = set(list_names(folder)) - {CHECKSUMS, SIGNATURE}
    for name in sorted(held | listed.keys()):
        yield str(folder / name), partial(_check_sum, folder / name, name, listed.get(name))


def _check_sum(file: Path, name: str, listed: str | None) -> None:
    require(_KNOWN.fullmatch(name) is not None, "should not be there")
    require(not file.is_symlink(), "is a link")
    require(listed is not None, f"isn't in {CHECKSUMS}")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    require(digest == listed, f"isn't the file of {CHECKSUMS}")


def _check_signature(folder: Path, allowed_signers: str | Path | None) -> str:
    signature = folder / SIGNATURE
    if not signature.exists():
        require(allowed_signers is None, "is missing: the folder isn't signed")
        raise NotChecked("isn't there: the folder isn't signed")
    given = ["-n", NAMESPACE, "-s", str(signature)]
    content = (folder / CHECKSUMS).read_bytes()
    try:
        if allowed_signers is None:
            _run_keygen("check-novalidate", given, content)
            raise NotChecked(f"fits {CHECKSUMS}; whose it is needs --allowed-signers")
        allowed = ["-f", str(allowed_signers)]
        found = _run_keygen("find-principals", ["-s", str(signature), *allowed], b"")
        signer = found.splitlines()[0]
        _run_keygen("verify", [*given, *allowed, "-I", signer], content)
    except FileNotFoundError:
        raise NotChecked("needs ssh-keygen of OpenSSH") from None
    return f"signed by {signer}"


def _run_keygen(command: str, arguments: list[str], content: bytes) -> str:
    """Return what `ssh-keygen -Y command` prints; Differs where it refuses."""
    line = ["ssh-keygen", "-Y", command, *arguments]
    done = subprocess.run(line, input=content, capture_output=True)
    reason = done.stderr.decode(errors="replace").strip() or "no reason given"
    require(done.returncode == 0, f"isn't a signature of this list by an allowed key ({reason})")
    return done.stdout.decode(errors="replace")


def check_cards(checks: Checks, folder: Path, claims: Claims) -> None:
    """Check that the cards state the ledger's guarantee and releases, and the files' digests."""
    steps: list[Step] = [
        (str(folder / name), partial(_check_figures, folder / name, claims)) for name in _CARDS
    ]
    steps.append((str(folder / "privacy_card.json"), partial(_check_releases, folder, claims)))
    steps.append((str(folder / "croissant.json"), partial(_check_croissant, folder, claims)))
    checks.make("cards state the guarantee of the ledger", steps)
    checks.pass_over("other text of the cards", "it is the publisher's word")


def _check_figures(file: Path, claims: Claims) -> None:
    budget, spent = claims.ledger.budget, claims.ledger.spent()
    text = file.read_text(encoding="utf-8")
    stated = [(float(epsilon), float(delta)) for epsilon, delta in _FIGURES.findall(text)]
    if file.suffix == ".json":
        tree = json.loads(text)
        stated += zip(_find(tree, "epsilon"), _find(tree, "delta"), strict=True)
        units = set(_find(tree, "unit"))
        require(units <= {budget.unit}, "states another unit than the ledger")
    require(bool(stated), "states no epsilon")
    for epsilon, delta in stated:
        same = math.isclose(epsilon, spent, rel_tol=1e-5)
        same &= math.isclose(delta, budget.delta, rel_tol=1e-5)
        require(
            same,
            f"states epsilon {epsilon:g}, delta {delta:g}; the ledger has {spent:.6g}, "
            f"{budget.delta:g}",
        )


def _find(tree: Any, name: str) -> Iterator[Any]:
    """Yield all values of this key, however deep."""
    if isinstance(tree, dict):
        yield from [tree[name]] if name in tree else []
    below = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for each in below:
        yield from _find(each, name)


def _check_releases(folder: Path, claims: Claims) -> None:
    card = json.loads((folder / "privacy_card.json").read_bytes())
    stated = [
        tuple(release[name] for name in ("key", "iteration", "sigma", "sensitivity"))
        for release in card["releases"]
    ]
    charged = [entry.release for entry in claims.ledger.entries()]
    own = [(each.key, each.iteration, each.sigma, each.sensitivity) for each in charged]
    require(stated == own, "states other releases than the ledger")


def _check_croissant(folder: Path, claims: Claims) -> None:
    tree = json.loads((folder / "croissant.json").read_bytes())
    files = {each["contentUrl"]: each for each in tree["distribution"] if "contentUrl" in each}
    held = {f"data/{file.name}": file for file in (folder / "data").iterdir()}
    require(files.keys() == held.keys(), "lists other files than data/ holds")
    for name, file in held.items():
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        require(files[name]["sha256"] == digest, f"states another digest of {name}")
    sets = {each["@id"]: each for each in tree["recordSet"]}
    names = [each["labels/name"] for each in sets["labels"]["data"]]
    require(names == list(claims.run.labels), "names other labels")


def check_data(checks: Checks, folder: Path, claims: Claims) -> None:
    """Check columns, labels and marks of the images."""
    checks.make(
        "images have the columns, the labels and one mark", _list_data_steps(folder, claims)
    )
    checks.pass_over("images", "the evidence holds none, and the generator makes them")
    checks.pass_over("labels, if it is an expansion", "the order of its rows is not replayed")


def _list_data_steps(folder: Path, claims: Claims) -> Iterator[Step]:
    files = sorted((folder / "data").glob("*.parquet"))
    names = [f"train-{at:05d}-of-{len(files):05d}.parquet" for at in range(len(files))]
    complete = bool(files) and [file.name for file in files] == names
    yield str(folder / "data"), partial(require, complete, "lacks a file")
    counts = [_count_rows(file) for file in files]
    total = None if None in counts else sum(filter(None, counts))
    if total is not None:
        stated = f"{total:,} synthetic images" in (folder / "README.md").read_text()
        yield str(folder / "README.md"), partial(require, stated, f"doesn't say {total:,} images")
    expanded = json.loads((folder / ".publish.json").read_bytes())["expanded"]
    first, marks = 0, set[str]()
    for file, count in zip(files, counts, strict=True):
        yield str(file), partial(_check_images, file, claims, first, expanded, marks)
        first += count or 0


def _count_rows(file: Path) -> int | None:
    """Return the rows of a file, None where it can't be read."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _check_images(file: Path, claims: Claims, first: int, expanded: bool, marks: set[str]) -> None:
    """Check the rows of the set from `first` on; `marks` gets what images carry."""
    table = pq.read_table(file, partitioning=None)
    for image in decode_images(table, claims.run.labels):
        require(image.info.keys() <= _MARK_NAMES, "its images hold more than pixels and the mark")
        marks.add(str(sorted(image.info.items())))
    require(
        len(marks) == 1 and (SOURCE_TYPE in "".join(marks) or marks == {"[]"}),
        "its images are not all marked, or not all with the same mark",
    )
    if claims.run.config.teacher is None and not expanded:
        require_labels(table, claims.layouts[-1].labels(first, first + len(table)))
