# SPDX-License-Identifier: Apache-2.0
"""At a site: starts job processes as the engine does, but a process that was killed does not end the job of the other sites.

The engine reports a failed job process to its server, which then ends the whole job, at every site. Here an end is an end; the
coordinator notices that the site does not answer, and gives it another process. Imported by the engine's processes only.
"""

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher


class Handle(JobHandleSpec):  # type: ignore[misc]
    """A job process; how it ended is not told."""

    def __init__(self, inner: JobHandleSpec) -> None:
        super().__init__()
        self._inner = inner

    def terminate(self) -> Any:
        """End it."""
        return self._inner.terminate()

    def poll(self) -> Any:
        """UNKNOWN while it runs, SUCCESS afterwards."""
        found = self._inner.poll()
        return found if found == JobReturnCode.UNKNOWN else JobReturnCode.SUCCESS

    def wait(self) -> Any:
        """Wait for its end."""
        return self._inner.wait()


class Launcher(ClientProcessJobLauncher):  # type: ignore[misc]
    """Like its base, with another handle."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process of a job."""
        return Handle(super().launch_job(job_meta, fl_ctx))
