"""Parts of a model on disk while the whole is made, so that no more than one part is ever in memory.

Every constant goes straight to its place in the final `openvino_model.bin`. What is left of a part, its
graph, is an XML file of some kilobytes that points there. The whole is put together from those files, its
constants mapped from the disk, and only its XML is written: the weights are written once.

OpenVINO's serialiser always writes a .bin of its own; it goes to the null device.
"""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from edge.infer import core

_ALIGNMENT = 64  # what the plugins' vector loads like
_LARGE = 1 << 12  # bytes; smaller constants may be shapes, which the graph around them is checked with


class Store:
    """A folder with an XML file for each part, and the .bin they share.

    A part is there when its XML is: the .bin is on the disk before that takes its name. What a killed
    run appended after the last complete part is cut off when the store is opened again.
    """

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.weights = weights
        self.places: dict[str, tuple[int, int]] = {}
        """Offset and size of each constant in the .bin."""
        folder.mkdir(exist_ok=True)
        weights.touch()
        for path in folder.glob("*.xml"):
            try:
                self.places |= dict(_places(path))
            except ElementTree.ParseError:  # the power went before it was on the disk
                path.unlink()
        end = max((offset + size for offset, size in self.places.values()), default=0)
        if weights.stat().st_size < end:  # the disk lost what it had promised: start afresh
            self.places.clear()
            end = 0
            for path in folder.glob("*.xml"):
                path.unlink()
        os.truncate(weights, end)

    def holds(self, part: str) -> bool:
        """Whether the part is complete."""
        return self._xml(part).is_file()

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Writer]:
        """A place at the end of the .bin for the constant `name`, to be filled piece by piece."""
        with self.weights.open("ab") as file:
            writer = Writer(file)
            yield writer
        self.places[name] = (writer.offset, writer.size)

    def keep(self, model: ov.Model, part: str) -> None:
        """Write a part; a constant whose name has a place already is not written again."""
        for node in constants(model):
            name = node.get_friendly_name()
            if name not in self.places:
                with self.open(name) as writer:
                    writer.append(raw_bytes(node))
        with self.weights.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished = self.folder / "unfinished" / f"{part}.xml"  # the serialiser insists on the ending
        unfinished.parent.mkdir(exist_ok=True)
        self.write_xml(model, unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(self._xml(part))

    def load(self, part: str) -> ov.Model:
        """A part as it was kept, its constants mapped from the .bin."""
        return core().read_model(self._xml(part), self.weights)

    def write_xml(self, model: ov.Model, path: Path) -> None:
        """Serialise the graph alone, pointing at the constants' places; the model is used up.

        The serialiser would read and hash every constant's bytes, again for each part. So it is shown Parameters
        of the same types and shapes in place of the large ones, which the XML then calls what they are.
        """
        stand_ins = []
        for node in constants(model):
            if raw_bytes(node).size < _LARGE:
                continue
            kind, shape = node.get_element_type(), node.get_output_shape(0)
            stand_in = ops.parameter(list(shape), kind, name=node.get_friendly_name())
            node.output(0).replace(stand_in.output(0))
            stand_ins.append(stand_in)
        replaced = {node.get_friendly_name() for node in stand_ins}
        model.add_parameters(stand_ins)
        ov.serialize(model, path, os.devnull)
        tree = ElementTree.parse(path)
        for layer in tree.iter("layer"):
            name = str(layer.get("name"))
            if layer.get("type") == "Const" or name in replaced:
                layer.set("type", "Const")
                data = layer.find("data")
                assert data is not None
                offset, size = self.places[name]
                data.set("offset", str(offset))
                data.set("size", str(size))
        tree.write(path, encoding="utf-8", xml_declaration=True)

    def _xml(self, part: str) -> Path:
        return self.folder / f"{part}.xml"


class Writer:
    """One constant on its way into the .bin."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        self.offset = file.tell()
        self.size = 0

    def append(self, piece: NDArray[np.uint8]) -> None:
        """The next bytes of the constant."""
        self._file.write(np.ascontiguousarray(piece).data)
        self.size += piece.size


def constants(model: ov.Model) -> list[Any]:
    """The model's Constants.

    Raises:
        ValueError: two bear one name, so that their places could not be told apart.
    """
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            name = node.get_friendly_name()
            if name in found:
                raise ValueError(f"two constants are named {name}")
            found[name] = node
    return list(found.values())


def raw_bytes(node: Any) -> NDArray[np.uint8]:
    """The constant's bytes without a copy; packed types as they lie."""
    data: NDArray[Any] = np.atleast_1d(node.data)
    return data.reshape(-1).view(np.uint8)


def _places(path: Path) -> list[tuple[str, tuple[int, int]]]:
    found = []
    for layer in ElementTree.parse(path).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            found.append((str(layer.get("name")), (int(str(data.get("offset"))), int(str(data.get("size"))))))
    return found
