"""The model card that goes with a backbone."""

from __future__ import annotations

from collections import Counter

from lowbit.plan import Plan


def backbone_card(plan: Plan, source: str) -> str:
    """Markdown for ``README.md``: what it is, how to load it, what was quantized and what was not."""
    schemes = Counter((str(entry.scheme), entry.kind) for entry in plan.quantized)
    skipped = Counter(entry.reason for entry in plan.entries if entry.scheme is None)
    lines = [f"- {count} x {kind}: `{scheme}`" for (scheme, kind), count in schemes.items()]
    lines += [f"- note: {note}" for note in plan.notes]
    lines += [f"- {count} modules in float: {reason}" for reason, count in skipped.items()]
    return f"""---
library_name: transformers
tags:
- lowbit
- quantized
base_model: {source}
---
# {source}, quantized with lowbit

A low-bit `{plan.model_class}`, quantized without data: {plan.effective_bits:.2f}
effective bits per weight of the transformer blocks, {plan.model_bits:.2f} bits per parameter over the whole model.

```python
import lowbit  # registers the format; without this line loading stops with a size mismatch
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("PATH")
```

{chr(10).join(lines)}

`plan.json` lists every module. `lowbit verify PATH` checks every byte.
"""
