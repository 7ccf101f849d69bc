"""The method catalogue: every entry of `METHODS`, from the class itself."""

from __future__ import annotations

import dataclasses
import inspect
import re

from hf_unlearn.methods import METHODS, Method

HEADS = {
    "classification": ("single_label",),
    "multi-label, regression": ("multi_label", "regression"),
    "tokens, question answering": ("token", "question_answering"),
    "multiple choice, images among captions, segmentation": (
        "multiple_choice",
        "contrastive",
        "segmentation",
    ),
    "language models": ("causal_lm", "seq2seq_lm"),
    "masked language models": ("masked_lm",),
    "CTC": ("ctc",),
    "own loss": ("custom",),
}
ARXIV = re.compile(r"arXiv (\d+\.\d+)")
FLAGS = {
    "is_gradient_surgery": "combines gradients (gradient surgery)",
    "converges_at_target": "ends by itself",
    "raises_forget_loss": "raises the forget loss",
    "lora_by_default": "trains a LoRA adapter by default",
    "needs_original_model": "compares with the original model",
    "needs_full_weights": "needs all weights: no added adapter, no sharded weights",
    "needs_alternative_ds": "needs `alternative_ds`",
}


def heads() -> str:
    """Methods by the kinds of head that they work on; those that work on the same ones share a line."""
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name, method in METHODS.items():
        works = tuple(
            not method.head_kinds or set(kinds) <= set(method.head_kinds)
            for kinds in HEADS.values()
        )
        groups.setdefault(works, []).append(f"[`{name}`](#{anchor(name)})")
    lines = [f"| method | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for works, names in sorted(groups.items(), key=lambda group: -sum(group[0])):
        lines.append(
            f"| {', '.join(names)} | {' | '.join('yes' if supported else '-' for supported in works)} |"
        )
    return "\n".join(lines)


def anchor(name: str) -> str:
    """The id of a method's section."""
    return f"method-{name.replace('_', '-')}"


def methods() -> str:
    """All methods, as Markdown."""
    return "\n\n".join(section(method) for method in METHODS.values())


def section(method: type[Method]) -> str:
    """One method."""
    facts = {
        "name": f'`UnlearningArguments(method="{method.name}")`',
        "paper": linked(method.paper),
        "heads": ", ".join(f"`{kind}`" for kind in method.head_kinds) or "all",
        "properties": "; ".join(properties(method)) or "none",
        "defaults": defaults(method),
        "class": f"{{py:obj}}`{method.__module__}.{method.__qualname__}`",
    }
    parts = [
        f"({anchor(method.name)})=\n### {method.title}",
        inspect.getdoc(method) or "",
        "\n".join(f"- **{name}**: {text}" for name, text in facts.items()),
        hyperparameters(method),
        bibtex(method),
    ]
    return "\n\n".join(part for part in parts if part)


def linked(paper: str) -> str:
    """A paper, with a link to it on arXiv."""
    return (
        ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
        if paper != "-"
        else "none"
    )


def properties(method: type[Method]) -> list[str]:
    """What the method's flags say, in words."""
    texts = [text for flag, text in FLAGS.items() if getattr(method, flag)]
    if not method.is_iterative:
        return [*texts, "takes no optimizer steps"]
    return (
        texts
        if method.converges_at_target or method.is_gradient_surgery
        else [*texts, "is stopped at the target"]
    )


def defaults(method: type[Method]) -> str:
    """Learning rate, retain weight and length of a run, where nothing is given."""
    if not method.is_iterative:
        return "none"
    values = ", ".join(
        f"`{name}={value!r}`" for name, value in method.default_arguments.items()
    )
    if "lr_scheduler_type" in method.default_arguments:
        return f"as published: {values}; retain weight and length as above"
    length = (
        "until the target is reached"
        if method.raises_forget_loss
        else f"{method.passes} passes over the larger dataset"
    )
    return (
        f"learning rate {method.learning_rate:g} for all weights, calibrated in the first steps where there is a "
        f"target; retain weight {method.default_retain_weight:.4g}; {length}"
        + (f"; {values}" if values else "")
    )


def hyperparameters(method: type[Method]) -> str:
    """The method's own settings, `method_kwargs`, as a table."""
    fields = dataclasses.fields(method.hyperparameters)
    if not fields:
        return ""
    lines = ["| `method_kwargs` | default | meaning |", "|---|---|---|"]
    for field in fields:
        lines.append(
            f"| `{field.name}` | `{field.default}` | {field.metadata['help']} |"
        )
    return "\n".join(lines)


def bibtex(method: type[Method]) -> str:
    """The paper's entry, a line for each of its fields.

    Raises:
        ValueError: the method names a paper and has no entry.
    """
    if not method.bibtex:
        if method.paper != "-":
            raise ValueError(
                f"{method.__name__}.bibtex: is missing; give the entry of {method.paper}"
            )
        return ""
    lines: list[str] = []
    for line in map(str.strip, method.bibtex.strip().splitlines()):
        if re.match(r"@|\w+ = |\}$", line):
            lines.append(line if line[0] in "@}" else f"  {line}")
        else:  # a field goes on
            lines[-1] += f" {line}"
    entry = "\n".join(lines)
    return f":::{{dropdown}} BibTeX\n```bibtex\n{entry}\n```\n:::"
