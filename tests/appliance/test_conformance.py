"""The conformance statement is what the code says, and the file in docs is that statement."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance import cli
from appliance.conformance import TEMPLATE, objects, statement
from appliance.conformance.markdown import table
from appliance.conformance.node import Inspected, inspected
from dicom_node import finding, negotiation, sop_classes

DOCS = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def text() -> str:
    return statement()


@pytest.fixture(scope="module")
def found() -> Inspected:
    return inspected()


def test_the_file_in_docs_is_what_the_code_says(text: str) -> None:
    assert DOCS.read_text(encoding="utf-8") == text, "run: cloister conformance --output docs/conformance.md"


def test_the_same_code_makes_the_same_statement(text: str, tmp_path: Path) -> None:
    target = tmp_path / "statement.md"
    assert CliRunner().invoke(cli.build(), ["conformance", "--output", str(target)]).exit_code == 0
    assert target.read_text(encoding="utf-8") == text
    assert "{{" not in text


def test_it_has_the_chapters_of_the_standard(text: str) -> None:
    chapters = [line for line in text.splitlines() if line.startswith("## ")]
    assert [line.split()[1] for line in chapters] == [str(number) for number in range(1, 11)]


def test_every_service_of_the_node_stands_in_it(text: str, found: Inspected) -> None:
    for service in found.services:
        for uid in service.roles:
            assert text.count(f"(`{uid}`)") >= 3  # overview, service, presentation contexts
        for code in service.statuses.values():
            assert f"| `{code:04X}` |" in text
    for route in found.routes:
        assert f"| `{route.method}` | `{route.path}` | `{route.right}` |" in text


def test_statuses_are_those_of_the_standard_and_no_other_numbers(found: Inspected) -> None:
    by_module = {service.module: service.statuses for service in found.services}
    assert by_module["finding"] == {
        "SUCCESS": 0x0000,
        "OUT_OF_RESOURCES": 0xA700,
        "IDENTIFIER_DOES_NOT_MATCH": 0xA900,
        "UNABLE_TO_PROCESS": 0xC000,
        "CANCELLED": 0xFE00,
        "PENDING": 0xFF00,
        "PENDING_WITH_UNSUPPORTED_KEYS": 0xFF01,
    }
    assert finding.MAX_MATCHES not in by_module["finding"].values()


def test_storage_classes_and_transfer_syntaxes_are_complete(text: str) -> None:
    known = sop_classes.storage_classes()
    assert len(known) > 150
    assert "1.2.840.10008.5.1.4.1.1.2" in known
    assert negotiation.VERIFICATION not in known
    listed = text.partition("## 10 ")[2]
    assert all(f"`{uid}`" in listed for uid in known)
    assert all(f"| `{uid}` |" in text for uid in negotiation.transfer_syntaxes())


def test_results_are_described_as_they_are_made() -> None:
    made = objects.blocks()
    assert "| (0040,A730) | Content Sequence | SQ | made here |" in made["report"]
    assert "| (0008,0060) | Modality | CS | `SR` |" in made["report"]
    assert "| (0010,0020) | Patient ID | LO | copied from the study |" in made["capture"]
    assert "| (7FE0,0010) | Pixel Data |" in made["capture"]
    assert "Segmentation Storage (`1.2.840.10008.5.1.4.1.1.66.4`)" in made["segmentation"]
    assert "| (0062,0001) | Segmentation Type | CS | `BINARY` |" in made["segmentation"]
    assert "| (0008,0020) | Study Date | DA | copied from the study |" in made["segmentation"]


def test_what_is_put_into_the_words_is_all_that_they_ask_for(text: str) -> None:
    asked = set(TEMPLATE.read_text(encoding="utf-8").replace("}}", "{{").split("{{")[1::2])
    assert {"dimse_services", "web_services", "uses"} <= asked
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"
    assert text.endswith("|\n")
