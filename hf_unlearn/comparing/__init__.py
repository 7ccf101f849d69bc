"""Methods compared with a retrained model, on any data: `compare`."""

from hf_unlearn.comparing.config import Comparison
from hf_unlearn.comparing.running import compare
from hf_unlearn.comparing.task import Task

__all__ = ["Comparison", "Task", "compare"]
