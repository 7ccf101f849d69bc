"""Type aliases of datasets and forget requests."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import datasets


class SizedDataset(Protocol):
    """A map-style dataset with a length: a `torch.utils.data.Dataset` of dicts, a list of dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


AnyDataset: TypeAlias = datasets.Dataset | SizedDataset
RequestKind: TypeAlias = Literal["samples", "class", "group"]
