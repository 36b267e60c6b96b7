"""The studio without its page: what the page's buttons and the API's endpoints call."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch

from ..acceleration.choice import choose_speed
from ..broadcast import ScheduleTable
from ..errors import PabError
from . import pictures
from .history import Entry, History
from .ideas import measured_prompts
from .jobs import Job, JobQueue, Report, View
from .making import Maker
from .measuring import CLIPS, Measurer, measured_policies
from .models import Offered, offered_models, predicted_saving
from .rendering import make_renderer
from .request import Clip, ClipRequest, FieldErrors, check_request
from .settings import StudioSettings


class Studio:
    """One running studio. PabError from the constructor: a folder that cannot be written, or no model at hand."""

    def __init__(self, settings: StudioSettings):
        choose_speed(settings.speed, torch.device("cpu"), torch.float32)  # is there one of that name?
        settings.make_folders()
        self.settings = settings
        self.offered = offered_models(settings.models)
        self.history = History(settings.database, settings.videos)
        self.renderer = make_renderer(settings)
        make, measure = Maker(settings, self.history, self.renderer), Measurer(settings, self.renderer)

        def work(job: Job, report: Report) -> None:
            (measure if job.view.measures else make)(job, report)

        self.queue = JobQueue(work, settings.limits, traceback.print_exception, self.renderer.at_once)
        self.sweep_pictures()

    def close(self) -> None:
        self.queue.close()
        self.renderer.close()

    # ------------------------------------------------------------------------------------------------------ requests

    def check(self, request: ClipRequest) -> Clip:
        """PabError of class FieldErrors that says all that is wrong."""
        return check_request(request, self.offered, self.settings.limits, self.find_picture)

    def submit(self, request: ClipRequest, owner: str, visitor: str, *, against: str | None = None) -> str:
        """Puts a video into the queue, or two of one seed: `against` names the policy of the first. -> the job's id."""
        self.settings.check_space()
        clip = self.check(request)
        if against is None:
            return self.queue.submit(owner, visitor, [clip])
        plain = {"spatial": None, "temporal": None, "cross": None, "mlp": None, "window": ""}
        other = self.check(replace(clip.request, policy=against, **plain))
        if other.policy == clip.policy:
            raise PabError("Both sides have the same settings: choose another policy for one of them.")
        return self.queue.submit(owner, visitor, [other, clip])

    def measure(self, model: str, owner: str, visitor: str) -> str:
        """Puts a measurement of speed against quality into the queue; its chart is Explore's. -> the job's id."""
        self.settings.check_space()
        offered = self.offered.get(model)
        if offered is None:
            raise FieldErrors({"model": f"There is no model named '{model}' here."})
        clips = [
            self.check(ClipRequest(prompt=prompt, model=model, policy=policy, seed=str(seed)))
            for seed, prompt in enumerate(measured_prompts(offered.spec, CLIPS), start=1)
            for policy in measured_policies(offered)
        ]
        return self.queue.submit(owner, visitor, clips, measures=model)

    def saving(self, clip: Clip) -> float:
        """Share of the denoising's arithmetic that is left out, 0..1."""
        return predicted_saving(clip.offered, clip.table, clip.num_frames, clip.height, clip.width)

    def table_saving(self, offered: Offered, table: ScheduleTable) -> float:
        """As `saving`, at the model's own size."""
        spec = offered.spec
        return predicted_saving(offered, table, spec.num_frames, spec.height, spec.width)

    # ------------------------------------------------------------------------------------------------------ pictures

    def keep_picture(self, upload: str | Path) -> str:
        """-> its name. Old ones that nothing is left of make room for it."""
        self.sweep_pictures()
        self.settings.check_space()
        return pictures.keep_picture(upload, self.settings.uploads, self.settings.limits)

    def find_picture(self, name: str) -> Path:
        return pictures.find_picture(name, self.settings.uploads)

    def sweep_pictures(self) -> None:
        pictures.sweep_pictures(self.settings.uploads, self.history.pictures())

    # ------------------------------------------------------------------------------------------------------- results

    def delete(self, video_id: str, owner: str) -> None:
        """A video, and in time the pictures that only it was made from."""
        self.history.delete(video_id, owner)
        self.sweep_pictures()

    def entries(self, view: View, owner: str) -> list[Entry]:
        """The videos of a job that has ended; those deleted since are left out."""
        found = []
        for video_id in view.results:
            try:
                found.append(self.history.get(video_id, owner))
            except PabError:
                continue
        return found

    def url(self, path: Path) -> str:
        """Where the page finds a file of the folder of videos."""
        return f"{self.settings.root_path.rstrip('/')}/gradio_api/file={quote(str(path))}"
