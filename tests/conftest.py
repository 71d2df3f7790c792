"""What every test shares: Hypothesis profiles, and the folder with kubectl, helm and the control plane on PATH."""

import os
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

# `dev` is what a plain pytest runs. `ci` looks longer and the same way on every machine. `soak` looks for long.
settings.register_profile("dev", deadline=None, max_examples=100)
slow_is_fine = [HealthCheck.too_slow]
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, suppress_health_check=slow_is_fine)
settings.register_profile("soak", deadline=None, max_examples=5000, phases=[Phase.generate, Phase.target, Phase.shrink])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

os.environ.setdefault("POOLFLEET_CACHE", str(Path.home() / ".cache" / "poolfleet"))
os.environ.setdefault("POOLFLEET_BIN", str(Path(os.environ["POOLFLEET_CACHE"]) / "kind" / "bin"))
os.environ["PATH"] = os.environ["POOLFLEET_BIN"] + os.pathsep + os.environ.get("PATH", "")
# nothing that a test starts may talk to a cluster of the user's own by accident
os.environ["KUBECONFIG"] = str(Path(__file__).parents[1] / ".cluster" / "kubeconfig")
