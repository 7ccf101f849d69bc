"""Machine unlearning in the library you already use: a Hugging Face Trainer that makes a model forget."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_unlearn._version import __version__

if TYPE_CHECKING:
    from hf_unlearn.auditing.audit import audit
    from hf_unlearn.auditing.shadows import train_shadows
    from hf_unlearn.data.splitting import split_forget_retain
    from hf_unlearn.report.audit_report import AuditReport
    from hf_unlearn.trainer.arguments import UnlearningArguments
    from hf_unlearn.trainer.callbacks import AuditCallback
    from hf_unlearn.trainer.trainer import UnlearningTrainer

__all__ = [
    "AuditCallback",
    "AuditReport",
    "UnlearningArguments",
    "UnlearningTrainer",
    "__version__",
    "audit",
    "split_forget_retain",
    "train_shadows",
]
# Imported when asked for: `hf-unlearn --help` should not wait for torch.
_HOMES = {
    "AuditCallback": "trainer.callbacks",
    "AuditReport": "report.audit_report",
    "UnlearningArguments": "trainer.arguments",
    "UnlearningTrainer": "trainer.trainer",
    "audit": "auditing.audit",
    "split_forget_retain": "data.splitting",
    "train_shadows": "auditing.shadows",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
