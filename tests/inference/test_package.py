from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

from inference.card import ModelCard
from inference.errors import InferenceError, PackageError
from inference.examine import examine
from inference.package import (
    Limits,
    Package,
    load_package,
    open_package,
    pack,
    package_sha256,
    write_package,
)
from tests.inference.material import EDGE, make_card, make_model, make_onnx

Loader = Callable[..., Package]


@pytest.fixture
def load(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Loader:
    def do(path: Path, limits: Limits | None = None) -> Package:
        return load_package(path, tmp_path / "installed", {"site": signing_key.public_key()}, limits)

    return do


@pytest.fixture
def check(tmp_path: Path, signing_key: Ed25519PrivateKey) -> Loader:
    """What the child process does, without the process: faster, for what needs no limits."""

    def do(path: Path, limits: Limits | None = None) -> Package:
        with tempfile.TemporaryDirectory(dir=tmp_path, prefix="checked-") as target:
            signers = {"site": signing_key.public_key()}
            examine(path, Path(target), signers, limits or Limits())
            return open_package(Path(target), signers)

    return do


def _refused(load: Loader, path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(InferenceError) as caught:
        load(path, limits)
    assert not (path.parent / "installed").exists()
    assert not list(path.parent.glob(".incoming-*")), "nothing stays behind"
    return caught.value.code


def _with_model(
    tmp_path: Path, key: Ed25519PrivateKey, model: ModelProto, card: ModelCard | None = None
) -> Path:
    folder = tmp_path / "hostile"
    write_package(folder, model.SerializeToString(), card or make_card(), key)
    return folder


def test_a_package_loads_from_folder_and_zip_under_one_hash(
    tmp_path: Path, package_folder: Path, load: Loader, signing_key: Ed25519PrivateKey
) -> None:
    pack(package_folder, tmp_path / "package.zip")
    package = load(tmp_path / "package.zip")
    assert package.sha256 == package_sha256(package_folder) == package_sha256(tmp_path / "package.zip")
    assert package.sha256 == hashlib.sha256((package_folder / "SHA256SUMS").read_bytes()).hexdigest()
    assert package.signer == "site"
    assert package.card == make_card()
    assert package.model_path.read_bytes() == make_onnx()
    assert load(package_folder).sha256 == package.sha256
    assert open_package(package.folder, {"other": signing_key.public_key()}).signer == "other"


def test_packing_twice_gives_the_same_bytes(tmp_path: Path, package_folder: Path) -> None:
    pack(package_folder, tmp_path / "a.zip")
    pack(package_folder, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_sums_are_checkable_with_sha256sum(package_folder: Path) -> None:
    assert os.system(f"cd {package_folder} && sha256sum --check --strict --status SHA256SUMS") == 0  # noqa: S605


def test_an_unknown_signer_is_refused(tmp_path: Path, load: Loader) -> None:
    write_package(tmp_path / "p", make_onnx(), make_card(), Ed25519PrivateKey.generate())
    assert _refused(load, tmp_path / "p") == "package.signer"


def test_without_trusted_signers_everything_is_refused(tmp_path: Path, package_folder: Path) -> None:
    with pytest.raises(PackageError, match=r"package\.signer"):
        load_package(package_folder, tmp_path / "installed", {})


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model.onnx", "package.hash"),
        ("model.json", "package.hash"),
        ("SHA256SUMS", "package.signer"),
        ("SHA256SUMS.sig", "package.signer"),
    ],
)
def test_a_changed_byte_in_any_file_is_refused(
    package_folder: Path, check: Loader, name: str, code: str
) -> None:
    content = bytearray((package_folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package_folder / name).write_bytes(content)
    assert _refused(check, package_folder) == code


def test_missing_and_additional_files_are_refused(package_folder: Path, check: Loader) -> None:
    (package_folder / "weights.bin").write_bytes(b"x")
    assert _refused(check, package_folder) == "package.files"
    (package_folder / "weights.bin").unlink()
    (package_folder / "model.json").unlink()
    assert _refused(check, package_folder) == "package.files"


def test_a_link_a_pipe_and_a_folder_in_place_of_a_file_are_refused(
    tmp_path: Path, package_folder: Path, load: Loader
) -> None:
    model = package_folder / "model.onnx"
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")
    assert _refused(load, package_folder) == "package.files"
    model.unlink()
    os.mkfifo(model)
    assert _refused(load, package_folder) == "package.files"
    model.unlink()
    model.mkdir()
    assert _refused(load, package_folder) == "package.files"


def _zip(path: Path, entries: list[tuple[Any, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def _entries(folder: Path) -> list[tuple[Any, bytes]]:
    return [(name, (folder / name).read_bytes()) for name in sorted(entry.name for entry in folder.iterdir())]


@pytest.mark.parametrize("name", ["../model.onnx", "/var/model.onnx", "a/model.onnx", "x" * 300])
def test_a_zip_that_names_another_path_is_refused(
    tmp_path: Path, package_folder: Path, check: Loader, name: str
) -> None:
    entries = [(name if old == "model.onnx" else old, content) for old, content in _entries(package_folder)]
    code = _refused(check, _zip(tmp_path / "p.zip", entries))
    assert code in ("package.files", "package.zip")
    assert not (tmp_path.parent / "model.onnx").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_or_one_too_many_is_refused(
    tmp_path: Path, package_folder: Path, check: Loader
) -> None:
    entries = _entries(package_folder)
    assert _refused(check, _zip(tmp_path / "p.zip", [*entries, entries[0]])) == "package.files"
    assert _refused(check, _zip(tmp_path / "p.zip", [*entries, ("readme.txt", b"")])) == "package.files"
    assert _refused(check, _zip(tmp_path / "p.zip", [(f"f{i}", b"") for i in range(5000)])) == "package.files"


def test_a_link_in_a_zip_is_refused(tmp_path: Path, package_folder: Path, check: Loader) -> None:
    link = zipfile.ZipInfo("model.onnx")
    link.external_attr = 0o120777 << 16
    entries = [
        (link, b"/etc/passwd") if name == "model.onnx" else (name, data)
        for name, data in _entries(package_folder)
    ]
    assert _refused(check, _zip(tmp_path / "p.zip", entries)) == "package.files"


def test_a_zip_bomb_is_refused_by_what_comes_out_of_it(
    tmp_path: Path, package_folder: Path, load: Loader
) -> None:
    bomb = b"\0" * (64 << 20)
    entries = [(name, bomb if name == "model.onnx" else data) for name, data in _entries(package_folder)]
    path = _zip(tmp_path / "p.zip", entries)
    limits = Limits(max_model_bytes=1 << 20)
    assert path.stat().st_size < 1 << 20
    assert _refused(load, path, limits) == "package.size"
    lying = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the sizes that headers claim
        start = lying.find(signature + lying[lying.find(signature) + 4 : lying.find(signature) + 6])
        while start >= 0:
            (claimed,) = struct.unpack_from("<I", lying, start + offset)
            if claimed == len(bomb):
                struct.pack_into("<I", lying, start + offset, 1000)
            start = lying.find(signature, start + 4)
    path.write_bytes(lying)
    assert _refused(load, path, limits) in ("package.size", "package.zip")


def test_what_is_no_zip_is_refused(tmp_path: Path, check: Loader) -> None:
    (tmp_path / "p.zip").write_bytes(b"PK\x03\x04 nothing of the kind")
    assert _refused(check, tmp_path / "p.zip") == "package.zip"
    (tmp_path / "p.zip").unlink()
    assert _refused(check, tmp_path / "p.zip") == "package.files"
    (tmp_path / "p.zip").symlink_to("/dev/zero")
    assert _refused(check, tmp_path / "p.zip") == "package.files"
    (tmp_path / "large.zip").write_bytes(b"PK" * 1000)
    assert _refused(check, tmp_path / "large.zip", Limits(max_archive_bytes=100)) == "package.size"


def test_external_weights_are_refused_wherever_they_hide(
    tmp_path: Path, load: Loader, signing_key: Ed25519PrivateKey
) -> None:
    model = make_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(StringStringEntryProto(key="location", value="../../etc/passwd"))
    assert _refused(load, _with_model(tmp_path, signing_key, model)) == "model.external_data"

    hidden = make_model()
    inner = TensorProto(dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    inner.external_data.append(StringStringEntryProto(key="location", value="weights.bin"))
    hidden.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=inner))
    assert _refused(load, _with_model(tmp_path, signing_key, hidden)) == "model.external_data"


def test_custom_operators_and_functions_are_refused(
    tmp_path: Path, check: Loader, signing_key: Ed25519PrivateKey
) -> None:
    custom = make_model()
    custom.graph.node[0].domain = "com.example"
    assert _refused(check, _with_model(tmp_path, signing_key, custom)) == "model.domain"

    declared = make_model()
    declared.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert _refused(check, _with_model(tmp_path, signing_key, declared)) == "model.domain"

    function = make_model()
    node = helper.make_node("Identity", ["a"], ["b"])
    function.functions.append(helper.make_function("", "Mine", ["a"], ["b"], [node], function.opset_import))
    assert _refused(check, _with_model(tmp_path, signing_key, function)) == "model.domain"


def test_inputs_and_outputs_must_be_those_of_the_card(
    tmp_path: Path, check: Loader, signing_key: Ed25519PrivateKey
) -> None:
    def info(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    more = make_model()
    more.graph.input.append(info("secret", ["n", 4]))
    assert _refused(check, _with_model(tmp_path, signing_key, more)) == "model.input"
    other = make_model()
    other.graph.input[0].CopyFrom(info("image", ["n", 1, EDGE, EDGE], TensorProto.DOUBLE))
    assert _refused(check, _with_model(tmp_path, signing_key, other)) == "model.input"
    single = make_model()
    single.graph.input[0].CopyFrom(info("image", [1, 1, EDGE, EDGE]))
    assert _refused(check, _with_model(tmp_path, signing_key, single)) == "model.input"
    leaking = make_model()
    leaking.graph.output.append(info("logit", ["n", 1]))
    assert _refused(check, _with_model(tmp_path, signing_key, leaking)) == "model.output"
    wide = make_model(findings=3)
    assert _refused(check, _with_model(tmp_path, signing_key, wide)) == "model.output"


def test_a_model_that_answers_no_probabilities_is_refused(
    tmp_path: Path, load: Loader, signing_key: Ed25519PrivateKey
) -> None:
    logits = make_model(sigmoid=False, bias=7.0)
    assert _refused(load, _with_model(tmp_path, signing_key, logits)) == "session.output"
    infinite = make_model(gain=float("nan"))
    assert _refused(load, _with_model(tmp_path, signing_key, infinite)) == "session.output"


def test_what_is_no_onnx_file_is_refused(
    tmp_path: Path, check: Loader, signing_key: Ed25519PrivateKey
) -> None:
    folder = tmp_path / "hostile"
    for content in (b"", b"\xff" * 500, b"\x08\x01" * 50, make_onnx()[:-20]):
        write_package(folder, content, make_card(), signing_key)
        assert _refused(check, folder).startswith("model.")
    broken = make_model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    assert _refused(check, _with_model(tmp_path, signing_key, broken)) == "model.invalid"


def _endless(model: ModelProto, trips: int) -> ModelProto:
    """Let the model count in a loop before it answers."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["carried"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, ["n", 1, EDGE, EDGE]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, ["n", 1, EDGE, EDGE]),
        ],
    )
    model.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [trips]))
    model.graph.initializer.append(helper.make_tensor("start", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("Loop", ["trips", "start", "image"], ["counted"], body=body))
    model.graph.node[1].input[0] = "counted"
    return model


def test_a_model_that_never_answers_is_stopped(
    tmp_path: Path, load: Loader, signing_key: Ed25519PrivateKey
) -> None:
    folder = _with_model(tmp_path, signing_key, _endless(make_model(), 1 << 60))
    assert _refused(load, folder, Limits(time_s=3)) == "package.limits"


def test_a_model_that_takes_too_much_memory_is_stopped(
    tmp_path: Path, load: Loader, signing_key: Ed25519PrivateKey
) -> None:
    greedy = make_model()
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 17, 1 << 15])
    greedy.graph.initializer.append(shape)
    greedy.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    greedy.graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    greedy.graph.node.insert(2, helper.make_node("Add", ["image", "sum"], ["brighter"]))
    greedy.graph.node[3].input[0] = "brighter"
    folder = _with_model(tmp_path, signing_key, greedy)
    assert _refused(load, folder, Limits(memory_bytes=2 << 30)).startswith(("session.", "package.limits"))


def test_a_card_survives_json(package: Package) -> None:
    card = make_card(sop_classes=("1.2.840.10008.5.1.4.1.1.1",), metrics={"auc": 0.9})
    assert ModelCard.from_bytes(card.to_bytes()) == card
    assert ModelCard.from_json(json.loads(json.dumps(package.card.to_json()))) == package.card


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"}, {"name": ""}, {"name": 7}, {"version": "x" * 65}, {"task": "detection"},
        {"surprise": 1}, {"provenance": []}, {"intended_use": "a\nb"}, {"name": "a\x1b[31m"},
    ],
)  # fmt: skip
def test_a_card_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    value = {**make_card().to_json(), **change}
    with pytest.raises(PackageError, match="card"):
        ModelCard.from_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"metrics": NaN}', b"[" * 100_000, b" " * (2 << 20)],
)
def test_what_is_no_card_is_refused(content: bytes) -> None:
    with pytest.raises(PackageError, match="card"):
        ModelCard.from_bytes(content)


def test_a_hostile_card_in_a_signed_package_is_refused(
    package_folder: Path, check: Loader, signing_key: Ed25519PrivateKey
) -> None:
    card = make_card().to_json()
    card["output"]["findings"] = []
    content = {"model.onnx": make_onnx(), "model.json": json.dumps(card).encode()}
    sums = "".join(f"{hashlib.sha256(content[n]).hexdigest()}  {n}\n" for n in sorted(content))
    (package_folder / "model.json").write_bytes(content["model.json"])
    (package_folder / "SHA256SUMS").write_text(sums)
    signature = signing_key.sign(b"cloister model package 1\n" + sums.encode())
    (package_folder / "SHA256SUMS.sig").write_bytes(signature)
    assert _refused(check, package_folder) == "card"
