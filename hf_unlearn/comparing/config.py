"""The configuration of a comparison: one YAML file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from hf_unlearn.comparing.task import NamedTask, Task
from hf_unlearn.data.loading import split_forget
from hf_unlearn.methods import METHODS
from hf_unlearn.names import did_you_mean
from hf_unlearn.trainer.arguments import UnlearningArguments

BUDGETS = ("max_steps", "seconds")


@dataclass(frozen=True)
class Request:
    """What is to be forgotten, and what the methods may use for it.

    Attributes:
        forget: one expression a seed, in the grammar of `hf_unlearn.data.loading.parse_forget`.
        retain_samples: how many retain samples the methods have; None for all. Models are retrained on all of them.
        retrained: checkpoints of models that were retrained without these samples, one a seed; they are loaded instead
            of being trained. A second retrained model, which `Comparison.retrained` asks for, is always trained.
    """

    forget: tuple[str, ...]
    retain_samples: int | None = None
    retrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods.

    Attributes:
        name: of the results.
        task: `FILE.py:Class`, a `hf_unlearn.comparing.Task`; the path is relative to the configuration. Default: a
            checkpoint and a dataset by name, `NamedTask`.
        options: keyword arguments of the task: paths, names, sizes.
        requests: name to `Request`.
        methods: name to settings of `UnlearningArguments`; the setting `method` defaults to the name.
        seeds: everything is run once for each of them.
        budget: `max_steps` or `seconds`, the same for every method; empty: the default of each method.
        original: checkpoints of models that were trained on all samples, one a seed; they are loaded instead of being
            trained.
        retrained: number of models retrained without the forget dataset. Metrics are compared with the first; the
            distance of the second to it is the seed noise.
        relearning: whether audits try to recover the forgotten data; see `hf_unlearn.audit`.
        folder: folder of the configuration file.
    """

    name: str
    requests: Mapping[str, Request]
    methods: Mapping[str, Mapping[str, Any]]
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: Mapping[str, float] = field(default_factory=dict)
    original: tuple[str, ...] = ()
    retrained: int = 2
    relearning: bool = False
    folder: Path = Path()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Comparison:
        """Read a comparison from a YAML file.

        Raises:
            ValueError: one line that names the key, what was found and what to do.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"config: there is no file {path}; give the YAML file of a comparison")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(
                f"config: {path} is not valid YAML ({' '.join(str(error).split())}); mend it there"
            ) from error
        return cls.from_dict({"name": path.stem, **_mapping("config", values)}, path.parent)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: str | Path = ".") -> Comparison:
        """Make a comparison from plain values; `methods` may be a list or a mapping, `all` among its names.

        Raises:
            ValueError: as `from_yaml`.
        """
        keys = {field.name for field in fields(cls)} - {"folder"}
        if unknown := sorted(map(str, values.keys() - keys)):
            suggestion = did_you_mean(unknown[0], keys)
            raise ValueError(f"config: unknown key {', '.join(unknown)}; use {', '.join(sorted(keys))}{suggestion}")
        for key in ("name", "requests", "methods"):
            if not values.get(key):
                raise ValueError(f"config: {key} is missing; write it, or give another file")
        seeds = values.get("seeds", cls.seeds)
        if (
            not isinstance(seeds, Sequence)
            or not seeds
            or not all(map(_is_count, seeds))
            or len(set(seeds)) < len(seeds)
        ):
            raise ValueError(f"config: seeds must be different whole numbers from 0, got {seeds!r}; write [0, 1, 2]")
        budget = _mapping("budget", values.get("budget", {}))
        if budget.keys() - set(BUDGETS) or len(budget) > 1:
            raise ValueError(f"config: budget must be one of {' or '.join(BUDGETS)}, got {dict(budget)}")
        for key, limit in budget.items():
            if type(limit) not in ((int,) if key == "max_steps" else (int, float)) or not 0 < limit < inf:
                raise ValueError(f"config: budget: {key} must be a number above 0, got {limit!r}")
        retrained, relearning = values.get("retrained", cls.retrained), values.get("relearning", cls.relearning)
        if not _is_count(retrained):
            raise ValueError(f"config: retrained must be a number of models, got {retrained!r}")
        if type(relearning) is not bool:
            raise ValueError(f"config: relearning must be true or false, got {relearning!r}")
        task = values.get("task")
        if task is not None and not isinstance(task, str):
            raise ValueError(f"config: task must be FILE.py:Class, got {task!r}")
        requests = {
            str(name): _request(name, request, len(seeds))
            for name, request in _mapping("requests", values["requests"]).items()
        }
        _check_one_retrained_checkpoint(requests)
        return cls(
            name=str(values["name"]),
            requests=requests,
            methods=_methods(values["methods"]),
            task=task,
            options=_mapping("options", values.get("options", {})),
            seeds=tuple(seeds),
            budget=budget,
            original=_checkpoints("original", values.get("original"), len(seeds)),
            retrained=retrained,
            relearning=relearning,
            folder=Path(folder),
        )

    def load_task_class(self) -> type[Task]:
        """The class of the task.

        Raises:
            ValueError: the file or the class does not exist.
        """
        if self.task is None:
            return NamedTask
        file, _, name = self.task.partition(":")
        module = _load_module((self.folder / file).resolve())
        if not hasattr(module, name):
            raise ValueError(f"config: task names {name!r}, which {file} does not define; write FILE.py:Class")
        return getattr(module, name)

    def forget_expression(self, request: str, seed: int) -> str:
        """What a request forgets in the run of a seed."""
        return self.requests[request].forget[self.seeds.index(seed)]

    def original_checkpoint(self, seed: int) -> str | None:
        """The original model that is loaded for a seed; None if it is trained."""
        return self.original[self.seeds.index(seed)] if self.original else None

    def retrained_checkpoint(self, seed: int, forget: str) -> str | None:
        """The retrained model that is loaded for a seed and a forget expression; None if it is trained."""
        index = self.seeds.index(seed)
        requests = (request for request in self.requests.values() if request.retrained)
        return next((request.retrained[index] for request in requests if request.forget[index] == forget), None)


@lru_cache
def _load_module(path: Path) -> ModuleType:
    """The module of a file, run once."""
    if not path.is_file():
        raise ValueError(f"config: task names {path}, which does not exist; write FILE.py:Class")
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of plain values: a run whose settings have changed is run again."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        what = "the file" if key == "config" else key
        raise ValueError(f"config: {what} must be a mapping, got {type(value).__name__}; write `name: value` lines")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _request(name: str, value: Any, seeds: int) -> Request:
    request = _mapping(f"requests: {name}", value)
    if request.keys() - {"forget", "retain_samples", "retrained"} or "forget" not in request:
        raise ValueError(
            f"config: request {name!r} needs forget, and may have retain_samples and retrained; got {sorted(request)}"
        )
    forget = _one_a_seed(f"request {name!r}", "forget expressions", request["forget"], seeds)
    for expression in forget:
        try:
            split_forget(expression)
        except ValueError as error:
            raise ValueError(f"config: request {name!r}: {error}") from error
    samples = request.get("retain_samples")
    if samples is not None and (not _is_count(samples) or samples == 0):
        raise ValueError(f"config: request {name!r}: retain_samples must be a number of samples, got {samples!r}")
    retrained = _checkpoints(f"request {name!r}: retrained", request.get("retrained"), seeds)
    return Request(forget, samples, retrained)


def _checkpoints(key: str, value: Any, seeds: int) -> tuple[str, ...]:
    """Checkpoints of models that need not be trained, one a seed; empty for None."""
    if value is None:
        return ()
    for checkpoint in value if isinstance(value, list) else [value]:
        if not isinstance(checkpoint, str):
            raise ValueError(f"config: {key} names {checkpoint!r}; give a checkpoint, or one a seed")
    return _one_a_seed(key, "checkpoints", value, seeds)


def _one_a_seed(key: str, kind: str, value: Any, seeds: int) -> tuple[str, ...]:
    """A text for every seed: those of a list, or the same one for all."""
    texts = tuple(str(text) for text in (value if isinstance(value, list) else [value] * seeds))
    if len(texts) != seeds:
        raise ValueError(f"config: {key} has {len(texts)} {kind} for {seeds} seeds; give one each")
    return texts


def _check_one_retrained_checkpoint(requests: Mapping[str, Request]) -> None:
    """Requests that forget the same samples share the model retrained without them."""
    checkpoints: dict[tuple[int, str], str] = {}
    for name, request in requests.items():
        for index, (forget, checkpoint) in enumerate(zip(request.forget, request.retrained, strict=False)):
            first = checkpoints.setdefault((index, forget), checkpoint)
            if first != checkpoint:
                raise ValueError(
                    f"config: request {name!r} has retrained {checkpoint!r}, and another one that forgets {forget!r} "
                    f"has {first!r}; name one of them"
                )


def _methods(value: Any) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(value, str | list):
        value = dict.fromkeys([value] if isinstance(value, str) else value)
    entries = dict(_mapping("methods", value))
    if "all" in entries:
        entries = {**dict.fromkeys(METHODS), **{name: entry for name, entry in entries.items() if name != "all"}}
    methods = {
        name: {"method": name, **_mapping(f"methods: {name}", settings or {})} for name, settings in entries.items()
    }
    for name, settings in methods.items():
        method = settings["method"]
        if method not in METHODS:
            raise ValueError(
                f"config: method {method!r} is none of {', '.join(sorted(METHODS))}; or write `method: NAME` below it"
                f"{did_you_mean(method, METHODS)}"
            )
        known = {field.name for field in fields(UnlearningArguments) if field.init}
        if unknown := sorted(map(str, settings.keys() - known)):
            raise ValueError(
                f"config: method {name!r} has {unknown[0]!r}, which is no setting; use those of UnlearningArguments"
                f"{did_you_mean(unknown[0], known)}"
            )
    return methods
