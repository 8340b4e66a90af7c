"""The card that goes with a task adapter, as the hub reads it."""

from __future__ import annotations

from lowbit.adapter.info import FACTORS, AdapterInfo
from lowbit.checkpoint import THIS_REPOSITORY, front_matter, generation_example, score_table

ITS_BACKBONE = "ITS-BACKBONE"  # in a card: what pushing replaces by the backbone's name on the hub, if that is known


def adapter_card(info: AdapterInfo) -> str:
    """Markdown for the adapter's ``README.md``: task, backbone, scores, how to load it, and what it cannot do."""
    base = {} if info.backbone is None else {"base_model": info.backbone, "base_model_relation": "adapter"}
    use = "text-generation" if info.is_language_model else "text-classification"
    data = {"library_name": "lowbit", "tags": ["lowbit", "task-adapter"], "pipeline_tag": use, **base}
    backbone = info.backbone or ITS_BACKBONE
    trained = ", ".join(f"{count:,} in {group}" for group, count in info.trained.items() if count)
    scores = score_table(info.scores) if info.scores else "No evaluation set was given."
    return f"""{front_matter(**data)}
# Task adapter for {info.task}

What one task adds to a low-bit backbone of lowbit: {_parts(info)}, and the task head where there is one.

```python
{_example(info.is_language_model, backbone)}
```

- {_purpose(info)}
- Trained values: {trained or "not recorded"}
- Fingerprint of the backbone: `{info.fingerprint}`

## Scores

{scores}

## Limitations

- It fits the backbone with this fingerprint and no other; loading it on another one is an error.
- The scores are those of one training run, measured on the adapter as it is stored.
- It loads with lowbit only. What is said of the backbone's license, intended use and biases holds here too.
"""


def _example(is_language_model: bool, backbone: str) -> str:
    if is_language_model:
        return generation_example(backbone, THIS_REPOSITORY)
    return f"""import lowbit

model = lowbit.load("{backbone}", adapter="{THIS_REPOSITORY}")
print(list(lowbit.predict("{backbone}", ["some text"], adapter="{THIS_REPOSITORY}")))"""


def _parts(info: AdapterInfo) -> str:
    return "low-rank factors beside its linears" if info.format == FACTORS else "the values of its outliers"


def _purpose(info: AdapterInfo) -> str:
    if info.is_language_model:
        return "Causal language model, tuned on plain text"
    labels = "numbers (regression)" if info.label_names is None else ", ".join(f"`{n}`" for n in info.label_names)
    return f"Labels: {labels}"
