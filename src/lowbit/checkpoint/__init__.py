"""Checkpoints: reading float ones, writing and checking low-bit ones."""

from lowbit.checkpoint.backbone import write_description, write_weights
from lowbit.checkpoint.card import (
    CARD_FILE,
    THIS_REPOSITORY,
    backbone_card,
    front_matter,
    generation_example,
    score_table,
)
from lowbit.checkpoint.directory import (
    SIDE_FILES,
    WEIGHTS_FILE,
    atomic_directory,
    checkpoint_folder,
    copy_side_files,
    hub_id,
    local_folder,
    refuse_existing,
    weight_files,
)
from lowbit.checkpoint.floatweights import FloatWeights, open_float_weights
from lowbit.checkpoint.measure import Size, measure
from lowbit.checkpoint.quiet import quiet_transformers
from lowbit.checkpoint.source import SourceCheckpoint, meta_model, open_source, own_class, read_config
from lowbit.checkpoint.tensorfile import (
    Entries,
    TensorEntry,
    TensorWriter,
    check_bytes,
    manifest_metadata,
    read_manifest,
    tensor_entry,
)
from lowbit.checkpoint.tokenizer import load_tokenizer
from lowbit.checkpoint.verify import (
    Verified,
    check_input_scales,
    fingerprint,
    is_backbone,
    read_quantization_config,
    stored_modules,
    verify_backbone,
)
from lowbit.checkpoint.weightfile import check_readable

__all__ = [
    "CARD_FILE",
    "SIDE_FILES",
    "THIS_REPOSITORY",
    "WEIGHTS_FILE",
    "Entries",
    "FloatWeights",
    "Size",
    "SourceCheckpoint",
    "TensorEntry",
    "TensorWriter",
    "Verified",
    "atomic_directory",
    "backbone_card",
    "check_bytes",
    "check_input_scales",
    "check_readable",
    "checkpoint_folder",
    "copy_side_files",
    "fingerprint",
    "front_matter",
    "generation_example",
    "hub_id",
    "is_backbone",
    "load_tokenizer",
    "local_folder",
    "manifest_metadata",
    "measure",
    "meta_model",
    "open_float_weights",
    "open_source",
    "own_class",
    "quiet_transformers",
    "read_config",
    "read_manifest",
    "read_quantization_config",
    "refuse_existing",
    "score_table",
    "stored_modules",
    "tensor_entry",
    "verify_backbone",
    "weight_files",
    "write_description",
    "write_weights",
]
