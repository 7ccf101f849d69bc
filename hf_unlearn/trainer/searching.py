"""A search over hyper-parameters: what a trial may set, and that the run follows it."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import HPSearchBackend
from typing_extensions import override

from hf_unlearn.trainer.continuing import ContinuingMixin

# What the trainer has made of these, with the datasets, is not made anew for a trial.
FIXED = ("method", "request", "forget_target", "reset", "depth")


class SearchingMixin(ContinuingMixin):
    """A `Trainer` whose `hyperparameter_search` tries what it says that it tries."""

    @override
    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer`'s; what a trial sets is checked, and followed where the trainer would choose.

        Raises:
            ValueError: a setting that cannot change from trial to trial, or a value that is not valid; one line.
        """
        if self.hp_search_backend is None or trial is None:
            super()._hp_search_setup(trial)
            return
        # Asked twice, Optuna's trial suggests the same.
        params = self.hp_space(trial) if self.hp_search_backend == HPSearchBackend.OPTUNA else trial
        if fixed := [name for name in FIXED if name in params]:
            raise ValueError(
                f"hp_space: {fixed[0]} cannot change from trial to trial; make a trainer for each value of it"
            )
        super()._hp_search_setup(trial)
        self.args.take_as_given(set(params))
