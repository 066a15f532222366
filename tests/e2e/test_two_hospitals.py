"""The whole road with real peers and real chest X-rays of two hospitals.

Sent by DCMTK's ``dcmsend`` and ``storescu``; trained by two nodes and a coordinator; results received by
DCMTK's ``storescp`` and by Orthanc. Files of many vendors are sent along.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from sqlalchemy import func, select

from appliance.db.clinical import Instance, QuarantineItem, Result, Series, Study, StudyRevision
from appliance.db.research import CandidateModel, Crossing, Label, ResearchInstance
from appliance.demo import stages_federation, stages_intake, stages_nodes, stages_proof, stages_result
from appliance.demo.cohorts import Cohort, CohortStudy
from appliance.demo.crew import Crew
from appliance.demo.story import remove_run_folders
from appliance.demo.world import Deadline, Options, Site, World
from appliance.peers import NewPeer
from tests.appliance.federation.ring import cloister
from tests.cxr import CXRStudy, write_labels, write_studies
from tests.dicom_node.orthanc import Orthanc, running_orthanc
from tests.dicom_node.support import wait_until
from tests.e2e.peers import dcmsend, quiet_screen, running_storescp, storescu
from tests.e2e.vendors import VendorFile, vendor_files
from trainer.folders import read_site_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real_data,
    pytest.mark.dcmtk,
    pytest.mark.orthanc,
    pytest.mark.timeout(600),
]

LABEL: Final = "pneumonia"
STUDIES: Final = 60
ROUNDS: Final = 3
DCIODVFY: Final = Path("/usr/bin/dciodvfy")
SR: Final = "1.2.840.10008.5.1.4.1.1.88"
SC: Final = "1.2.840.10008.5.1.4.1.1.7"


@dataclass
class Road:
    """What happened on the way; filled by the fixture, judged by the tests."""

    world: World
    guangzhou: Site
    nih: Site
    vendors: list[VendorFile]
    received_files: Path
    orthanc: Orthanc
    next_guangzhou: CXRStudy
    next_nih: CXRStudy
    results: dict[str, list[Dataset]] = field(default_factory=dict)
    leaks: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    root = tmp_path_factory.mktemp("road")
    studies = {
        "guangzhou": write_studies("guangzhou", root / "gz", STUDIES + 1),
        "nih": write_studies("nih", root / "ni", STUDIES + 1),
    }
    with ExitStack() as stack:
        storescp_port = stack.enter_context(running_storescp(root / "received"))
        orthanc = stack.enter_context(running_orthanc(root / "orthanc"))
        crew = stack.enter_context(Crew(root / "logs"))
        world = World(Options(root / "world", 0, data=root, labels=root), crew, quiet_screen())
        stack.callback(remove_run_folders, world)
        stack.callback(crew.stop)
        world.label, world.modalities, world.rounds = LABEL, ("CR", "DX"), ROUNDS
        sites = [
            stages_nodes.add_site(world, "gz", "Guangzhou", "GZ_NODE", "GZ_PACS"),
            stages_nodes.add_site(world, "ni", "NIH", "NI_NODE", "NI_PACS"),
        ]
        found = Road(
            world,
            sites[0],
            sites[1],
            vendor_files(),
            root / "received",
            orthanc,
            studies["guangzhou"][-1],
            studies["nih"][-1],
        )
        stages_nodes.provision(world, Deadline(120))
        stages_nodes.bring_up(world, Deadline(180))
        places = (
            NewPeer("reading room", "READINGROOM", "127.0.0.1", storescp_port, is_destination=True),
            NewPeer("archive", "ORTHANC", "127.0.0.1", orthanc.dicom_port, is_destination=True),
        )
        for site, place, name in zip(sites, places, studies, strict=True):
            stages_nodes.introduce(world, site, place)
            site.cohort = _cohort(site, studies[name][:-1], root)
        _send(found, studies)
        _learn(found)
        _results(found)
        yield found


def _cohort(site: Site, studies: list[CXRStudy], root: Path) -> Cohort:
    labels = root / f"{site.name}.csv"
    write_labels(labels, studies, LABEL)
    rows = tuple(
        CohortStudy(
            (s.path,), s.patient_id, "", s.study_instance_uid, s.label, releasable=True, planted=s.planted
        )
        for s in studies
    )
    return Cohort(site.name, rows, labels, 0)


def _send(road: Road, studies: dict[str, list[CXRStudy]]) -> None:
    """Send with DCMTK, and wait until everything is judged."""
    for site in (road.guangzhou, road.nih):
        _wait_until_known(site)
    vendor_paths = [vendor.path for vendor in road.vendors]
    chest = [study.path for study in studies["guangzhou"][:-1]]
    dcmsend([*chest, *vendor_paths], "GZ_PACS", "GZ_NODE", road.guangzhou.port)
    storescu([study.path for study in studies["nih"][:-1]], "NI_PACS", "NI_NODE", road.nih.port)
    vendor_studies = len({vendor.study_instance_uid for vendor in road.vendors})
    expected = {"gz": STUDIES + vendor_studies, "ni": STUDIES}

    def judged() -> bool:
        road.world.check_crew()
        for site in (road.guangzhou, road.nih):
            standing = stages_intake.look(site)
            stopped = site.number(
                "clinical",
                select(func.count()).select_from(QuarantineItem).where(QuarantineItem.stage == "index"),
            )
            if standing.released + standing.quarantined + stopped < expected[site.name]:
                return False
            if stages_intake.crossed(site) < stages_intake.released_instances(site):
                return False
        return True

    wait_until(judged, "everything is de-identified or quarantined", 180)


def _stopped_at_the_door(site: Site) -> dict[str, str]:
    """Return SOP Instance UID and reason of what was received and could not even be filed."""
    statement = select(QuarantineItem.path, QuarantineItem.reason_code).where(QuarantineItem.stage == "index")
    folder = site.settings.zone_root("clinical")
    found = {}
    for path, code in site.rows("clinical", statement):
        found[str(dcmread(folder / path, stop_before_pixels=True).SOPInstanceUID)] = str(code)
    return found


def _wait_until_known(site: Site) -> None:
    """A node learns about a new peer within a second or two."""

    def answers() -> bool:
        command = ["/usr/bin/echoscu", "-aet", site.pacs_ae_title, "-aec", site.ae_title]
        done = subprocess.run(
            [*command, "127.0.0.1", str(site.port)], capture_output=True, check=False, timeout=30
        )
        return done.returncode == 0

    wait_until(answers, "the node answers its PACS", 60)


def _learn(road: Road) -> None:
    stages_intake.import_labels(road.world, Deadline(120))
    stages_federation.federate(road.world, Deadline(240))
    stages_result.approve(road.world, Deadline(60))


def _results(road: Road) -> None:
    """Send one more study to each node; its results must reach DCMTK and Orthanc."""
    dcmsend([road.next_guangzhou.path], "GZ_PACS", "GZ_NODE", road.guangzhou.port)
    storescu([road.next_nih.path], "NI_PACS", "NI_NODE", road.nih.port)
    wait_until(lambda: len(_received(road)) >= 2 and len(road.orthanc.instances()) >= 2, "all results", 120)
    road.results = {
        "storescp": [dcmread(path) for path in _received(road)],
        "orthanc": [dcmread(DicomBytesIO(road.orthanc.file(name))) for name in road.orthanc.instances()],
    }


def _received(road: Road) -> list[Path]:
    return sorted(path for path in road.received_files.iterdir() if not path.name.endswith(".tmp"))


def test_every_chest_x_ray_is_received_and_de_identified(road: Road) -> None:
    for site in (road.guangzhou, road.nih):
        statement = select(Study.study_instance_uid, StudyRevision.deidentification_state).join(
            StudyRevision, StudyRevision.study_id == Study.id
        )
        states = dict(site.rows("clinical", statement))
        for study in site.sent.studies:
            assert states[study.study_instance_uid] == "released"


def test_every_vendor_file_is_de_identified_or_quarantined_with_a_reason(road: Road) -> None:
    site = road.guangzhou
    outcomes = {}
    stopped = _stopped_at_the_door(site)
    for vendor in road.vendors:
        if vendor.sop_instance_uid in stopped:
            outcomes[vendor.path.name] = stopped[vendor.sop_instance_uid]
            continue
        row = site.rows(
            "clinical",
            select(Instance.id, StudyRevision.released_count, StudyRevision.quarantined_count)
            .join(Series, Series.id == Instance.series_id)
            .join(StudyRevision, StudyRevision.study_id == Series.study_id)
            .where(Instance.sop_instance_uid == vendor.sop_instance_uid),
        )
        assert row, f"{vendor.path.name} was not received"
        instance_id, released, quarantined = row[0]
        assert released + quarantined > 0
        reasons = site.rows(
            "clinical",
            select(QuarantineItem.reason_code, QuarantineItem.reason).where(
                QuarantineItem.instance_id == instance_id
            ),
        )
        outcomes[vendor.path.name] = reasons[0][0] if reasons else "released"
        assert all(code and reason for code, reason in reasons)
    assert len(outcomes) == len(road.vendors)
    assert outcomes["burned_in_yes.dcm"] != "released"
    assert list(outcomes.values()).count("released") >= 3, outcomes


def test_the_research_zone_holds_what_was_released_and_nothing_else(road: Road) -> None:
    for site in (road.guangzhou, road.nih):
        released = stages_intake.released_instances(site)
        assert stages_intake.crossed(site) == released
        assert site.number("research", select(func.count()).select_from(Label)) == STUDIES
        kinds = dict(site.rows("research", select(Crossing.kind, func.count()).group_by(Crossing.kind)))
        assert set(kinds) == {"instances", "labels"}
        folder = site.settings.zone_root("research")
        for (relative,) in site.rows("research", select(ResearchInstance.path).limit(5)):
            ds = dcmread(folder / relative)
            assert str(ds.PatientIdentityRemoved) == "YES"
            assert "OperatorsName" not in ds


def test_all_rounds_had_both_sites(road: Road) -> None:
    assert road.world.figures["rounds_completed"] == ROUNDS
    assert road.world.figures["sites_per_round"] == [2] * ROUNDS
    assert all(size > 0 for size in road.world.figures["bytes_sent_per_round"])
    parities = [
        value
        for site in (road.guangzhou, road.nih)
        for (value,) in site.rows("research", select(CandidateModel.parity_max_abs))
    ]
    assert len(parities) == 2
    assert max(parities) < 1e-4


def test_dcmtk_and_orthanc_receive_report_and_capture_with_the_true_identity(road: Road) -> None:
    for peer, study in (("storescp", road.next_guangzhou), ("orthanc", road.next_nih)):
        found = road.results[peer]
        assert sorted(str(ds.Modality) for ds in found) == ["OT", "SR"]
        for ds in found:
            assert str(ds.PatientID) == study.patient_id
            assert str(ds.PatientName) == study.patient_name
            assert str(ds.StudyInstanceUID) == study.study_instance_uid
        assert any(str(ds.SOPClassUID).startswith(SR) for ds in found)
        capture = next(ds for ds in found if str(ds.SOPClassUID) == SC)
        assert capture.pixel_array.std() > 10


def test_results_name_the_instance_that_was_sent(road: Road) -> None:
    for peer, study in (("storescp", road.next_guangzhou), ("orthanc", road.next_nih)):
        for ds in road.results[peer]:
            named = {str(element.value) for element in ds.iterall() if element.tag == 0x00081155}
            assert study.sop_instance_uid in named


@pytest.mark.dicom3tools
def test_results_are_valid(road: Road, tmp_path: Path) -> None:
    for number, ds in enumerate(ds for found in road.results.values() for ds in found):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path)
        done = subprocess.run([DCIODVFY, "-new", path], capture_output=True, check=False)
        text = done.stderr.decode("utf-8", "replace")
        assert "Error" not in text, text


def test_studies_before_the_model_have_no_results(road: Road) -> None:
    for site in (road.guangzhou, road.nih):
        assert site.number("clinical", select(func.count()).select_from(Result)) == 2


def test_no_identifier_is_found_outside_the_clinical_zones(road: Road) -> None:
    vendors = frozenset().union(*(vendor.planted for vendor in road.vendors))
    figures = stages_proof.search_leaks(road.world, Deadline(120), vendors)
    assert figures["identifiers_leaked"] == 0
    assert figures["identifiers_searched"] > STUDIES * 10
    assert road.world.figures["identifiers_found_in_clinical_zone"] > STUDIES * 5


def test_every_ledger_verifies(road: Road) -> None:
    figures = stages_proof.verify_ledgers(road.world, Deadline(60))
    assert figures["ledger_ok"]
    assert figures["ledger_entries"] > 2 * STUDIES


def test_studies_of_one_hospital_go_to_the_other_on_everybodys_record(road: Road, tmp_path: Path) -> None:
    for site in (road.guangzhou, road.nih):
        text = site.config.read_text(encoding="utf-8")
        site.config.write_text(
            text.replace("[federation]\n", "[federation]\nshare_studies = true\n"), "utf-8"
        )
    parcel = tmp_path / "for-the-other.share"
    terms = ("--to", road.nih.name, "--ethics", "EK 2026/7", "--purpose", "external validation")

    given = shared(road.guangzhou, "give", parcel, *terms, "--label", LABEL)
    received = shared(road.nih, "receive", parcel)

    assert (received["manifest_sha256"], received["step"]) == (given["manifest_sha256"], "received")
    assert given["instances"] == received["instances"] == STUDIES
    found = read_site_folder(Path(received["folder"]), LABEL)
    assert len(found.cases) == STUDIES
    assert found.skipped == {}
    content = parcel.read_bytes()
    assert road.guangzhou.cohort is not None
    assert not any(value.encode() in content for value in road.guangzhou.cohort.planted)
    shared(road.guangzhou, "withdraw", given["id"])
    assert shared(road.nih, "erase", received["id"])["step"] == "erased"
    assert not Path(received["folder"]).exists()
    shown = json.loads(cloister("ledger", "show", "--json", "--config", road.nih.config))
    steps = [one["share"]["share"]["step"] for one in shown if one["kind"] == "share"]
    assert steps == ["given", "received", "withdrawn", "erased"]
    for site in (road.guangzhou, road.nih):
        cloister("ledger", "verify", "--consortium", "--config", site.config)


def shared(site: Site, *words: str | Path) -> dict[str, Any]:
    """Run a command of ``cloister share`` at a site."""
    found: dict[str, Any] = json.loads(cloister("share", *words, "--json", "--config", site.config))
    return found
