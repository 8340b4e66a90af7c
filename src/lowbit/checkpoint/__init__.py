"""Checkpoints: reading float ones, writing and checking low-bit ones."""

from lowbit.checkpoint.backbone import write_description, write_weights
from lowbit.checkpoint.directory import (
    WEIGHTS_FILE,
    atomic_directory,
    checkpoint_folder,
    copy_side_files,
    refuse_existing,
    weight_files,
)
from lowbit.checkpoint.measure import Size, measure
from lowbit.checkpoint.source import SourceCheckpoint, meta_model, open_source, read_config
from lowbit.checkpoint.tensorfile import (
    Entries,
    TensorEntry,
    TensorWriter,
    check_bytes,
    manifest_metadata,
    read_manifest,
    tensor_entry,
)
from lowbit.checkpoint.verify import Verified, fingerprint, read_quantization_config, stored_modules, verify_backbone

__all__ = [
    "WEIGHTS_FILE",
    "Entries",
    "Size",
    "SourceCheckpoint",
    "TensorEntry",
    "TensorWriter",
    "Verified",
    "atomic_directory",
    "check_bytes",
    "checkpoint_folder",
    "copy_side_files",
    "fingerprint",
    "manifest_metadata",
    "measure",
    "meta_model",
    "open_source",
    "read_config",
    "read_manifest",
    "read_quantization_config",
    "refuse_existing",
    "stored_modules",
    "tensor_entry",
    "verify_backbone",
    "weight_files",
    "write_description",
    "write_weights",
]
