"""Per-sample gradients of one architecture against one backward pass a sample, in float64."""

from __future__ import annotations

import copy
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from building import TEXT_TASKS, Architecture, Batch, batch_for, build, has_experts
from torch import Tensor

from hf_unlearn.losses import head_of
from hf_unlearn.models.adapters import add_adapter, merged
from hf_unlearn.models.eval_mode import EvalMode
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.factors import Recording
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.plan import Way

Mode = Literal["all", "lora"]
MODES: tuple[Mode, ...] = ("all", "lora")
# From best to worst: an architecture that runs in two arithmetics has the worse outcome of the two.
OUTCOMES = ("exact", "partly", "loop", "refused", "not built", "crashed", "wrong")
# The largest relative error of a parameter. Parts of many models compute in float32 whatever the weights are, and a
# rounding error counts where the true gradient is zero (the bias of attention's keys).
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-2}
# Parameters with less than this share of the largest gradient are measured against that share.
SMALLEST_SHARE = 1e-3


@dataclass
class Result:
    """What became of an architecture in one mode.

    Attributes:
        outcome: one of `OUTCOMES`.
        error: the largest relative error of a parameter's per-sample gradients, over all batches.
        parameter: which one had it.
        message: why it was refused or not built, or how it crashed.
        fallback: the parameters for which a module, the one around it, or the whole model (alone) runs again.
        idle: parameters that the losses do not depend on.
        arithmetic: in which dtypes it ran, mixtures of experts in two.
        merge_error: with an adapter, the relative error of the losses of the merged model.
        seconds: it took.
    """

    name: str
    model_type: str
    task: str
    mode: Mode
    outcome: str = "exact"
    error: float = 0.0
    parameter: str = ""
    message: str = ""
    fallback: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    arithmetic: list[str] = field(default_factory=list)
    merge_error: float = 0.0
    seconds: float = 0.0


def sweep(architecture: Architecture, mode: Mode, seed: int = 0) -> dict[str, Any]:
    """The result of one architecture in one mode, ready for JSON; nothing is raised."""
    start = time.perf_counter()
    result = Result(architecture.name, architecture.model_type, architecture.task, mode)
    try:
        models = list(models_of(architecture, seed))
    except Exception as error:
        result.outcome, result.message = "not built", _line(error)
    else:
        for model in models:
            _measure(result, architecture, model, mode, seed)
    result.seconds = round(time.perf_counter() - start, 2)
    return asdict(result)


def models_of(architecture: Architecture, seed: int = 0) -> Iterator[Any]:
    """The model in float64; with experts, in float32 as well: their grouped matrix products are not in float64.

    A model that computes no finite losses in float64 (its masks are float32's) is there in float32 alone.
    """
    model = build(architecture, seed)
    model.config.use_cache = False  # as Trainer does
    if has_experts(model):
        yield copy.deepcopy(model).float()
        model.set_experts_implementation("eager")
    batch = batch_for(architecture, model, 2)
    try:
        finite = bool(losses_of(model)(batch).isfinite().all())
    except RuntimeError:
        finite = False
    if not finite:
        model, batch = model.float(), _in_dtype(batch, torch.float32)
        if not losses_of(model)(batch).isfinite().all():
            raise ValueError("its losses are not finite")
    yield model


def losses_of(model: Any) -> Callable[[Batch], Tensor]:
    """The per-sample losses by the model's head; the mean squares of the logits where it has none."""
    try:
        head = head_of(model)
    except ValueError:
        return lambda batch: (
            model(**{n: v for n, v in batch.items() if n != "labels"}).logits.square().flatten(1).mean(1)
        )
    return lambda batch: head.losses(head.run(model, batch), batch)


