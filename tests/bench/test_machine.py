import os

import pytest

from lowbit.bench.machine import ForeignLoad, busy_ticks, process_ticks, resident_bytes

STAT = "cpu  {user} 20 30 1000 50 6 7 8 40 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 1\n"


def test_busy_ticks_leave_out_idle_waiting_and_guests():
    assert busy_ticks(STAT.format(user=100)) == 100 + 20 + 30 + 6 + 7 + 8


def test_process_ticks_of_a_name_with_brackets():
    fields = ["S", *map(str, range(4, 14)), "70", "9", *map(str, range(16, 30))]
    assert process_ticks("42 (a) b (c) " + " ".join(fields)) == 79


@pytest.mark.parametrize(("foreign_ticks", "own_ticks"), [(0, 50), (30, 50), (30, 0)])
def test_own_processes_are_not_foreign(tmp_path, monkeypatch, foreign_ticks, own_ticks):
    now = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))

    def write(user, own):
        (tmp_path / "stat").write_text(STAT.format(user=user))
        (tmp_path / "7").mkdir(exist_ok=True)
        (tmp_path / "7" / "stat").write_text(f"7 (x) S {'0 ' * 10}{own} 0 0")

    write(100, 5)
    with ForeignLoad([7], tmp_path) as load:
        write(100 + foreign_ticks + own_ticks, 5 + own_ticks)
    assert load.cores == pytest.approx(foreign_ticks / os.sysconf("SC_CLK_TCK") / 2)


def test_nothing_is_known_without_proc(tmp_path):
    with ForeignLoad([7], tmp_path) as load:
        pass
    assert load.cores is None


def test_resident_memory_grows_by_what_is_touched():
    before = resident_bytes()
    if before is None:
        pytest.skip("no /proc here")
    block = bytearray(os.urandom(2**20) * 32)
    assert 30 * 2**20 < resident_bytes() - before < 80 * 2**20
    del block
