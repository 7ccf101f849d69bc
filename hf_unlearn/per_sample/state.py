"""What running a model once more must not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class ModuleState:
    """Attributes and buffers of all modules: counters, statistics, lazily made masks."""

    def __init__(self, model: nn.Module):
        self.attributes = {module: dict(vars(module)) for module in model.modules()}
        self.buffers = {
            module: {name: (b, None if b is None else b.clone()) for name, b in module._buffers.items()}
            for module in self.attributes
            if module._buffers
        }

    def restore(self) -> None:
        """Make them what they were."""
        for module, before in self.attributes.items():
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for module, of_module in self.buffers.items():
            module._buffers.clear()
            for name, (buffer, values) in of_module.items():
                module._buffers[name] = buffer
                if buffer is not None and values is not None:
                    buffer.data.copy_(values)  # by data, or a backward pass that needs it would complain


@contextmanager
def unchanged_state(model: nn.Module) -> Iterator[None]:
    """Attributes and buffers of all modules are afterwards what they were."""
    state = ModuleState(model)
    try:
        yield
    finally:
        state.restore()
