"""DICOMweb services (PS3.2 N.5.3)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from appliance.conformance.markdown import joined, status, table
from appliance.conformance.node import refusals
from dicom_node.dicomweb import frames, qido, representations, stow
from dicom_node.dicomweb.storing import REASONS
from dicom_node.transcoding import COMPRESSED_TARGETS, EXPLICIT_VR_LITTLE_ENDIAN, PLAIN_TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.conformance.node import Inspected, WebRoute

_TITLES: Final = {
    "qido": "Search transaction (QIDO-RS)",
    "stow": "Store transaction (STOW-RS)",
    "wado": "Retrieve transaction (WADO-RS): instances, metadata, bulk data",
    "frames": "Retrieve transaction (WADO-RS): frames, rendered, thumbnail",
}
# Statuses that are no refusals of a request as a whole.
_ANSWERED: Final = {"qido": (200,), "stow": (200, 202, 409)}
_PARAMETERS: Final = (
    ("keys of section 5.2", "by keyword or tag; what is not matched at a level is left out, with a warning"),
    ("`includefield`", "keywords, tags, or `all`: what the node keeps for search"),
    ("`limit`, `offset`", "at most `dicomweb.max_results` at once; a warning says that there is more"),
    (
        ", ".join(f"`{name}`" for name in sorted(qido._SWITCHES)),
        "only `false`; `true` is answered with a warning",
    ),
)
# What this node asks of DICOMweb peers.
CLIENTS: Final = {
    "qido": "a person tests a peer",
    "stow": "a person tests a peer",
}
_NOTES: Final = {
    "qido": f"""
- Media types: {", ".join(f"`{kind}`" for kind in qido.JSON_TYPES)}.
""",
    "stow": f"""
- Request: `multipart/related; type="application/dicom"`. Metadata with bulk data apart are not taken.
- Answer: {", ".join(f"`{kind}`" for kind in stow.JSON_TYPES)}.
- Instances are durable before the answer names them; data set bytes stay as they are.
""",
    "wado": f"""
- Media types: `{representations.DICOM}` in `{representations.MULTIPART}`, or alone for one instance;
  metadata as {", ".join(f"`{kind}`" for kind in qido.JSON_TYPES)}; bulk data as `{representations.OCTETS}`.
- Transfer syntaxes: as stored (`transfer-syntax=*`), or converted without loss to
  {", ".join(f"`{uid}`" for uid in sorted(PLAIN_TARGETS | COMPRESSED_TARGETS))};
  `{EXPLICIT_VR_LITTLE_ENDIAN}` by default.
""",
    "frames": f"""
- Media types: `{representations.OCTETS}` (decoded) and, as stored or converted without loss,
  {", ".join(f"`{kind}`" for kind in representations.COMPRESSED)}; pictures as
  {", ".join(f"`{kind}`" for kind in frames.PICTURES)}.
- Parameters of pictures: `window`, `viewport` (width and height alone), `quality`.
""",
}


def blocks(found: Inspected) -> dict[str, str]:
    """Return the services under the path of DICOMweb."""
    modules = list(dict.fromkeys(route.module for route in found.routes))
    served = dict.fromkeys((*modules, *CLIENTS))
    rows = [(_title(name), CLIENTS.get(name, "no"), "yes" if name in modules else "no") for name in served]
    return {
        "overview_web": table(("service", "user agent", "origin server"), rows),
        "web_services": joined(*(_service(module, found.routes) for module in modules)),
    }


def _service(module: str, routes: Iterable[WebRoute]) -> str:
    mine = [route for route in routes if route.module == module]
    rows = [(f"`{route.method}`", f"`{route.path}`", f"`{route.right}`") for route in mine]
    codes = [*_ANSWERED.get(module, (200,)), *refusals(module), 500]
    extra = []
    if module == "qido":
        extra.append(table(("parameter", "support"), _PARAMETERS))
    if module == "stow":
        reasons = [(status(code), reason.value.replace("_", " ")) for reason, code in REASONS.items()]
        extra.append(table(("failure reason (0008,1197)", "an instance was not stored:"), reasons))
    return joined(
        f"#### {_title(module)}",
        table(("method", "resource", "right"), rows),
        _NOTES.get(module, ""),
        *extra,
        table(("status", "meaning"), [(f"`{code}`", HTTPStatus(code).phrase) for code in sorted(set(codes))]),
    )


def _title(module: str) -> str:
    return _TITLES.get(module, module)
