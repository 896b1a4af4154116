"""How a model's weights are written: which number format, with which scales, chosen how. Pure facts.

What the preset for small models rests on is measured: `benchmarks/results/pocket_recipes.md`. Those for large
models, igpu and npu follow the devices' rules and have not been measured for quality.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edge import npu
from edge.errors import RecipeError
from edge.model.spec import GlmSpec

SMALL = 1_000_000_000
"""Parameters below which a model is calibrated unless told otherwise: minutes, where a large one takes hours."""
_NPU_PER_CHANNEL = 5_000_000_000  # Intel's advice: one scale per output channel above 5B, groups of 128 below
_XML_BYTES = 60_000
_BACKUP_BITS = {"int8_asym": 8, "int8_sym": 8, "none": 16}

# Kinds of a layer's matrices, by the last part of their names.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """A compression recipe.

    `ratio`, `backup` and what follows them only mean something for int4 weights. Embedding and head always
    get the backup precision.
    """

    weights: str
    """int4, int8, bf16 (nothing is changed) or fp16."""
    group_size: int = -1
    """Weights along the input axis that share a scale; -1: one scale per output channel."""
    symmetric: bool = False
    """No zero point."""
    ratio: float = 1.0
    """Share, at most, of the layers' weights that get 4 bits."""
    backup: str = "none"
    """Precision of what stays out of 4 bits: int8_asym, int8_sym or none (as in the checkpoint)."""
    awq: bool = False
    """Scale the channels of down_proj's input before rounding (NNCF's AWQ), from the weights alone."""
    scale_estimation: bool = False
    """Choose scales that keep the layer's output, over calibration text, rather than its weights."""
    by_weights: bool = False
    """Choose what stays out of 4 bits, layer by layer, from the weights alone: no calibration, little memory."""

    @property
    def needs_calibration(self) -> bool:
        """Whether the model has to be run over calibration text."""
        return self.scale_estimation or (self.selects and not self.by_weights)

    @property
    def selects(self) -> bool:
        """Whether the matrices that stay out of 4 bits are chosen by measuring, not only by kind."""
        return self.weights == "int4" and self.ratio < 1

    @classmethod
    def for_target(
        cls, target: str, spec: GlmSpec, *, weights: str = "int4", calibrate: bool | None = None, **overrides: Any
    ) -> Recipe:
        """The preset for a device (cpu, igpu or npu) and the model's size.

        `calibrate` says whether to choose scales (and what stays out of 4 bits) over calibration text, or from the
        weights alone. `overrides` replace single fields. None leaves the preset's value.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        if calibrate is not None and (calibrate or weights == "int4"):
            given |= {"scale_estimation": calibrate, "by_weights": not calibrate}
            if calibrate:
                given |= {"awq": True}
        if weights != "int4":
            return dataclasses.replace(cls(weights), **given)
        if target == "npu":
            group = _largest_group(spec, 128)
            fits = group >= npu.GROUP and spec.parameter_count() <= _NPU_PER_CHANNEL
            recipe = cls("int4", group_size=group if fits else -1, symmetric=True, backup="int8_sym")
        elif spec.parameter_count() < SMALL:
            recipe = cls(
                "int4", group_size=_largest_group(spec, 32), ratio=0.73, backup="int8_asym", awq=True,
                scale_estimation=True,
            )  # fmt: skip
        else:
            # From the weights alone: calibrating 9B takes hours on a laptop, and waits for a --calibrate.
            recipe = cls(
                "int4", group_size=_largest_group(spec, 128), symmetric=True, backup="int8_asym", awq=True,
                by_weights=True,
            )  # fmt: skip
        return dataclasses.replace(recipe, **given)

    def check(self, spec: GlmSpec, target: str) -> None:
        """Refuse what the model or the device cannot take.

        Raises:
            RecipeError: with the value that was wrong and the way out.
        """
        if not 0 < self.ratio <= 1:
            raise RecipeError(
                f"the ratio {self.ratio} is no share of weights in 4 bits",
                hint="Give a number above 0, up to 1; for none at all there is --weights int8.",
            )
        if target == "npu":
            self._check_npu()
        if self.weights != "int4":
            self._check_plain()
            return
        self._check_groups(spec)

    def estimated_bytes(self, spec: GlmSpec) -> int:
        """Size of the IR, its XML included, in bytes."""
        ends = (1 if spec.tie_word_embeddings else 2) * spec.vocab_size
        inputs = dict(_inputs(spec))
        bits = 0.0
        total = layer_weights(spec)
        share = self.ratio if self.weights == "int4" else 0.0  # of every matrix, as if each were in 4 bits in part
        for kind, size in matrices(spec):
            rows = size / inputs[kind]
            scales = rows if self.group_size == -1 else size / self.group_size
            bits += share * (4 * size + (16 if self.symmetric else 20) * scales)
            bits += (1 - share) * self._backup_size(size, rows)
        bits += self._backup_size(ends * spec.hidden_size, ends)
        small = spec.parameter_count() - total - ends * spec.hidden_size  # norms and biases, in f32
        return int(bits / 8) + 4 * small + _XML_BYTES + self._xml_per_layer() * spec.num_layers

    def _backup_size(self, size: int, rows: float) -> float:
        """Bits of a matrix that is not in 4 bits."""
        precision = {"int8": "int8_sym" if self.symmetric else "int8_asym"}.get(self.weights, self.backup)
        return _BACKUP_BITS[precision] * size + {"int8_asym": 24, "int8_sym": 16, "none": 0}[precision] * rows

    def _xml_per_layer(self) -> int:
        return {"int4": 78_000, "int8": 75_000}.get(self.weights, 60_000)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can carry them."""
        return dataclasses.asdict(self)

    def _check_plain(self) -> None:
        if self.needs_calibration:
            raise RecipeError(
                f"there is nothing to calibrate in {self.weights} weights",
                hint="Leave --calibrate out, or ask for int4 weights.",
            )
        plain = Recipe(self.weights, symmetric=self.symmetric if self.weights == "int8" else False)
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) != getattr(plain, field.name):
                raise RecipeError(
                    f"{field.name} {value} means nothing with {self.weights} weights",
                    hint="Leave it out, or ask for int4 weights.",
                )

    def _check_groups(self, spec: GlmSpec) -> None:
        if self.group_size == -1:
            return
        common = _common_groups(spec)
        if self.group_size in common:
            return
        hint = "Group sizes that fit this model: " + "".join(f"{group}, " for group in common)
        hint += "or -1 (one scale per output channel)." if common else "only -1 (one scale per output channel)."
        for kind, size in _inputs(spec):
            if self.group_size < 1 or size % self.group_size:
                raise RecipeError(
                    f"a group size of {self.group_size} does not divide the {size} inputs of {kind}", hint=hint
                )
        raise RecipeError(f"there are no kernels for a group size of {self.group_size}", hint=hint)

    def _check_npu(self) -> None:
        wrong = None
        if self.weights != "int4":
            wrong = f"{self.weights} weights"
        elif not self.symmetric:
            wrong = "asymmetric int4 weights (asym)"
        elif self.ratio < 1:
            wrong = f"mixed precision (a ratio of {self.ratio})"
        elif self.backup != "int8_sym":
            wrong = f"a backup precision of {self.backup}"
        elif self.group_size != -1 and self.group_size < npu.GROUP:
            wrong = f"groups of {self.group_size} weights"
        if wrong:
            raise RecipeError(
                f"the NPU's compiler does not take {wrong}",
                hint="For the NPU the weights are symmetric int4, all layers in 4 bits, the rest int8_sym, in groups "
                f"of {npu.GROUP} or more, or -1 (one scale per output channel): leave the option out, or export for "
                "cpu or igpu.",
            )


def matrices(spec: GlmSpec) -> list[tuple[str, int]]:
    """Kind and number of weights of every matrix of the layers, embedding and head left out."""
    found = []
    for name, shape in spec.tensor_shapes().items():
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind in KINDS and len(shape) == 2:
            found.append((kind, shape[0] * shape[1]))
    return found


def layer_weights(spec: GlmSpec) -> int:
    """Number of weights in the layers' matrices."""
    return sum(size for _, size in matrices(spec))


def _inputs(spec: GlmSpec) -> list[tuple[str, int]]:
    """The input dimension of every kind of matrix."""
    sizes = {"o_proj": spec.q_size, "down_proj": spec.intermediate_size}
    return [(kind, sizes.get(kind, spec.hidden_size)) for kind in KINDS]


def _common_groups(spec: GlmSpec) -> list[int]:
    """Group sizes, powers of two, that divide every input dimension; kernels know no others."""
    return [group for group in (16, 32, 64, 128, 256) if all(size % group == 0 for _, size in _inputs(spec))]


def _largest_group(spec: GlmSpec, limit: int) -> int:
    """The largest group size up to `limit` that divides every input dimension; -1 where none does."""
    return max((group for group in _common_groups(spec) if group <= limit), default=-1)
