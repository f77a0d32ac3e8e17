"""Cases in the place of some of tests/bench's, for the benchmark's own test."""
import signal, subprocess, time

from measure import point, report


def case_late10k(work):
    """Gives all that is asked of it"""
    report("late10k", "continuous aggregate / plain COPY", "s", 10.0, 4.0)
    point("the curve", "ours", 10, "rows", 1.5, "s")


def case_loss(work):
    """Gives the first of two figures, and fails"""
    report("loss", "rank 64, unobserved 0.3, exponent 1.0: ours / float64", "loss", 1.0005, 1.0)
    raise KeyError("of any kind")


def case_hop(work):
    """Gives nothing"""


def case_scatter(work):
    """Takes too long, and leaves something running"""
    subprocess.Popen(["sleep", "86399"], start_new_session=True)
    signal.alarm(1)
    time.sleep(600)


def case_files(work):
    """Is interrupted while something runs"""
    subprocess.Popen(["setsid", "--fork", "sleep", "86398"])
    (work / "started").touch()
    print("# it runs", flush=True)
    time.sleep(600)
