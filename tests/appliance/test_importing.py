from __future__ import annotations

import json
import os
import shutil
import signal
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from sqlalchemy import func, select

import appliance.importing
from appliance import crossing
from appliance.crossing import LabelItem
from appliance.db.base import new_id, now
from appliance.db.engine import reading
from appliance.db.research import Crossing, Label, ResearchInstance, ResearchLedgerEntry, Subject
from appliance.importing import Counts, Refusals, import_bundles
from tests.anonymizer.node import Node, make_node, study_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PSEUDONYM = "ABCDEFGHABCDEFGHABCDEFGH"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def _count(node: Node, model: type) -> int:
    with reading(node.research.engine) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def _label(value: int, study: str = "") -> LabelItem:
    return LabelItem(PSEUDONYM, study, "pneumonia", value, "csv")


def _send_label(node: Node, value: int) -> str:
    bundle_id = new_id()
    crossing.write_bundle(node.settings, bundle_id, crossing.LABELS, "trial", [_label(value)])
    return bundle_id


def _acks(node: Node) -> list[str]:
    return sorted(path.name for path in (node.settings.crossing_in / "acks").iterdir())


def test_a_released_study_arrives_verified_filed_and_acknowledged(node: Node) -> None:
    node.release(node.add_study(study_of(3)))
    assert import_bundles(node.research) == Counts(bundles=1, instances=3)
    with reading(node.research.engine) as session:
        rows = session.scalars(select(ResearchInstance)).all()
        subject = session.scalars(select(Subject)).one()
        kinds = session.scalars(select(ResearchLedgerEntry.kind)).all()
    for row in rows:
        ds = dcmread(node.research.root / row.path)
        assert (ds.PatientID, ds.SOPInstanceUID) == (subject.pseudonym, row.sop_instance_uid)
        assert row.subject_id == subject.id
    assert kinds == ["crossing.imported"]
    assert _acks(node) == node.bundles()


def test_a_second_pass_imports_nothing_and_acknowledges_again(node: Node) -> None:
    node.release(node.add_study(study_of(2)))
    import_bundles(node.research)
    for path in (node.settings.crossing_in / "acks").iterdir():
        path.unlink()
    assert import_bundles(node.research) == Counts()
    assert _acks(node) == node.bundles()
    assert (_count(node, ResearchInstance), _count(node, ResearchLedgerEntry)) == (2, 1)


def test_the_acknowledgement_of_a_bundle_that_is_gone_is_removed(node: Node) -> None:
    first, second = _send_label(node, 0), _send_label(node, 1)
    import_bundles(node.research)
    shutil.rmtree(node.settings.crossing_out / first)
    import_bundles(node.research)
    assert _acks(node) == [second]


def test_the_same_instance_in_a_later_bundle_is_filed_once(node: Node) -> None:
    node.release(node.add_study(study_of(2)))
    import_bundles(node.research)
    [bundle] = crossing.read_bundles(node.settings)
    again = new_id()
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    bundle.folder.rename(bundle.folder.with_name(again))
    (bundle.folder.with_name(again) / "bundle.json").write_text(json.dumps({**manifest, "id": again}))
    assert import_bundles(node.research) == Counts(bundles=1)
    assert _count(node, ResearchInstance) == 2


