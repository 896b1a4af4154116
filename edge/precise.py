"""Which operations of an IR stay in f32 where a device computes in f16: written into the IR's XML.

Python cannot set the attribute on a node, but it can be written where OpenVINO's `read_model` looks for it. The export
marks the norms and RoPE's angles of every model. Where a device still computes wrongly, `variant` gives the same model
with more of them marked: what GLM-4 is known to overflow f16 in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from edge import manifest
from edge.errors import DeviceError, ModelError, OutputError
from edge.files import alone, home, new_folder

PRECISE = "/precise."
"""In the names of operations that the export wants to stay in f32."""
_MARK = "DisablePrecisionConversion"  # older versions called it "precise"
# Type of an operation → names that make it a guilty one; ours first, then what optimum-intel's tracing gives.
_GUILTY = {
    "ScaledDotProductAttention": r".*",
    "MatMul": r".*\.mlp\.down_proj(/.*)?",
    "Multiply": r".*\.q_proj\.scaled|.*\.mlp\.gated|.*\.mlp/aten::mul/Multiply",
    "Add": r".*\.(attention|mlp)_residual|.*\.layers\.\d+/aten::add/Add(_1)?",
}
_NAMES = {kind: re.compile(pattern) for kind, pattern in _GUILTY.items()}
_SOURCE = "source.json"  # in a variant: of what it is one
_WAIT_SECONDS = 120.0
"""For another process that makes the same variant, which takes seconds."""
_COPIED_BYTES = 50_000_000
"""Up to this size a file is copied where it cannot be linked."""


def mark(model_file: Path, *, guilty: bool = False) -> int:
    """Tell the plugins, in the IR's XML, which operations stay in f32; returns how many they are.

    Args:
        guilty: besides those that the export named, also attention, the down projection and the product before it,
            and the residual stream.

    Raises:
        ModelError: it is no XML.
    """
    try:
        tree = ElementTree.parse(model_file)
    except ElementTree.ParseError as error:
        raise ModelError(f"{model_file} is damaged ({error})", hint="Export the model again.") from error
    marked_layers = 0
    for layer in tree.iter("layer"):
        name, pattern = str(layer.get("name")), _NAMES.get(str(layer.get("type")))
        if PRECISE in name or (guilty and pattern is not None and pattern.fullmatch(name)):
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(1 if layer.find("data") is not None else 0, info)
            if all(attribute.get("name") != _MARK for attribute in info):
                ElementTree.SubElement(info, "attribute", name=_MARK, version="0", value="dynamic:f16")
            marked_layers += 1
    tree.write(model_file, encoding="utf-8", xml_declaration=True)
    return marked_layers


def marked(node: Any) -> bool:
    """Whether a node of a model that was read from its IR says that it stays in f32."""
    return any(str(key).startswith(_MARK) for key in node.get_rt_info())


def variant(folder: Path, cache: Path | None = None) -> Path:
    """The exported model in `folder` with its guilty operations marked, in a folder below `cache` (left out: of ours).

    Its XML is its own; the weights are those of `folder` by a hard link, so that it takes no room. One that is there
    and still true is used again. Variants of models that are gone are removed: a link would keep their bytes.

    Raises:
        ModelError: `folder` holds no exported model, or a damaged one.
        DeviceError: the weights are on another disk, and too large to be copied.
        OutputError: `cache` cannot be written, or another process has been writing the same for too long.
    """
    folder = folder.expanduser().resolve()
    made = manifest.Manifest.read(folder)
    cache = cache or home() / "variants"
    target = cache / f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    source = _source(folder)
    if _read(target) == source:
        return target
    with alone(target.with_name(f".{target.name}.making"), _WAIT_SECONDS):
        _prune(cache)
        if _read(target) != source:  # else another process has made it meanwhile
            _make(folder, target, made, source)
    return target


def _make(folder: Path, target: Path, made: manifest.Manifest, source: dict[str, Any]) -> None:
    with new_folder(target) as work:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in (manifest.MODEL_FILE, manifest.FILE_NAME):
                _link(path, work / path.name)
        model_file = work / manifest.MODEL_FILE
        shutil.copyfile(folder / manifest.MODEL_FILE, model_file)
        if not mark(model_file, guilty=True):
            raise DeviceError(
                f"no operation of {folder} bears a name by which it could be kept in f32",
                hint="Load the whole model in f32, or export it again with glm4-edge.",
            )
        sizes = {**made.bytes, manifest.MODEL_FILE: model_file.stat().st_size}
        made.model_copy(update={"bytes": sizes}).write(work)
        (work / _SOURCE).write_text(json.dumps(source), encoding="utf-8")


def _source(folder: Path) -> dict[str, Any]:
    """What a variant is true to: the folder, and its files as they are now."""
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in folder.iterdir() if path.is_file()}
    return {"folder": str(folder), "files": files, "names": _GUILTY}


def _read(variant: Path) -> Any:
    try:
        return json.loads((variant / _SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _prune(cache: Path) -> None:
    for path in cache.iterdir():
        source = _read(path)
        if source is not None and not (Path(source["folder"]) / manifest.MODEL_FILE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
        return
    except OSError as error:
        reason = error.strerror or str(error)
    if path.stat().st_size > _COPIED_BYTES:
        raise DeviceError(
            f"the variant of {path.parent} in f32 cannot share its {path.name} ({reason})",
            hint="Put the model on the disk of the cache, or move the cache with GLM4_EDGE_HOME.",
        )
    try:
        shutil.copyfile(path, place)
    except OSError as error:
        with contextlib.suppress(OSError):
            place.unlink()
        raise OutputError(
            f"{place} cannot be written ({error.strerror or error})", hint="Free some space in the cache."
        ) from error
