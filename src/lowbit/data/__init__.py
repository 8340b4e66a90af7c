"""Data: columns of text with labels, from GLUE, CSV, TSV and JSON lines, and text for language models."""

from lowbit.data.encode import encode
from lowbit.data.examples import Examples
from lowbit.data.glue import GLUE, Task, get_task, load_glue
from lowbit.data.intents import load_intents
from lowbit.data.table import load_table
from lowbit.data.taskdata import TaskData, glue_data, intent_data, table_data
from lowbit.data.text import read_text
from lowbit.data.textdata import TextData, text_data
from lowbit.data.tokens import TextSize, Window, special_tokens, text_size, token_blocks, token_windows

__all__ = [
    "GLUE",
    "Examples",
    "Task",
    "TaskData",
    "TextData",
    "TextSize",
    "Window",
    "encode",
    "get_task",
    "glue_data",
    "intent_data",
    "load_glue",
    "load_intents",
    "load_table",
    "read_text",
    "special_tokens",
    "table_data",
    "text_data",
    "text_size",
    "token_blocks",
    "token_windows",
]
