"""The evidence pack: true counts, samples without values, a signature that holds, a PDF that opens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from anonymizer.differences import Difference, differences
from anonymizer.profiles import load_profile
from appliance import cli
from appliance.evidence import gathering, packing
from tests.anonymizer.material import DEFAULT, ct, encode, release
from tests.anonymizer.node import Node, make_node, study_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDENTITY = ("Müstermann", "Jörg", "MRN-4711-X", "19560708", "ACC-998877", "1.3.6.1.4.1.99999")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path / "node")
    good, bad = study_of(3), study_of(2, patient_id="MRN-9", study=2)
    bad[0].BurnedInAnnotation = "YES"
    for instances in (good, bad):
        made.release(made.add_study(instances))
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def test_differences_name_attributes_and_no_value() -> None:
    ds = ct()
    ds.DeviceSerialNumber = "SN-1"
    found = differences(encode(ds), release(ds, DEFAULT).content)
    changes = {(entry.path, entry.keyword): entry.change for entry in found}
    assert changes["(0010,0010)", "PatientName"] == "changed"
    assert changes["(0010,0030)", "PatientBirthDate"] == "emptied"
    assert changes["(0018,1000)", "DeviceSerialNumber"] == "removed"
    assert changes["(0018,0060)", "KVP"] == "kept"
    assert changes["(0012,0062)", "PatientIdentityRemoved"] == "added"
    assert changes["(7FE0,0010)", "PixelData"] == "kept"
    assert found == sorted(found)
    assert all(isinstance(entry, Difference) for entry in found)


def test_the_counts_are_those_of_the_rows(node: Node) -> None:
    facts = gathering.gather(node.clinical, 10)
    counts = facts["counts"]
    assert (counts["instances_released"], counts["instances_quarantined"]) == (4, 1)
    assert counts["quarantined_by_reason"] == {"burned_in_annotation": 1}
    assert counts["revisions"] == {"partial": 1, "released": 1}
    assert facts["profile"]["hash"] == load_profile().hash
    assert facts["profiles_used"] == [{"hash": load_profile().hash, "revisions": 2}]
    assert [sample["outcome"] for sample in facts["samples"]] == ["released"] * 4


def test_nothing_in_a_pack_is_a_value_of_the_patient(node: Node, tmp_path: Path) -> None:
    packing.write(tmp_path / "pack", gathering.gather(node.clinical, 10), node.clinical.keys.signing)
    for path in (tmp_path / "pack").iterdir():
        content = path.read_bytes()
        assert not any(text.encode() in content for text in IDENTITY), path.name


def test_a_changed_pack_is_no_evidence(node: Node, tmp_path: Path) -> None:
    folder, keys = tmp_path / "pack", node.clinical.keys
    packing.write(folder, gathering.gather(node.clinical, 1), keys.signing)
    assert packing.verify(folder)["format"] == gathering.FORMAT
    assert packing.verify(folder, keys.signing.public_key())
    with pytest.raises(packing.EvidenceError, match="not what the key signed"):
        packing.verify(folder, Ed25519PrivateKey.generate().public_key())
    facts = folder / packing.FACTS
    facts.write_text(facts.read_text().replace('"instances_quarantined": 1', '"instances_quarantined": 0'))
    with pytest.raises(packing.EvidenceError, match="not what the key signed"):
        packing.verify(folder)
    with pytest.raises(packing.EvidenceError, match="not empty"):
        packing.write(folder, {}, keys.signing)


def test_the_same_instances_are_chosen_again(node: Node) -> None:
    first, second = (gathering.gather(node.clinical, 2)["samples"] for _ in range(2))
    assert first == second
    assert len(first) == 2


def test_the_command_writes_and_checks_a_pack(node: Node, tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder = tmp_path / "pack"
    written = run(cli.build(), ["evidence", "write", str(folder), "--config", str(node.config), "--json"])
    assert written.exit_code == 0, written.output
    assert json.loads(written.output)["counts"]["instances_released"] == 4
    assert (folder / packing.DOCUMENT).read_bytes().startswith(b"%PDF-")
    checked = run(cli.build(), ["evidence", "verify", str(folder), "--key", str(folder / packing.KEY)])
    assert checked.exit_code == 0, checked.output
    (folder / packing.SIGNATURE).unlink()
    assert run(cli.build(), ["evidence", "verify", str(folder)]).exit_code != 0
