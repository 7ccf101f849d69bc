"""Type aliases of datasets and forget requests."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias


class SizedDataset(Protocol):
    """A map-style dataset with a length.

    `datasets.Dataset`, a `torch.utils.data.Dataset` of dicts with a length and a list of dicts satisfy it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


# `datasets.Dataset` is not named: `datasets` has no type information, and the alias would accept anything.
AnyDataset: TypeAlias = SizedDataset
RequestKind: TypeAlias = Literal["samples", "class", "group"]
