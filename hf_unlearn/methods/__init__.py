"""The methods, one small class each; `METHODS` maps a name to its class."""

from hf_unlearn.methods.ascent import Finetune, GradAscent, GradDiff, NegGradPlus
from hf_unlearn.methods.base import CalibrationPass, Method, MethodSettings, RunInfo
from hf_unlearn.methods.distillation import KL, UNDO, BadTeacher, Scrub, Undial
from hf_unlearn.methods.last_layers import CFk, EUk
from hf_unlearn.methods.nabla_tau import NablaTau, NablaTauImages, NablaTauText
from hf_unlearn.methods.orthograd import ConeGrad, OrthoGrad, OrthoGradAdam
from hf_unlearn.methods.preference import NPO, IdkDPO, SimNPO
from hf_unlearn.methods.relabeling import RandomLabel
from hf_unlearn.methods.small_gradients import MSG
from hf_unlearn.methods.steering import RMU
from hf_unlearn.methods.surgery import FORGETTING_LOSSES, GDRGMA, NGDiff, PCGrad, SurgeryMethod
from hf_unlearn.methods.tokens import CEU, WGA, SatImp
from hf_unlearn.methods.weights import SSD, L1Sparse, SalUn

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        *(NablaTau, NablaTauImages, NablaTauText),
        *(OrthoGrad, OrthoGradAdam, ConeGrad, PCGrad, GDRGMA, NGDiff),
        *(GradAscent, GradDiff, Finetune, NegGradPlus, RandomLabel),
        *(KL, BadTeacher, Scrub, SalUn, L1Sparse, SSD, CFk, EUk, MSG, UNDO),
        *(NPO, SimNPO, WGA, SatImp, CEU, Undial, RMU, IdkDPO),
    )
}

__all__ = ["FORGETTING_LOSSES", "METHODS", "CalibrationPass", "Method", "MethodSettings", "RunInfo", "SurgeryMethod"]
