"""Requests in turn: after every one, what is left of each earlier one, beside models trained without any of them.

    python benchmarks/continual.py benchmarks/recipes/continual_digits.yaml --output_dir runs/continual_digits
    python benchmarks/continual.py benchmarks/recipes/real/continual_intents.yaml --output_dir runs/continual_intents

A configuration is that of a comparison (`hf-unlearn compare`); its requests are forgotten in their order, on the
model that the request before has left, by `UnlearningTrainer.continue_with`. Shares (`5%`) are drawn from what is
left. Retrained models are trained without the samples of all requests, and are what the last row is compared with.
What is in the results already is not run again.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.comparing import Comparison, Task
from hf_unlearn.comparing.unlearning import measure_time
from hf_unlearn.data.collator import readable_collator
from hf_unlearn.data.files import replacing
from hf_unlearn.data.loading import parse_forget
from hf_unlearn.data.splitting import chosen_numbers, in_memory, request_for_head, select
from hf_unlearn.losses import head_of
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import quiet

# Within so many points of a retrained model a request counts as forgotten, or within the distance of two of them.
MARGIN = 2.0
COSTS = ("sample_passes", "cost_of_retraining", "processor_seconds", "seconds")


class Requests:
    """The samples of every request of a task, in turn, and what is left after each."""

    def __init__(self, task: Task, expressions: list[str], head_kind: str):
        self.task, train = task, task.datasets["train"]
        left = list(range(len(train)))
        self.forgotten, self.left, self.kinds = [], [], []
        for expression in expressions:
            rest = train.select(left)
            selection = parse_forget(expression, rest)
            numbers = chosen_numbers(rest, **selection, seed=task.seed)
            forget_ds, retain_ds = split_forget_retain(rest, **selection, seed=task.seed)
            self.kinds.append(request_for_head(forget_ds, retain_ds, head_kind) or "samples")
            self.forgotten.append([left[number] for number in numbers])
            left = sorted({*left} - {*self.forgotten[-1]})
            self.left.append(left)

    def samples(self, numbers: list[int]) -> Any:
        return in_memory(self.task.datasets["train"].select(numbers))

    def without_classes(self, dataset: Any, count: int) -> Any:
        """A dataset without the classes of the first requests: no retrained model could tell them."""
        classes: set[int] = set()
        for kind, numbers in zip(self.kinds[:count], self.forgotten, strict=False):
            if kind == "class":
                classes |= {int(label) for label in self.task.datasets["train"].select(numbers)["label"]}
        if not classes:
            return dataset
        return select(dataset, [i for i, label in enumerate(dataset["label"]) if int(label) not in classes])


def measure(model: Any, requests: Requests, count: int) -> dict[str, Any]:
    """Accuracy in % and mean loss on the samples of each of the first requests, and on retain and test samples."""
    task = requests.task
    named = {f"forget {n + 1}": requests.samples(requests.forgotten[n]) for n in range(count)}
    named["retain"] = requests.samples(requests.left[count - 1])
    named["test"] = in_memory(requests.without_classes(task.datasets["test"], count))
    row: dict[str, Any] = {"accuracy": {}, "loss": {}}
    for name, dataset in named.items():
        statistics = statistics_of(model, dataset, data_collator=readable_collator(model, task.processor))
        row["accuracy"][name] = 100 * float(statistics.correct.double().nanmean())
        row["loss"][name] = float(statistics.losses.double().mean())
    return row


def forget_in_turn(
    original: Any, task: Task, requests: Requests, config: Comparison, method: str
) -> Iterator[dict[str, Any]]:
    """Forget one request after the other; a row after each."""
    trainer: UnlearningTrainer | None = None
    epochs = task.training.get("num_train_epochs")
    for number, forget in enumerate(config.requests):
        expression = config.forget_expression(forget, task.seed)
        target = task.target(expression, {})
        unseen_ds = target.pop("unseen_ds", None)
        if unseen_ds is not None:
            unseen_ds = in_memory(requests.without_classes(unseen_ds, number))
        with TemporaryDirectory() as folder:
            args = UnlearningArguments(
                folder, seed=task.seed, report_to="none", disable_tqdm=True, logging_steps=10**6, save_strategy="no",
                dataloader_pin_memory=torch.cuda.is_available(), training_passes=epochs,
                request=requests.kinds[number], **{**config.budget, **target, **config.methods[method]},
            )  # fmt: skip
            forget_ds, retain_ds = (requests.samples(part[number]) for part in (requests.forgotten, requests.left))
            if trainer is None:
                trainer = UnlearningTrainer(
                    original, forget_ds, retain_ds, args, unseen_ds=unseen_ds, processing_class=task.processor,
                    base_model=task.base_model(),
                )  # fmt: skip
            else:
                trainer = trainer.continue_with(forget_ds, retain_ds, args, unseen_ds=unseen_ds)
            with suppress(ValueError):
                trainer.pop_callback(PrinterCallback)
            with measure_time() as durations:
                trainer.train()
            assert trainer.outcome is not None and trainer.outcome.cost is not None
            cost = {**trainer.outcome.cost.metrics(), **durations}
            yield {
                "request": forget, "forget": expression, "samples": len(forget_ds), "steps": trainer.state.global_step,
                "ending": trainer.outcome.ending, **{name: cost[name] for name in COSTS if name in cost},
                **measure(trainer.model, requests, number + 1),
            }  # fmt: skip


def trained(folder: Path, task: Task, samples: Any, seed: int, name: str) -> tuple[Any, dict[str, float]]:
    """A model that is trained once, and what that took."""
    path = folder / "models" / f"{name}-{task.seed}"
    if not path.exists():
        with measure_time() as durations:
            model = task.train(samples, seed)
        with replacing(path) as temporary:
            model.save_pretrained(temporary)
            (temporary / "training.json").write_text(json.dumps(durations))
    return load_model(str(path)).eval(), json.loads((path / "training.json").read_text())


def run_seed(config: Comparison, seed: int, folder: Path, bar: Any) -> None:
    """All methods and retrained models of a seed; each result is a file of its own."""
    task = config.load_task_class()(seed, **config.options)
    expressions = [config.forget_expression(name, seed) for name in config.requests]
    original, _ = trained(folder, task, in_memory(task.datasets["train"]), seed, "original")
    requests = Requests(task, expressions, head_of(original).kind)
    for number in range(1, config.retrained + 1):
        path = folder / "runs" / f"retrained-{number}-{seed}.json"
        if not path.exists():
            training_seed = seed + 1000 * number
            model, took = trained(
                folder, task, requests.samples(requests.left[-1]), training_seed, f"retrained-{number}"
            )
            write(path, {"model": "retrained", "seed": seed, **took, **measure(model, requests, len(expressions))})
        bar.update()
    for method in config.methods:
        path = folder / "runs" / f"{method}-{seed}.json"
        if not path.exists():
            model = load_model(str(folder / "models" / f"original-{seed}"))
            rows = []
            for row in forget_in_turn(model, task, requests, config, method):
                rows.append(row)
                bar.set_postfix_str(f"{method}, seed {seed}, request {len(rows)} of {len(expressions)}")
            write(path, {"model": method, "seed": seed, "settings": dict(config.methods[method]), "rows": rows})
        bar.update()


def write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


# ---- what comes out ----


def tables(config: Comparison, results: list[dict[str, Any]]) -> str:
    """A table a method and seed with a row after every request; then the last row beside retrained models."""
    names = [f"forget {n + 1}" for n in range(len(config.requests))]
    parts = []
    for result in results:
        if "rows" in result:
            lines = [f"### {result['model']}, seed {result['seed']}", "", table_row(
                ["after", "samples", "steps", "ending", "cost / retraining", *names, "retain", "test"]
            ), table_row(["---"] * (len(names) + 7))]  # fmt: skip
            for row in result["rows"]:
                accuracy = [shown(row["accuracy"].get(name)) for name in (*names, "retain", "test")]
                cost = f"{row['cost_of_retraining']:.3f}" if "cost_of_retraining" in row else "-"
                lines.append(table_row([row["request"], row["samples"], row["steps"], row["ending"], cost, *accuracy]))
            parts.append("\n".join(lines))
    return "\n\n".join([*parts, summary(config, results)]) + "\n"


def summary(config: Comparison, results: list[dict[str, Any]]) -> str:
    """After the last request: the largest distance to a retrained model's accuracy on any request, and on the rest.

    It is met where that distance is, and that on retain samples, within two points or what two retrained models differ
    by (on any request), whichever is larger.
    """
    columns = ["model", "seed", "forgotten: largest distance", "of two retrained", "retain", "of two retrained"]
    columns += ["test", "met", "cost / retraining: first", "last"]
    lines = ["### After the last request, beside a model retrained without all of them", ""]
    lines += [table_row(columns), table_row(["---"] * len(columns))]
    for seed in config.seeds:
        of_seed = [result for result in results if result["seed"] == seed]
        retrained = [result["accuracy"] for result in of_seed if result["model"] == "retrained"]
        if len(retrained) < 2:
            continue
        first, second = retrained[:2]
        noise = distances(second, first)
        for result in of_seed:
            if "rows" not in result:
                continue
            last, costs = result["rows"][-1]["accuracy"], [row.get("cost_of_retraining") for row in result["rows"]]
            distance = distances(last, first)
            met = all(distance[part] <= max(MARGIN, noise[part]) for part in ("forgotten", "retain"))
            numbers = [
                distance["forgotten"],
                noise["forgotten"],
                distance["retain"],
                noise["retain"],
                distance["test"],
            ]
            cost = ["-" if value is None else f"{value:.3f}" for value in (costs[0], costs[-1])]
            values = [result["model"], seed, *map(shown, numbers), "yes" if met else "no", *cost]
            lines.append(table_row(values))
    return "\n".join(lines)


def distances(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Of two models' accuracies on retain and test samples, and the largest on the samples of any request."""
    by_name = {name: abs(one[name] - other[name]) for name in one}
    return {**by_name, "forgotten": max(value for name, value in by_name.items() if name.startswith("forget "))}


def table_row(values: list[Any]) -> str:
    return f"| {' | '.join(map(str, values))} |"


def shown(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the configuration by default")
    arguments = parser.parse_args()
    quiet()
    config, folder = Comparison.from_yaml(arguments.config), arguments.output_dir
    seeds = arguments.seeds or config.seeds
    with tqdm(total=len(seeds) * (config.retrained + len(config.methods)), desc=config.name) as bar:
        for seed in seeds:
            run_seed(config, seed, folder, bar)
    results = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]
    write(folder / "results.json", {"name": config.name, "runs": results})
    text = tables(config, results)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
