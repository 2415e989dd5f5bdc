"""The ids of the jobs in the home of `drained_home.py`, by the state they rest in."""

COMPLETED = ["ok", "quiet", "raw", "once", "chatty"]
DEAD = ["boom", "twice", "killed", "stubborn", "picky", "gone"]
FAILED = ["flaky"]
PENDING = ["waiting", "later"]
IN_ORDER = [
    *["ok", "quiet", "raw", "boom", "twice", "killed", "stubborn", "picky", "gone", "once", "chatty"],
    *FAILED,
    *PENDING,
]
