"""The folder of a run on every worker of a cluster, filled with files from the client. This module needs Dask."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from distributed import WorkerPlugin

from u2export.benchmarks.cluster.on_models import MODELS
from u2export.benchmarks.cluster.on_worker import end_processes, folder_in


class Depot(WorkerPlugin):  # type: ignore[misc]
    """Writes files into a folder of a run on every worker, also on workers that come later.

    Dask sends the plugin as it sends tasks. When it is taken away, it removes the folder. The plugin of the run's own
    folder, which has no name, also ends the processes and closes the models.

    Args:
        run: name of the run.
        folder: name of the folder below that of the run.
        files: the contents of the files by their names relative to that folder.
    """

    def __init__(self, run: str, folder: str, files: Mapping[str, bytes]) -> None:
        self.run, self.folder, self.files = run, folder, dict(files)

    def setup(self, worker: Any) -> None:
        """Write the files."""
        home = folder_in(worker.local_directory, self.run) / self.folder
        for name, content in self.files.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def teardown(self, worker: Any) -> None:
        """Remove the folder."""
        if not self.folder:
            end_processes()
            MODELS.close()
        shutil.rmtree(folder_in(worker.local_directory, self.run) / self.folder, ignore_errors=True)
