"""``lowbit.tune`` and ``zeroshot`` on the processor, in processes of their own that can be killed and work together."""

import functools
import importlib
import multiprocessing
import os
import signal
import socket

# A server that has imported everything once and has run nothing: its forks are clean and start at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lowbit.tuning.trainer", "transformers.models.bert.modeling_bert"])


def run_apart(verb, *arguments, processes=1, kill=None, **settings):
    """What the public function ``verb`` gives in each process, as ``to_dict()`` of it; None where it was killed.

    The steps that it ``reported`` are in there, too.

    ``kill`` is (``module:attribute``, count): each process ends itself with SIGKILL instead of calling that function
    for the count-th time.
    """
    port, jobs, results = free_port(), [], []
    for rank in range(processes):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        job = CONTEXT.Process(target=_work, args=(rank, processes, port, kill, verb, arguments, settings, sender))
        job.start()
        sender.close()
        jobs.append((job, receiver))
    for job, receiver in jobs:
        try:
            results.append(receiver.recv())
        except EOFError:
            results.append(None)
        job.join()
    # One of two may find the other gone before it comes to its own end.
    codes = {job.exitcode for job, _ in jobs}
    assert codes == {0} if kill is None else -signal.SIGKILL in codes and 0 not in codes
    return results


tune_apart = functools.partial(run_apart, "tune")
zeroshot_apart = functools.partial(run_apart, "zeroshot")


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _work(rank, processes, port, kill, verb, arguments, settings, sender):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    import torch

    import lowbit

    def progress(done, total, what):
        if what != "rows":
            reported.append((done, total))

    torch.set_num_threads(1)
    if kill is not None:
        _arm(*kill)
    reported = []
    result = getattr(lowbit, verb)(*arguments, progress=progress, **settings)
    sender.send(result.to_dict() | {"reported": reported})


def _arm(target, count):
    module, _, path = target.partition(":")
    owner, _, name = path.rpartition(".")
    place = functools.reduce(getattr, filter(None, [owner]), importlib.import_module(module))
    original, calls = getattr(place, name), []

    def deadly(*arguments, **settings):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **settings)

    setattr(place, name, deadly)