def test_a_changed_file_is_refused_and_blocks_no_other_bundle(node: Node) -> None:
    node.release(node.add_study(study_of(1)))
    [bundle] = crossing.read_bundles(node.settings)
    [file] = bundle.folder.glob("*.dcm")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    node.release(node.add_study(study_of(1, study=2)))
    assert import_bundles(node.research) == Counts(bundles=1, instances=1, refused=1)
    assert bundle.id not in _acks(node)
    assert not list((node.research.root / "instances").rglob("*.part"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "0" * 32}, {"kind": "code"}, {"project": "../x"}, {"items": "x"}, {"items": [1]},
        {"items": [{"file": "../../x"}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_is_not_as_expected_is_refused(node: Node, change: dict[str, object]) -> None:
    bundle_id = _send_label(node, 1)
    path = node.settings.crossing_out / bundle_id / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert import_bundles(node.research) == Counts(refused=1)
    assert _count(node, Label) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(node: Node, content: bytes) -> None:
    (node.settings.crossing_out / _send_label(node, 1) / "bundle.json").write_bytes(content)
    assert import_bundles(node.research) == Counts(refused=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../../../etc/passwd"), ("file", "/etc/passwd"), ("file", "a.txt"), ("sha256", "x"),
        ("pseudonym", "DOE^JOHN"), ("study_instance_uid", "1.2.3"), ("sop_instance_uid", ""),
        ("sop_instance_uid", 5), ("size_bytes", -1), ("size_bytes", True), ("modality", "x" * 17),
    ],
)  # fmt: skip
def test_a_field_that_is_not_as_expected_is_refused(node: Node, field: str, value: object) -> None:
    node.release(node.add_study(study_of(1)))
    [bundle] = crossing.read_bundles(node.settings)
    path = bundle.folder / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["items"][0][field] = value
    path.write_text(json.dumps(manifest))
    assert import_bundles(node.research) == Counts(refused=1)
    assert _count(node, ResearchInstance) == 0


def test_a_link_in_a_bundle_is_not_followed(node: Node, tmp_path: Path) -> None:
    node.release(node.add_study(study_of(1)))
    [bundle] = crossing.read_bundles(node.settings)
    [file] = bundle.folder.glob("*.dcm")
    secret = tmp_path / "secret"
    file.rename(secret)
    file.symlink_to(secret)
    assert import_bundles(node.research) == Counts(refused=1)


def test_a_refused_bundle_is_not_read_again_at_once_but_in_the_end(node: Node) -> None:
    bundle_id = _send_label(node, 1)
    path = node.settings.crossing_out / bundle_id / "bundle.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    refusals, at = Refusals(), now()
    assert import_bundles(node.research, refusals, at) == Counts(refused=1)
    path.write_bytes(good)
    assert import_bundles(node.research, refusals, at + timedelta(seconds=29)) == Counts()
    assert len(refusals) == 1
    assert import_bundles(node.research, refusals, at + timedelta(seconds=31)) == Counts(bundles=1, labels=1)
    assert len(refusals) == 0


def test_a_refused_bundle_is_looked_at_ever_more_rarely_and_forgotten_when_it_is_gone(node: Node) -> None:
    path = node.settings.crossing_out / _send_label(node, 1) / "bundle.json"
    path.write_bytes(b"{")
    refusals, began = Refusals(), now()
    moments = [began + timedelta(seconds=second) for second in range(0, 4000, 10)]
    looks = [at for at in moments if import_bundles(node.research, refusals, at).refused]
    pauses = [(later - earlier).total_seconds() for earlier, later in pairwise(looks)]
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    shutil.rmtree(path.parent)
    import_bundles(node.research, refusals, moments[-1])
    assert len(refusals) == 0


def test_what_was_copied_before_a_refusal_is_not_copied_again(node: Node) -> None:
    node.release(node.add_study(study_of(2)))
    [bundle] = crossing.read_bundles(node.settings)
    item = bundle.items[-1]
    assert isinstance(item, crossing.InstanceItem)
    last = bundle.folder / item.file
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    assert import_bundles(node.research) == Counts(refused=1)
    [copied] = (node.research.root / "instances").rglob("*.dcm")
    before = copied.stat()
    last.write_bytes(content)
    assert import_bundles(node.research) == Counts(bundles=1, instances=2)
    assert copied.stat().st_ino == before.st_ino


def test_an_unfinished_bundle_is_not_seen(node: Node) -> None:
    node.release(node.add_study(study_of(1)))
    [bundle] = crossing.read_bundles(node.settings)
    bundle.folder.rename(bundle.folder.with_name(f".tmp-{bundle.id}"))
    assert import_bundles(node.research) == Counts()


def test_a_later_label_of_the_same_source_replaces_the_earlier(node: Node) -> None:
    _send_label(node, 1)
    assert import_bundles(node.research) == Counts(bundles=1, labels=1)
    _send_label(node, 1)
    assert import_bundles(node.research) == Counts(bundles=1)
    _send_label(node, 0)
    assert import_bundles(node.research) == Counts(bundles=1, labels=1)
    with reading(node.research.engine) as session:
        assert session.scalars(select(Label.value)).all() == [0]


@pytest.mark.parametrize("moment", ["copy", "file", "acknowledge"])
def test_killed_at_any_moment_and_repeated_it_is_one_import(node: Node, moment: str) -> None:
    node.release(node.add_study(study_of(2)))
    child = os.fork()
    if child == 0:
        _die_at(moment)
        import_bundles(node.research)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    import_bundles(node.research)
    assert (_count(node, ResearchInstance), _count(node, Crossing), _count(node, ResearchLedgerEntry)) == (
        2,
        1,
        1,
    )
    assert _acks(node) == node.bundles()


def _die_at(moment: str) -> None:
    def die(*_arguments: object, **_named: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "copy":
        crossing.copy_verified = die
    elif moment == "file":
        appliance.importing._file_instance = die  # type: ignore[assignment]
    else:
        crossing.acknowledge = die