def _measure(result: Result, architecture: Architecture, model: Any, mode: Mode, seed: int) -> None:
    dtype = next(model.parameters()).dtype
    result.arithmetic.append(str(dtype).removeprefix("torch."))
    sizes = [(3, 12), (2, 12), (4, 12), *([(3, 16)] if architecture.task in TEXT_TASKS else [])]
    batches = [_in_dtype(batch_for(architecture, model, *size, seed + i), dtype) for i, size in enumerate(sizes)]
    warnings, log = _Warnings(), logging.getLogger("hf_unlearn.per_sample")
    log.addHandler(warnings)
    try:
        if mode == "lora":
            model = with_adapter(model, dtype, seed)
        engine = PerSampleGradients(model, losses_of(model))
        reached: set[str] = set()
        for batch in batches:
            _compare(result, engine, batch, reached)
        result.idle += sorted(set(engine.parameters) - reached - set(result.idle))
        if mode == "lora":
            result.merge_error = max(result.merge_error, merge_error(model, engine.losses, batches[0]))
        _worsen(
            result,
            "wrong" if result.error > TOLERANCES[dtype] else _outcome(result, engine),
            "; ".join(warnings.texts),
        )
    except Exception as error:
        _worsen(result, "refused" if _is_refusal(error) else "crashed", _line(error))
    finally:
        log.removeHandler(warnings)


def _outcome(result: Result, engine: PerSampleGradients) -> str:
    """How the gradients were computed; keeps the parameters for which something runs again for every sample."""
    if engine.engine == "loop":
        return "loop"
    again = {name: way.name.lower() for name, way in engine.ways.items() if way >= Way.MODULE}
    result.fallback = sorted({*result.fallback, *(f"{name} ({way})" for name, way in again.items())})
    return "partly" if again else "exact"


class _Warnings(logging.Handler):
    """Keeps why the engine fell back to the loop."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _worsen(result: Result, outcome: str, message: str = "") -> None:
    if OUTCOMES.index(outcome) > OUTCOMES.index(result.outcome):
        result.outcome, result.message = outcome, message


def with_adapter(model: Any, dtype: torch.dtype, seed: int = 0) -> Any:
    """With the default adapter, as after some steps: at first lora_B is zero, and lora_A has no gradient."""
    adapted = add_adapter(model).to(dtype)
    EvalMode().apply(adapted)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator, dtype=dtype), alpha=0.1)
    return adapted


def _compare(result: Result, engine: PerSampleGradients, batch: Batch, reached: set[str]) -> None:
    """Keep the largest relative error of a batch, and the parameters with a gradient."""
    recording = engine(batch)
    expected = PerSampleGradients(engine.model, engine.losses, "loop")(batch)
    _keep(result, "the losses", recording.losses, expected.losses, 0.0)
    gradients, truth = _gradients(recording, engine), _gradients(expected, engine)
    norms = {name: float(value.norm()) for name, value in truth.items()}
    least = SMALLEST_SHARE * max(norms.values())
    for name, value in truth.items():
        _keep(result, name, gradients[name], value, least)
        if norms[name] > 0:
            reached.add(name)


def _gradients(recording: Recording, engine: PerSampleGradients) -> dict[str, Tensor]:
    return recording.gradients(engine.parameters)


def _keep(result: Result, name: str, values: Tensor, expected: Tensor, least: float) -> None:
    scale = max(float(expected.norm()), least)
    error = float((values - expected).norm()) / scale if scale else float(values.norm())
    if not error <= result.error:  # NaN as well
        result.error, result.parameter = error, name


def merge_error(adapted: Any, losses: Callable[[Batch], Tensor], batch: Batch) -> float:
    """How far a merged adapter is from the adapted model: the relative error of the losses."""
    with torch.no_grad():
        expected, actual = losses(batch), losses_of(merged(adapted).eval())(batch)
    return float((actual - expected).norm() / expected.norm())


def _in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def _is_refusal(error: Exception) -> bool:
    """Whether this library refused, rather than something inside of it failed."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError | NotCovered) and "hf_unlearn" in place.filename


def _line(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({place.filename.rpartition('/')[2]}:{place.lineno})"
