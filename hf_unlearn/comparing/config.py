"""What a comparison is: one YAML file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hf_unlearn.comparing.task import NamedTask
from hf_unlearn.methods import METHODS

BUDGETS = ("max_steps", "seconds")


@dataclass(frozen=True)
class Request:
    """What is to be forgotten, and what the methods may use for it.

    Attributes:
        forget: one expression a seed, in the grammar of `hf_unlearn.data.loading.parse_forget`.
        retain_samples: how many retain samples the methods have; None for all. Models are retrained on all of them.
        retrained: checkpoints of models that were retrained without these samples, one a seed: the retrained model is then
            loaded. A second retrained model, which `Comparison.retrained` asks for, is trained here nevertheless.
    """

    forget: tuple[str, ...]
    retain_samples: int | None = None
    retrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods.

    Attributes:
        name: of the results.
        task: `FILE.py:Class`, a `hf_unlearn.comparing.Task`, the file beside the configuration; default: a task on a
            checkpoint and a dataset by name.
        options: of the task, by keyword: paths, names, sizes.
        requests: name to `Request`.
        methods: name to settings of `UnlearningArguments`; `method` among them where it is not the name.
        seeds: one run each, of everything.
        budget: `max_steps` or `seconds`, the same for every method; none: each method's own default.
        original: checkpoints of models that were trained on all samples, one a seed: they are then loaded, not trained.
        retrained: models retrained without the forget dataset: one is the retrained model, a second the yardstick.
        relearning: whether audits try to bring the data back; see `hf_unlearn.audit`.
        folder: where the configuration stands.
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
        """The comparison that a YAML file describes.

        Raises:
            ValueError: one line that names the key, what was found and what to do.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"config: there is no file {path}")
        try:
            found = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"config: {path} is no YAML: {' '.join(str(error).split())}") from error
        return cls.from_dict({"name": path.stem, **_mapping("config", found)}, path.parent)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], folder: str | Path = ".") -> Comparison:
        """The comparison that plain values describe; `methods` may be a list or a mapping, `all` among its names.

        Raises:
            ValueError: as `from_yaml`.
        """
        names = {each.name for each in fields(cls)} - {"folder"}
        if unknown := sorted(found.keys() - names):
            raise ValueError(f"config: knows no {', '.join(unknown)}; its keys are {', '.join(sorted(names))}")
        for name in ("name", "requests", "methods"):
            if not found.get(name):
                raise ValueError(f"config: {name} is missing")
        seeds = tuple(found.get("seeds", cls.seeds))
        if not seeds or len(set(seeds)) != len(seeds) or not all(type(seed) is int for seed in seeds):
            raise ValueError(f"config: seeds are to be different whole numbers, got {list(seeds)}")
        budget = _mapping("budget", found.get("budget", {}))
        if budget.keys() - set(BUDGETS) or len(budget) > 1:
            raise ValueError(f"config: budget is one of {' or '.join(BUDGETS)}, got {dict(budget)}")
        requests = _mapping("requests", found["requests"])
        requests = {str(name): _request(name, each, len(seeds)) for name, each in requests.items()}
        _refuse_two_references(requests)
        return cls(
            name=str(found["name"]),
            requests=requests,
            methods=_methods(found["methods"]),
            task=found.get("task"),
            options=_mapping("options", found.get("options", {})),
            seeds=seeds,
            budget=budget,
            original=_checkpoints("original", found.get("original"), len(seeds)),
            retrained=found.get("retrained", cls.retrained),
            relearning=found.get("relearning", cls.relearning),
            folder=Path(folder),
        )

    @property
    def task_class(self) -> Any:
        """The class of the task.

        Raises:
            ValueError: when the file or the class is not there.
        """
        if self.task is None:
            return NamedTask
        file, _, name = self.task.partition(":")
        module = _module((self.folder / file).resolve())
        if not hasattr(module, name):
            raise ValueError(f"config: task names {name!r}, which {file} does not define")
        return getattr(module, name)


@lru_cache
def _module(path: Path) -> Any:
    """The module of a file, run once."""
    if not path.is_file():
        raise ValueError(f"config: task names {path}, which is not there; write FILE.py:Class")
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of plain values: a cell is run again when what made it has changed."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _mapping(name: str, found: Any) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"config: {name} is to be a mapping, got {type(found).__name__}")
    return found


def _request(name: str, found: Any, seeds: int) -> Request:
    found = _mapping(f"requests: {name}", found)
    if found.keys() - {"forget", "retain_samples", "retrained"} or "forget" not in found:
        raise ValueError(
            f"config: request {name!r} has forget and, if wanted, retain_samples and retrained; got {sorted(found)}"
        )
    forget = _one_a_seed(f"request {name!r}", "forget expressions", found["forget"], seeds)
    retrained = _checkpoints(f"request {name!r}: retrained", found.get("retrained"), seeds)
    return Request(forget, found.get("retain_samples"), retrained)


def _checkpoints(name: str, found: Any, seeds: int) -> tuple[str, ...]:
    """Those of models that need not be trained, one a seed; none where none are named."""
    if found is None:
        return ()
    if wrong := [each for each in (found if isinstance(found, list) else [found]) if not isinstance(each, str)]:
        raise ValueError(f"config: {name} names {wrong[0]!r}; give a checkpoint, or one a seed")
    return _one_a_seed(name, "checkpoints", found, seeds)


def _one_a_seed(name: str, what: str, found: Any, seeds: int) -> tuple[str, ...]:
    """A text for every seed: those of a list, or the same one."""
    each = tuple(str(one) for one in (found if isinstance(found, list) else [found] * seeds))
    if len(each) != seeds:
        raise ValueError(f"config: {name} has {len(each)} {what} for {seeds} seeds; give one each")
    return each


def _refuse_two_references(requests: Mapping[str, Request]) -> None:
    """Requests that forget the same samples share the model retrained without them."""
    there: dict[tuple[int, str], str] = {}
    for name, request in requests.items():
        for place, (forget, checkpoint) in enumerate(zip(request.forget, request.retrained, strict=False)):
            if there.setdefault((place, forget), checkpoint) != checkpoint:
                raise ValueError(
                    f"config: request {name!r} has retrained {checkpoint!r}, and another one that forgets {forget!r} "
                    f"has {there[place, forget]!r}; name one of them"
                )


def _methods(found: Any) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(found, str | list):
        found = dict.fromkeys([found] if isinstance(found, str) else found)
    found = dict(_mapping("methods", found))
    if "all" in found:
        found = {**dict.fromkeys(METHODS), **{name: each for name, each in found.items() if name != "all"}}
    methods = {name: {"method": name, **(settings or {})} for name, settings in found.items()}
    for name, settings in methods.items():
        if settings["method"] not in METHODS:
            raise ValueError(
                f"config: method {name!r} is none of {', '.join(sorted(METHODS))}; or write `method: NAME` below it"
            )
    return methods
