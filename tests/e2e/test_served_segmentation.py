"""From the last round of a segmentation to a DICOM SEG in the reading room, by the real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import children, cli, health, node
from appliance.db.clinical import Delivery, ModelState, ModelVersion
from appliance.db.engine import reading
from inference.volumes import read_volume
from tests.appliance.masked_zone import file_masked
from tests.appliance.training_node import TrainingNode, make_training_node
from tests.dicom_node.support import kill_group, wait_until
from tests.e2e.peers import running_storescp, storescu
from tests.trainer import masked
from trainer.local_round import use_threads
from trainer.segmentation.building import build
from trainer.segmentation.dice import dice
from trainer.segmentation.folders import read_mask_folder
from trainer.segmentation.masks import read_mask
from trainer.simulation import simulate
from trainer.task import LocalSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from appliance.node import ClinicalZone

pytestmark = [pytest.mark.e2e, pytest.mark.real_data, pytest.mark.dcmtk, pytest.mark.timeout(240)]

TASK = masked.hippocampus_task(
    local=LocalSpec(batch_size=4, local_steps=60, learning_rate=1e-2), validation_fraction=0.3
)
TRAINED_ON, PASSWORD = 10, "correct horse battery"
MORE_SETTINGS = "\n[dicom]\nport = 0\n[assembly]\nquiet_period_s = 1\n"


@dataclass(frozen=True)
class Hospital:
    """A running node, a reading room, and a patient whom the model has not seen."""

    site: TrainingNode
    clinical: ClinicalZone
    reading_room: Path
    patient: list[Dataset]
    truth: NDArray[np.uint8]
    files: list[Path]

    def cloister(self, *words: object, text: str | None = None) -> str:
        """Run a command of the product; return what it prints."""
        arguments = [*map(str, words), "--config", str(self.site.config)]
        done = CliRunner().invoke(cli.build(), arguments, input=text)
        assert done.exit_code == 0, done.output
        return done.stdout

    def states(self, row: type[ModelVersion | Delivery]) -> list[str]:
        """Return the states of all models or deliveries."""
        with reading(self.clinical.engine) as session:
            return list(session.scalars(select(row.state)))

    def arrived(self) -> dict[str, Dataset]:
        """Return what the reading room has, by SOP class."""
        return {str(ds.SOPClassUID): ds for ds in map(dcmread, self.reading_room.iterdir())}


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    use_threads(1)
    site = make_training_node(tmp_path, count=0, task=TASK)
    with site.config.open("a", encoding="utf-8") as file:
        file.write(MORE_SETTINGS)
    folder = site.zone.root / "instances"
    *names, unseen = masked.hippocampus_names()[: TRAINED_ON + 1]
    for number, name in enumerate(names):
        masked.write(folder, f"S{number}", masked.hippocampus(name))
    file_masked(site.zone, folder)
    dataset = build(read_mask_folder(folder, TASK).stored, TASK, None)
    weights = simulate(TASK, {"site-1": dataset}, rounds=1, seed=1).weights
    site.add_round("finalize", number=3, weights=weights)
    drawn = masked.hippocampus(unseen)
    patient = masked.series(drawn.image, "P-1071", origin=(12.5, -40.0, 31.0))
    with running_storescp(tmp_path / "reading-room") as port:
        files = masked.save(tmp_path / "study", patient)
        clinical = node.open_clinical(site.zone.settings)
        found = Hospital(site, clinical, tmp_path / "reading-room", patient, drawn.mask, files)
        _introduce(found, port)
        argv = [sys.executable, "-m", "appliance.cli", "up", "--config", str(site.config)]
        process = subprocess.Popen(
            argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield found
        finally:
            for pid in children.descendants_of(process.pid):
                children.send_signal(pid, signal.SIGKILL)
            kill_group(process)
            clinical.engine.dispose()


def _introduce(hospital: Hospital, reading_room_port: int) -> None:
    hospital.cloister("user", "add", "ruth", "--role", "admin", "--password-stdin", text=PASSWORD)
    hospital.cloister("peer", "add", "scanner", "SCANNER", "127.0.0.1", "--may-send")
    room = ("reading-room", "READINGROOM", "127.0.0.1", reading_room_port)
    hospital.cloister("peer", "add", *room, "--destination")
    rule = ("--modality", "MR", "--inference", "--destination", "reading-room", "--enable")
    hospital.cloister("rule", "add", "hippocampus", *rule)


def test_the_final_model_is_packaged_evaluated_served_and_its_segmentation_arrives(
    hospital: Hospital,
) -> None:
    settings = hospital.site.zone.settings
    wait_until(lambda: health.overall(settings).well, "the node is well", 90)
    wait_until(
        lambda: hospital.states(ModelVersion) == [ModelState.EVALUATED],
        "the final model is exported, taken in and evaluated",
        60,
    )
    (model,) = json.loads(hospital.cloister("model", "list", "--json"))
    shown = json.loads(hospital.cloister("model", "show", model["id"], "--json"))
    assert shown["metrics"]["dice"]["estimate"] > 0.4
    assert set(shown["metrics"]["segments"]) == {"HIP-ANT", "HIP-POST"}
    hospital.cloister("model", "approve", model["id"], "--to", "active", "--user", "ruth")

    port = int((node.run_dir(settings) / "ports" / "scp").read_text())
    storescu(hospital.files, "SCANNER", "CLOISTER", port)
    wanted = {SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    sent = ["delivered"] * len(wanted)
    wait_until(
        lambda: hospital.states(Delivery) == sent, "segmentation, report and capture are delivered", 60
    )
    assert set(hospital.arrived()) == wanted
    segmentation = hospital.arrived()[SegmentationStorage]
    assert (segmentation.PatientID, segmentation.SegmentationType) == ("P-1071", "BINARY")
    assert model["package_sha256"] in segmentation.SegmentSequence[0][0x00620007][0].AlgorithmParameters
    found = read_mask(segmentation, read_volume(hospital.patient).planes, masked.SEGMENTS)
    assert np.nanmean(dice(hospital.truth[np.newaxis], found[np.newaxis], 2)) > 0.4
    assert dice((hospital.truth > 0)[np.newaxis], (found > 0)[np.newaxis], 1) > 0.6
