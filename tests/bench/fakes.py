"""Peers that cost nothing, where a started process can import them, and workers that are no processes."""

import multiprocessing
import os
import threading

import numpy as np
import torch

from lowbit.bench.worker import PeerFailed, Worker, _serve


def load(folder, setting):
    assert (folder / "weights").read_text() == "abc"
    return lambda batch: batch["input_ids"][..., None].float() * torch.ones(4)


def write(source, folder, setting):
    print("written", flush=True)  # a process that dies flushes nothing
    (folder / "weights").write_text("abc")


def broken(*_):
    raise RuntimeError("no such kernel")


def die(*_):
    os._exit(3)


class ThreadWorker(Worker):
    """Serves in a thread: starting a process takes seconds."""

    def __init__(self, peer, inputs, log=None):
        self._pipe, theirs = multiprocessing.Pipe()
        threading.Thread(target=_serve, args=(peer, inputs, theirs), daemon=True).start()

    @property
    def pid(self):
        return os.getpid()

    def close(self):
        self._pipe.close()


class Taker:
    """Answers as a worker does; ``seconds`` are those of its turns, and an error takes their place."""

    def __init__(self, name, seconds, calls, first=0.5, output=None):
        self.pid = os.getpid()
        self._name, self._seconds, self._calls, self._first = name, iter(seconds), calls, first
        self._output = np.ones((1, 2, 3)) if output is None else output

    def ask(self, method, *arguments):
        self._calls.append((method, self._name))
        if method == "first":
            if isinstance(self._first, str):
                raise PeerFailed(self._first)
            return self._first, [self._output]
        value = next(self._seconds)
        if isinstance(value, str):
            raise PeerFailed(value)
        return value
