"""Batch ids of the modes, and the checksum of a manifest."""

import subprocess
from datetime import UTC, datetime

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.batches import LookMode, eng5_batch_id, manifest_checksum

NOW = datetime(2026, 11, 21, 3, 0, 7, tzinfo=UTC)


def test_a_batch_is_named_after_its_mode_and_the_utc_time_unless_an_id_is_stated():
    assert eng5_batch_id(None, RunMode.ANCHOR_ALIGN_TEST, NOW) == "eng5-anchor-align-test-20261121-030007"
    assert eng5_batch_id("mine", LookMode.PLAN, NOW) == "mine"


@pytest.mark.parametrize(("stated", "said"), [("", "is empty"), ("   ", "is empty"), ("eng5-", "ends with a hyphen")])
def test_a_batch_id_with_nothing_where_something_should_be_is_an_error_that_suspects_the_shell(stated, said):
    with pytest.raises(InputError, match=rf"--batch-id {said}.*shell variable"):
        eng5_batch_id(stated, LookMode.PLAN, NOW)


def test_an_id_that_may_not_name_a_batch_is_refused():
    with pytest.raises(InputError, match="not usable"):
        eng5_batch_id("../up", LookMode.PLAN, NOW)


def test_a_manifests_checksum_is_what_sha256sum_makes_of_the_files_checksums(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"the file {name}")
    command = "sha256sum a.txt b.txt | tee sums | sha256sum"
    shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    sums = dict(reversed(line.split()) for line in (tmp_path / "sums").read_text().splitlines())
    assert manifest_checksum(dict(reversed(sums.items()))) == shown.split()[0]
