"""The settings for retired and private SOP classes hold for all that goes into the inbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from appliance import node
from appliance.filing import open_inbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.settings import Settings

RETIRED, PRIVATE, OTHER_PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.6",
    "1.3.46.670589.11.0.0.12.2",
    "1.2.840.113619.4.30",
)


@pytest.mark.parametrize(
    ("dicom", "accepted"),
    [
        ({}, (True, True, True)),
        ({"retired_sop_classes": False}, (False, True, True)),
        ({"private_sop_classes": [PRIVATE]}, (True, True, False)),
        ({"retired_sop_classes": False, "private_sop_classes": []}, (False, False, False)),
    ],
    ids=["default", "retired", "private", "strict"],
)
def test_the_inbox_takes_what_the_settings_say(
    make_node: Callable[..., Settings], dicom: dict[str, Any], accepted: tuple[bool, ...]
) -> None:
    zone = node.open_clinical(make_node(dicom=dicom))
    accepts = open_inbox(zone).classes.accepts
    assert tuple(map(accepts, (RETIRED, PRIVATE, OTHER_PRIVATE))) == accepted
    zone.engine.dispose()
