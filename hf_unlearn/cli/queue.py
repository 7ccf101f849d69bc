"""`hf-unlearn run --requests`: one request after the other, each with its own record and audit, each exactly once."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from hf_unlearn.cli import NOT_FORGOTTEN, UsageError, before_work
from hf_unlearn.cli.datasets import LoadedData, PreparedData, load_prepared, print_cache_folders, split
from hf_unlearn.cli.endings import exit_code, location
from hf_unlearn.cli.request_queue import QueuedRequest, QueueState, next_batch, read_requests
from hf_unlearn.cli.settings import DataSettings
from hf_unlearn.data.files import flush
from hf_unlearn.data.loading import parse_forget
from hf_unlearn.data.splitting import chosen_numbers, request_for_head, split_forget_retain
from hf_unlearn.data.types import RequestKind
from hf_unlearn.hub.chain import in_records, record_hash, records_of
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.release import check_release
from hf_unlearn.hub.release_files import RECORD_FILE, is_weight_file
from hf_unlearn.losses import head_of
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.continuing import ForgottenRequest
from hf_unlearn.trainer.manifest import checkpoints
from hf_unlearn.trainer.output_folder import used_by_another_run
from hf_unlearn.trainer.trainer import UnlearningTrainer

Record: TypeAlias = Mapping[str, Any]
Load: TypeAlias = Callable[[PreTrainedModel], LoadedData]
Unlearn: TypeAlias = Callable[
    [Any, UnlearningArguments, Load, Record | None, bool], tuple[UnlearningTrainer, LoadedData]
]


def run_queue(
    settings: DataSettings, args: UnlearningArguments, path: str, size: int, after: Record | None, unlearn: Unlearn
) -> int:
    """Do the requests in a file that are not done yet; returns the exit code.

    Args:
        settings: model and data.
        args: of the trainer; every request has a folder of its own in `output_dir`.
        path: the file of requests.
        size: how many requests of one kind a run may forget together.
        after: the record of the request before the first, where there was one.
        unlearn: loads a model and unlearns; see `hf_unlearn.cli.run.unlearn`.
    """
    with before_work():
        read_requests(path)
        folder = Path(str(args.output_dir))
        if (used := used_by_another_run(folder)) is not None:
            raise used
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            return _Queue(settings, args, path, size, after, unlearn).run()
    except Timeout:
        raise UsageError(f"output_dir: another process works on requests in {str(folder)!r}; wait for it") from None


class _Queue:
    def __init__(
        self, settings: Any, args: UnlearningArguments, path: str, size: int, after: Record | None, unlearn: Unlearn
    ):
        self.settings, self.args, self.path, self.size = settings, args, path, size
        self.unlearn, self.folder = unlearn, Path(str(args.output_dir))
        self.first_model, self.first_after = settings.model, after
        self.state = QueueState.read(self.folder)
        self.prepared: PreparedData | None = None

    def run(self) -> int:
        """Do what is left, the requests that are written into the file meanwhile, too."""
        data: LoadedData | None = None
        self._remove_older()  # killed before it had
        while True:
            with before_work():
                requests = read_requests(self.path)
                begun = self.state.begun
                batch = next_batch(requests, self.state.done, self.size)
                if begun and all(request in requests for request in begun):
                    batch = begun
            if not batch:
                break
            if batch != begun or not self._is_complete(batch):
                data = self._forget(batch, resume=batch == begun)
            reason = self._conclude(batch)
            if reason is not None:
                print(f"Stopped: {reason}. Run it again with other settings, or take it out; the others stay done")
                return NOT_FORGOTTEN
        if data is not None:
            print_cache_folders(data)
        print(f"All {len(self.state.done)} requests are done. The model is in {self._number(len(self.state.done))}")
        return 0

    # ---- folders ----

    def _number(self, number: int) -> Path:
        """The folder of the request that is done as this one, from 1."""
        return self.folder / f"request-{number}"

    def _folders(self, batch: list[QueuedRequest]) -> list[Path]:
        return [self._number(len(self.state.done) + place) for place in range(1, len(batch) + 1)]

    def _is_complete(self, batch: list[QueuedRequest]) -> bool:
        """Whether the run of a batch has written everything, and was killed before that was noted."""
        folder = self._folders(batch)[-1]
        if not (folder / RECORD_FILE).exists():
            return False
        with suppress(ValueError):
            check_release(folder)
            return all((each / RECORD_FILE).exists() for each in self._folders(batch))
        return False

    def _make_room(self, folders: list[Path], resume: bool) -> bool:
        """Remove what a run that was killed, or failed, has left; True where it goes on from a checkpoint."""
        goes_on = resume and bool(checkpoints(folders[-1]))
        done, used = len(self.state.done), self.state.used
        left = [self._number(number) for number in range(done + 1, used + 1)]
        for folder in filter(Path.exists, [*left, *folders]):
            if folder not in left:
                raise ValueError(f"output_dir: {str(folder)!r} is there already, by others; use another folder")
            if not (goes_on and folder == folders[-1]):
                shutil.rmtree(folder)
        return goes_on

    # ---- one run ----

    def _forget(self, batch: list[QueuedRequest], resume: bool) -> LoadedData:
        """Forget the samples of some requests in one run, and write what there is to say about each."""
        after, args = self.first_after, copy.copy(self.args)
        if self.state.done:
            last = self._number(len(self.state.done))
            self.settings.model, after = str(last), read_record(last / RECORD_FILE)
        folders = self._folders(batch)
        parts: list[list[int]] = []  # of the forget dataset, one a request
        args.output_dir, args.has_default_output_dir = str(folders[-1]), False
        with before_work():
            goes_on = self._make_room(folders, resume)
        if not resume:
            self.state.begin(batch)

        def load(model: PreTrainedModel) -> LoadedData:
            samples = self._samples(model)
            left = [
                i for i, number in enumerate(in_records(records_of(after) if after else [], samples)) if number is None
            ]
            numbers = [self._chosen(request, samples, left) for request in batch]
            args.request = self._kind(batch[0], model)
            chosen = sorted(number for part in numbers for number in part)
            place = {number: i for i, number in enumerate(chosen)}
            parts.extend([place[number] for number in part] for part in numbers)
            position = {number: i for i, number in enumerate(sorted({*left, *chosen}))}
            selection = {"indices": [position[number] for number in chosen]}
            assert self.prepared is not None
            return split(self.prepared, samples.select(sorted(position)), selection, args.request, args.seed)

        names = ", ".join(repr(request.id) for request in batch)
        print(f"Request {names} ({len(self.state.done) + 1} of {len(read_requests(self.path))}): {batch[0].forget}")
        try:
            trainer, data = self.unlearn(self.settings, args, load, after, goes_on)
        except UsageError as error:
            raise UsageError(f"requests: {names}: {error}") from error
        except KeyboardInterrupt as interrupt:
            done = str(interrupt).partition(";")[0] or "interrupted"
            raise KeyboardInterrupt(f"{done}; the same command goes on with request {names}") from None
        trainer.save_requests(
            [
                ForgottenRequest(data.forget_ds.select(part), folder, request.id)
                for part, folder, request in zip(parts, folders, batch, strict=True)
            ]
        )
        assert trainer.outcome is not None
        print(trainer.outcome.sentence)
        return data

    def _samples(self, model: PreTrainedModel) -> Dataset:
        if self.prepared is None:
            self.prepared = load_prepared(self.settings, model)
        return self.prepared.samples

    def _chosen(self, request: QueuedRequest, samples: Dataset, left: list[int]) -> list[int]:
        """The numbers of a request's samples, which are taken out of those that are left; a share is one of these."""
        selection = parse_forget(request.forget, samples)
        if "fraction" in selection:
            numbers = chosen_numbers(samples.select(left), **selection, seed=self.args.seed)
            chosen = [left[number] for number in numbers]
        else:
            chosen = sorted({*chosen_numbers(samples, **selection)} & {*left})
        if not chosen:
            raise ValueError(f"{request.id!r} asks for samples that were all forgotten before; take it out")
        left[:] = sorted({*left} - {*chosen})
        return chosen

    def _kind(self, request: QueuedRequest, model: PreTrainedModel) -> RequestKind:
        samples = self._samples(model)
        split_ds = split_forget_retain(samples, **parse_forget(request.forget, samples), seed=self.args.seed)
        return request.kind or self.args.request or request_for_head(*split_ds, head_of(model).kind) or "samples"

    # ---- its end ----

    def _conclude(self, batch: list[QueuedRequest]) -> str | None:
        """Note that requests are done, and remove older weights and checkpoints; what is wrong where they are not."""
        folders = self._folders(batch)
        records = [read_record(folder / RECORD_FILE) for folder in folders]
        for request, record in zip(batch, records, strict=True):
            level, ending = (record["audit"] or {}).get("level"), record["outcome"]["ending"]
            sentence = location(ending, level, folders[-1])
            print(f"Request {request.id!r}: {sentence}")
            if exit_code(ending, level):
                self.state.fail(f"request {request.id!r}: {sentence}")
                return f"request {request.id!r} is not done"
        for folder in folders:
            for path in [*filter(os.path.isfile, folder.iterdir()), folder]:
                flush(path)
        flush(self.folder)
        self.state.finish(map(record_hash, records))
        self._remove_older()
        return None

    def _remove_older(self) -> None:
        """Older models still hold what was forgotten later, and checkpoints what was forgotten at all."""
        count = len(self.state.done)
        for number in range(1, count + 1):
            for path in self._number(number).iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif number < count and is_weight_file(path.name):
                    path.unlink()
