from pathlib import Path

import pytest

from pgprune_lightning import policy
from pgprune_lightning.policy import MaskPolicy
from pgprune_lightning.reporting.run_options import POLICIES_WITH_OWN_ESTIMATOR, decisive_options
from pgprune_lightning.reporting.run_record import RunRecord, read_run
from tests.reporting.conftest import WriteRun


def record_with(folder: Path, name: str) -> RunRecord:
    record = read_run(folder, "run")
    record.config["model"]["policy"] = {"class_path": f"pgprune_lightning.policy.{name}"}
    return record


@pytest.mark.parametrize(("name", "decides"), [("FreeLogits", True), ("PGPEPolicy", False)])
def test_an_estimator_that_the_policy_replaces_is_not_shown(
    write_run: WriteRun, name: str, decides: bool
) -> None:
    names = [option for option, _ in decisive_options(record_with(write_run(), name))]
    assert ("estimator" in names) is decides


def test_the_report_knows_every_policy_with_an_estimator_of_its_own() -> None:
    policies = [getattr(policy, name) for name in policy.__all__]
    bringing = [
        kind.__name__
        for kind in policies
        if isinstance(kind, type)
        and issubclass(kind, MaskPolicy)
        and kind.own_estimator is not MaskPolicy.own_estimator
    ]
    assert tuple(bringing) == POLICIES_WITH_OWN_ESTIMATOR
