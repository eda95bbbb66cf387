"""Which judges can be named in a batch, and how a name becomes a judge.

The one place that knows the profiles. Not here: how any of them answers.
"""

from cj_pipeline.core.errors import InputError
from cj_pipeline.judges.protocol import Judge
from cj_pipeline.judges.simulated import SimulatedJudge, SimulatedProfile, load_profiles


def judge_names() -> list[str]:
    """The names `open_judge` knows, in alphabetical order."""
    return sorted(load_profiles())


def needs_quality(profile_name: str) -> bool:
    """Whether this judge answers from the essays' known qualities, so that every essay of its batch must have one.

    Raises:
        InputError: if no judge has this name.
    """
    _simulated_profile(profile_name)
    return True  # every judge in the catalogue is simulated


def open_judge(profile_name: str, *, seed: int, latency: bool = False) -> Judge:
    """The judge of this name, ready to answer; whoever opens it calls its `aclose`.

    Args:
        profile_name: one of `judge_names()`.
        seed: decides a simulated judge's draws.
        latency: whether a simulated judge waits as its profile says.

    Raises:
        InputError: if no judge has this name; the message lists the known ones.
    """
    return SimulatedJudge(_simulated_profile(profile_name), seed=seed, latency=latency)


def _simulated_profile(name: str) -> SimulatedProfile:
    profiles = load_profiles()
    if name not in profiles:
        raise InputError(f"no judge is called {name[:80]!r}; known: {', '.join(sorted(profiles))}")
    return profiles[name]
