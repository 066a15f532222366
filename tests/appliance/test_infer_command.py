"""``cloister infer``: a package on a study without a node, of each kind of model, and what may be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread
from typer.testing import CliRunner

from appliance import cli
from inference.package import package_sha256
from inference.volumes import read_volume
from tests.appliance.serving_material import drop_package, study_instance
from tests.inference.deviation_material import make_deviation_card, make_deviation_onnx
from tests.inference.material import EFFUSION, PNEUMONIA, make_card, make_instance, make_onnx
from tests.inference.segment_material import make_segment_card, make_segment_onnx
from tests.trainer import masked
from trainer.segmentation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom import Dataset
    from typer.testing import Result

    from appliance.node import ClinicalZone

DONE, WORK_FAILED, WRONG_USE = 0, 1, 2


@dataclass(frozen=True)
class Bench:
    """Where packages, studies and results lie."""

    zone: ClinicalZone
    folder: Path

    @property
    def signer(self) -> Path:
        return self.zone.settings.crossing_in / "research.pub"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def study(self, instances: Sequence[Dataset]) -> Path:
        masked.save(self.folder / "study", list(instances))
        return self.folder / "study"

    def infer(self, package: Path, study: Path, *options: object) -> Result:
        words = ["infer", package, study, self.out, *(options or ("--signer", self.signer))]
        return CliRunner().invoke(cli.build(), [str(word) for word in words])

    def figures(self, package: Path, study: Path) -> Any:
        done = self.infer(package, study, "--signer", self.signer, "--json")
        assert done.exit_code == DONE, done.output
        return json.loads(done.stdout)


@pytest.fixture
def bench(clinical_zone: ClinicalZone, tmp_path: Path) -> Bench:
    return Bench(clinical_zone, tmp_path)


def test_findings_are_written_as_report_and_capture_and_printed(bench: Bench) -> None:
    package = drop_package(
        bench.zone, card=make_card(findings=(PNEUMONIA, EFFUSION)), onnx=make_onnx(findings=2)
    )
    study = bench.study([study_instance(), study_instance()])
    (study / "notes.txt").write_text("not DICOM")
    figures = bench.figures(package, study)
    assert (figures["pictures"], figures["unreadable"], figures["segments"]) == (2, 0, [])
    assert (figures["package_sha256"], figures["signer"]) == (package_sha256(package), "given")
    written = [dcmread(path) for path in figures["files"]]
    assert [(ds.Modality, ds.PatientID) for ds in written] == [("SR", "P-1071"), ("OT", "P-1071")]
    assert {ds.StudyInstanceUID for ds in written} == {study_instance().StudyInstanceUID}
    pneumonia, effusion = figures["findings"]
    assert (pneumonia["called"], effusion["called"]) == (
        pneumonia["probability"] >= 0.5, effusion["probability"] >= 0.3,
    )  # fmt: skip
    told = bench.infer(package, study)
    side = "at or above" if pneumonia["called"] else "below"
    assert f"Pneumonia: {pneumonia['probability']:.3f} ({side} threshold 0.5)" in told.stdout
    assert "Pleural effusion: " in told.stdout
    assert "notes.txt: " in told.stderr
    assert "left out" in told.stderr


def test_one_file_is_a_study(bench: Bench) -> None:
    study = bench.study([study_instance(), study_instance()])
    figures = bench.figures(drop_package(bench.zone), min(study.iterdir()))
    assert figures["pictures"] == 1


def test_segments_are_written_on_the_series_voxels_and_their_volumes_printed(bench: Bench) -> None:
    package = drop_package(bench.zone, card=make_segment_card(), onnx=make_segment_onnx())
    sources, gap = masked.series(masked.draw(3).image, "P-7"), masked.series(masked.draw(4).image, "P-7")
    del gap[4]
    for ds in gap:
        ds.StudyInstanceUID = sources[0].StudyInstanceUID
    study = bench.study([*sources, *gap])
    figures = bench.figures(package, study)
    assert [dcmread(path).Modality for path in figures["files"]] == ["SEG", "SR", "OT"]
    assert (figures["series"], figures["unreadable"], figures["findings"]) == (1, 1, [])
    read = read_mask(dcmread(figures["files"][0]), read_volume(sources).planes, masked.SEGMENTS)
    assert [row["voxels"] for row in figures["segments"]] == np.bincount(read.ravel())[1:].tolist()
    told = bench.infer(package, study).stdout
    for row in figures["segments"]:
        words = f"series 1: {row['meaning']}: {row['voxels']} voxels, {row['volume_ml']:.3f} mL"
        assert words in told
    assert "left out, since the model could not read it: 1 of the study" in told
    assert "black to white" not in told


def test_of_anomalies_it_is_printed_how_far_marks_differ_and_that_they_are_no_finding(bench: Bench) -> None:
    package = drop_package(bench.zone, card=make_deviation_card(), onnx=make_deviation_onnx())
    study = bench.study(masked.series(masked.draw(3).image, "P-7"))
    figures = bench.figures(package, study)
    assert [dcmread(path).Modality for path in figures["files"]] == ["SEG", "SR", "OT"]
    (row,) = figures["segments"]
    highest, mean = 100 * row["score"]["highest"], 100 * row["score"]["mean"]
    told = bench.infer(package, study).stdout
    assert f"mL, highest {highest:.1f} %, mean {mean:.1f} % of black to white" in told
    assert "marked above 70.0 % of black to white: a difference from what the model learnt as normal" in told
    assert "no finding" in told


def test_every_run_makes_instances_of_its_own(bench: Bench) -> None:
    package, study = drop_package(bench.zone), bench.study([study_instance()])
    uids = [
        {str(dcmread(path).SOPInstanceUID) for path in bench.figures(package, study)["files"]}
        for _ in range(2)
    ]
    assert uids[0].isdisjoint(uids[1])


def test_wrong_use_ends_with_2_and_names_what_is_missing(bench: Bench) -> None:
    package, study = drop_package(bench.zone), bench.study([study_instance()])
    gone = bench.folder / "gone"
    for found in (bench.infer(gone, study), bench.infer(package, gone)):
        assert found.exit_code == WRONG_USE
        assert f"{gone}: does not exist" in found.stderr
    found = bench.infer(package, study, "--config", gone)
    assert found.exit_code == WRONG_USE
    assert "no --signer given and no configuration" in found.stderr
    found = bench.infer(package, study, "--signer", min(study.iterdir()))
    assert found.exit_code == WRONG_USE
    assert not bench.out.exists()


def _gap() -> list[Dataset]:
    instances = masked.series(masked.draw(3).image, "P-7")
    del instances[4]
    return instances


def _damaged() -> list[Dataset]:
    instances = masked.series(masked.draw(3).image, "P-7")
    instances[0].PixelData = b"\0\0"
    return instances


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (lambda: [make_instance(Modality="US")], "result.empty: no instance that the model takes"),
        (list, "result.empty: no instance that the model takes"),
        (_gap, "NotApplicableError: volume.spacing"),
        (_damaged, "pixel.decode"),
        (lambda: [*masked.series(masked.draw(3).image, "P-7"), *masked.series(masked.draw(3).image, "P-7")],
         "result.study: the folder holds several studies"),
        (lambda: [_gap()[0], make_instance(Modality="MR", StudyInstanceUID="2.25.1", PatientID="P-8")],
         "result.study"),
    ],
    ids=["another modality", "nothing", "a gap", "damaged pixels", "two studies", "two studies and patients"],
)  # fmt: skip
def test_a_study_of_which_no_result_can_be_made_ends_with_1_and_its_reason(
    instances: Any, message: str, bench: Bench
) -> None:
    package = drop_package(bench.zone, card=make_segment_card(), onnx=make_segment_onnx())
    found = bench.infer(package, bench.study(instances()))
    assert found.exit_code == WORK_FAILED
    assert message in found.stderr
    assert not bench.out.exists()


def test_two_patients_in_one_study_make_no_result_and_are_not_named(bench: Bench) -> None:
    found = bench.infer(
        drop_package(bench.zone), bench.study([study_instance(), study_instance(PatientID="P-8")])
    )
    assert found.exit_code == WORK_FAILED
    assert "identity.mismatch" in found.stderr
    assert "P-8" not in found.output
    assert not bench.out.exists()


def test_a_package_that_is_not_to_be_trusted_ends_with_1_and_its_reason(bench: Bench) -> None:
    study = bench.study([study_instance()])
    stranger = drop_package(bench.zone, "stranger", key=Ed25519PrivateKey.generate())
    found = bench.infer(stranger, study)
    assert found.exit_code == WORK_FAILED
    assert "package.signer" in found.stderr
    cut = drop_package(bench.zone, "cut")
    cut.write_bytes(cut.read_bytes()[:200])
    found = bench.infer(cut, study)
    assert found.exit_code == WORK_FAILED
    assert "package." in found.stderr
    odd = drop_package(bench.zone, "odd", card=make_segment_card(), onnx=make_onnx())
    found = bench.infer(odd, study)
    assert found.exit_code == WORK_FAILED
    assert "model.input" in found.stderr
    assert not bench.out.exists()


def test_without_a_signer_the_node_s_research_zone_must_have_signed(bench: Bench) -> None:
    package, study = drop_package(bench.zone), bench.study([study_instance()])
    config = bench.folder / "cloister.toml"
    config.write_text(f'name = "n"\ndata_root = "{bench.zone.settings.data_root}"\n')
    found = bench.infer(package, study, "--config", config, "--json")
    assert found.exit_code == DONE, found.output
    assert json.loads(found.stdout)["signer"] == "research"
