"""The methods, one small class each; `METHODS` maps a name to its class."""

from hf_unlearn.methods.ascent import Finetune, GradAscent, GradDiff
from hf_unlearn.methods.base import Method, Setting, SurgeryMethod
from hf_unlearn.methods.nabla_tau import NablaTau
from hf_unlearn.methods.orthograd import OrthoGrad

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (NablaTau, OrthoGrad, GradAscent, GradDiff, Finetune)}

__all__ = ["METHODS", "Method", "Setting", "SurgeryMethod"]
