"""The OpenVINO layout: a loaded model compiled to 8-bit products from its own codes."""

from lowbit.runtime.openvino.build import prepare_openvino
from lowbit.runtime.openvino.files import load_openvino, save_openvino

__all__ = ["load_openvino", "prepare_openvino", "save_openvino"]
