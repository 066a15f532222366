"""From the last round of a segmentation to a DICOM SEG in the reading room, by the real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from inference.volumes import read_volume
from tests.appliance.masked_zone import file_masked
from tests.appliance.training_node import make_training_node
from tests.e2e.hospital import running
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

    from tests.e2e.hospital import Hospital

pytestmark = [pytest.mark.e2e, pytest.mark.real_data, pytest.mark.dcmtk, pytest.mark.timeout(240)]

TASK = masked.hippocampus_task(
    local=LocalSpec(batch_size=4, local_steps=60, learning_rate=1e-2), validation_fraction=0.3
)
TRAINED_ON = 10


def names() -> tuple[list[str], str]:
    """Return the volumes to train on, and the patient's."""
    *known, unseen = masked.hippocampus_names()[: TRAINED_ON + 1]
    return known, unseen


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    use_threads(1)
    site = make_training_node(tmp_path, count=0, task=TASK)
    folder = site.zone.root / "instances"
    known, unseen = names()
    for number, name in enumerate(known):
        masked.write(folder, f"S{number}", masked.hippocampus(name))
    file_masked(site.zone, folder)
    dataset = build(read_mask_folder(folder, TASK).stored, TASK, None)
    weights = simulate(TASK, {"site-1": dataset}, rounds=1, seed=1).weights
    site.add_round("finalize", number=3, weights=weights)
    patient = masked.series(masked.hippocampus(unseen).image, "P-1071", origin=(12.5, -40.0, 31.0))
    with running(site, tmp_path, patient) as found:
        yield found


def test_the_final_model_is_packaged_evaluated_served_and_its_segmentation_arrives(
    hospital: Hospital,
) -> None:
    hospital.wait_for_the_final_model()
    (model,) = json.loads(hospital.cloister("model", "list", "--json"))
    shown = json.loads(hospital.cloister("model", "show", model["id"], "--json"))
    assert shown["metrics"]["dice"]["estimate"] > 0.4
    assert set(shown["metrics"]["segments"]) == {"HIP-ANT", "HIP-POST"}
    hospital.cloister("model", "approve", model["id"], "--to", "active", "--user", "ruth")

    hospital.send_the_patient(results=3)
    wanted = {SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    assert set(hospital.arrived()) == wanted
    segmentation = hospital.arrived()[SegmentationStorage]
    assert (segmentation.PatientID, segmentation.SegmentationType) == ("P-1071", "BINARY")
    assert model["package_sha256"] in segmentation.SegmentSequence[0][0x00620007][0].AlgorithmParameters
    found = read_mask(segmentation, read_volume(hospital.patient).planes, masked.SEGMENTS)
    truth = masked.hippocampus(names()[1]).mask
    assert np.nanmean(dice(truth[np.newaxis], found[np.newaxis], 2)) > 0.4
    assert dice((truth > 0)[np.newaxis], (found > 0)[np.newaxis], 1) > 0.6
