"""From the last round of FedDis to what is marked in the reading room, by the real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import highdicom as hd
import numpy as np
import pytest
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from appliance.db.base import WorkState
from inference.deviations import DEVIATION
from inference.preprocessing import PreprocessingSpec
from inference.volumes import read_volume
from tests.appliance.masked_zone import file_masked
from tests.appliance.test_segmentation import deliver
from tests.appliance.training_node import make_training_node
from tests.e2e.hospital import running
from tests.trainer import masked
from tests.trainer.healthy import healthy_task, with_anomalies, write_healthy, write_sick
from trainer import strategies, weights_io
from trainer.federation.plan import Strategy
from trainer.local_round import use_threads
from trainer.networks import initial_weights
from trainer.segmentation.masks import read_mask
from trainer.segmentation.spec import Segment
from trainer.task import LocalSpec, NetworkSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.hospital import Hospital

pytestmark = [pytest.mark.e2e, pytest.mark.real_data, pytest.mark.dcmtk, pytest.mark.timeout(240)]

TASK = healthy_task(
    preprocessing=PreprocessingSpec(rows=32, columns=32),
    network=NetworkSpec("split-autoencoder", {"features": [8, 16, 32, 32], "code": 4}),
    local=LocalSpec(batch_size=16, local_steps=200, learning_rate=5e-3, weight_decay=0.0),
    validation_fraction=0.3,
)
MARKED = (Segment(DEVIATION.code, DEVIATION.scheme, DEVIATION.meaning),)
HEALTHY, SICK = 16, 4
SLICES = slice(14, 18)


def names() -> tuple[list[str], str]:
    """Return the volumes of the site's people, and the patient's."""
    *known, unseen = masked.hippocampus_names()[: HEALTHY + SICK + 1]
    return known, unseen


def slices(name: str) -> masked.Drawn:
    """Return slices of a volume with an anomaly in each."""
    generator = np.random.default_rng(sum(name.encode()))
    return with_anomalies(masked.hippocampus(name).image[SLICES], generator)


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    use_threads(1)
    site = make_training_node(tmp_path, count=0, task=TASK, strategy=Strategy("feddis", {}))
    folder = site.zone.root / "instances"
    known, unseen = names()
    for number, name in enumerate(known):
        if number < HEALTHY:
            write_healthy(folder, f"S{number}", masked.hippocampus(name).image[SLICES])
        else:
            write_sick(folder, f"S{number}", slices(name))
    file_masked(site.zone, folder)
    shared = strategies.get("feddis").prepared(initial_weights(TASK))
    trained = deliver(site, site.add_round(weights=shared))
    assert trained.state == WorkState.DONE, trained.reason
    update = weights_io.load(site.zone.root / str(trained.output_path))
    shared = {name: array + update[name] for name, array in shared.items()}
    site.add_round("finalize", number=2, weights=shared)
    with running(site, tmp_path, masked.series(slices(unseen).image, "P-1071")) as found:
        yield found


def test_the_final_model_is_packaged_evaluated_served_and_what_it_marks_arrives(hospital: Hospital) -> None:
    hospital.wait_for_the_final_model()
    (model,) = json.loads(hospital.cloister("model", "list", "--json"))
    shown = json.loads(hospital.cloister("model", "show", model["id"], "--json"))
    figures = shown["metrics"]
    assert figures["dice"]["estimate"] > 0.1
    assert figures["threshold"] > 0
    assert figures["anomalous"] == SICK * 4
    assert shown["provenance"]["federation"]["this_site_s_own"] == "appearance encoder"
    hospital.cloister("model", "approve", model["id"], "--to", "active", "--user", "ruth")

    hospital.send_the_patient(results=3)
    wanted = {SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage}
    arrived = hospital.arrived()
    assert set(arrived) == wanted
    segmentation = arrived[SegmentationStorage]
    assert (segmentation.PatientID, segmentation.SegmentationType) == ("P-1071", "BINARY")
    assert model["package_sha256"] in segmentation.SegmentSequence[0][0x00620007][0].AlgorithmParameters
    found = read_mask(segmentation, read_volume(hospital.patient).planes, MARKED) > 0
    truth = slices(names()[1]).mask > 0
    assert found[truth].mean() > 3 * found[~truth].mean() > 0
    content = hd.sr.ComprehensiveSR.from_dataset(arrived[ComprehensiveSRStorage]).content
    (group,) = content.get_volumetric_roi_measurement_groups()
    (volume,) = group.get_measurements(hd.sr.CodedConcept("118565006", "SCT", "Volume"))
    assert volume.value == pytest.approx(found.sum() / 1000, abs=5e-4)
