"""The engine's job processes: what starts them, and what they leave alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.fuel.utils.class_utils import instantiate_class

from appliance.federation import policy

DROPS_TENSORS = """
import sys
from appliance.federation import jobhost
from nvflare.apis.impl.wf_comm_server import WFCommServer
jobhost._job("server")
WFCommServer._cleanup_inflight_tensor_downloads(None, None)
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("role", ["site", "server"])
def test_the_engine_starts_our_program_for_a_job_with_its_own_options(role: str) -> None:
    path = {"site": policy.SITE_JOBS_CLASS, "server": policy.SERVER_JOBS_CLASS}[role]
    launcher, context = instantiate_class(path, {}), FLContext()
    options = {
        JobProcessArgs.EXE_MODULE: ("-m", "the.engine"),
        JobProcessArgs.JOB_ID: ("-n", "job-1"),
    }
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, options, private=True, sticky=False)

    words = launcher.get_command({}, context).split()

    assert words == [sys.executable, "-m", "appliance.federation.jobhost", role, "-n", "job-1"]


def test_the_end_of_a_job_does_not_load_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPS_TENSORS], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["False"]
