"""A real WebUI on this machine: start it with its own folders, ask it, stop it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .jobs import Model

CONFIG = {
    "show_progress_type": "Approx cheap",  # the other previews download a model
    "samples_save": False,
    "grid_save": False,
    "lora_add_hashes_to_infotext": True,
    "lora_functional": False,
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the extension is a link to the repository: leave no bytecode there
    "OMP_NUM_THREADS": "1",  # with more, images are not reproducible
}
BOOT_SECONDS = 300
# a proxy named in the environment is no way to this machine
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict | list | None
    text: str


@dataclass(frozen=True)
class Result:
    images: list[np.ndarray]
    info: dict

    @property
    def image(self) -> np.ndarray:
        return self.images[0]

    @property
    def infotext(self) -> str:
        return self.info["infotexts"][0]

    @property
    def said(self) -> str:
        """Everything the host tells the user beside the picture."""
        return json.dumps([self.info.get("comments"), self.info["infotexts"], self.info["extra_generation_params"]])


class Refused(AssertionError):
    """The host answered a job with an error."""


class Host:
    """One installed WebUI. The kinds say how it is started, and which models are made for it."""

    prefix: str
    checkpoints: str
    loras: str
    sd15: Model
    sdxl: Model
    sd15_other: str  # a checkpoint of the same architecture
    further: tuple[Model, ...] = ()  # of architectures that not every kind has
    hires: dict = {}  # what a job with hires fix must say here
    config: dict = {}
    sizes: dict[str, Path] = {}  # an extension by which it loads tiny models it would not load by itself

    def __init__(self, folder: Path, webui: Path, python: Path, models: Path, extensions: dict[str, Path]):
        self.folder, self.webui, self.python, self.models_folder = folder, webui, python, models
        self.ckpt, self.lora = folder / "ckpt", folder / "lora"
        self.log = folder / "host.log"
        self.process: subprocess.Popen | None = None
        self.checkpoint: str | None = None
        self.stored = "Automatic"  # how its denoiser's weights are kept
        self.known: dict[str, np.ndarray] = {}
        self.environment: dict[str, str] = {}  # what an extension beside ours asks for
        self.api = True  # whether it is started with --api
        self.user = ""  # user:password, with which --api-auth guards it
        self.login = ""  # user:password, which the page asks for
        self.data = folder / "data"
        (self.data / "extensions").mkdir(parents=True)
        (self.data / "config.json").write_text(json.dumps(CONFIG | self.config))
        for name, source in extensions.items():
            (self.data / "extensions" / name).symlink_to(source, target_is_directory=True)

    @property
    def models(self) -> dict[str, Model]:
        return {model.name: model for model in (self.sd15, self.sdxl)}

    def flags(self, checkpoint: str) -> list[str]:
        raise NotImplementedError

    def write_other(self, path: Path, weights: dict) -> None:
        raise NotImplementedError

    def add_loras(self) -> None:
        """Files that the maker did not make."""

    def start(self, checkpoint: str) -> None:
        self.port = free_port()
        command = [str(self.python), "launch.py", "--port", str(self.port), "--data-dir", str(self.data)]
        command += ["--ui-settings-file", str(self.data / "config.json")]
        command += ["--ui-config-file", str(self.data / "ui-config.json")]
        command += [flag for flag in self.flags(checkpoint) if self.api or flag != "--api"]
        command += ["--api-auth", self.user] if self.user else []
        command += ["--gradio-auth", self.login] if self.login else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.webui, env=self.variables(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.checkpoint = checkpoint
        self.wait(starts=1)

    def variables(self) -> dict[str, str]:
        """The environment that it runs in."""
        own = {k: v for k, v in os.environ.items() if k not in ("COMMANDLINE_ARGS", "PYTHONPATH")}
        return own | ENVIRONMENT | self.environment

    def wait(self, starts: int) -> None:
        """Until the log tells of so many starts: the API answers earlier, without the scripts' default arguments."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the host ended with code {self.process.returncode}:\n{self.log_tail()}")
            if self.log_text().count("Startup time") >= starts and self.answers():
                return
            time.sleep(0.25)
        raise RuntimeError(f"the host did not start within {BOOT_SECONDS} s:\n{self.log_tail()}")

    def answers(self) -> bool:
        try:
            return self.ask("/sdapi/v1/samplers").status == (200 if self.api else 404)
        except OSError:
            return False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-40:])

    def ask(self, path: str, body: object = None, seconds: float = 300) -> Answer:
        if isinstance(body, dict) and body.get("enable_hr"):
            body = body | self.hires
        data = None if body is None else json.dumps(body).encode()
        url, headers = f"{self.address}{path}", {"Content-Type": "application/json"}
        if self.user:
            headers["Authorization"] = "Basic " + base64.b64encode(self.user.encode()).decode()
        request = urllib.request.Request(url, data, headers)
        try:
            with OPENER.open(request, timeout=seconds) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        text = raw.decode(errors="replace")
        try:
            return Answer(status, json.loads(text), text)
        except ValueError:
            return Answer(status, None, text)

    def must(self, path: str, body: object = None) -> dict | list | None:
        answer = self.ask(path, body)
        if answer.status != 200:
            raise Refused(f"{path} answered {answer.status}: {answer.text[:600]}\n{self.log_tail()}")
        return answer.body

    def use(self, checkpoint: str) -> None:
        if self.checkpoint != checkpoint:
            self.must("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint})
            self.checkpoint = checkpoint

    def run(self, job: dict) -> Result:
        answer = self.must("/sdapi/v1/img2img" if "init_images" in job else "/sdapi/v1/txt2img", job)
        return Result([decode(x) for x in answer["images"]], json.loads(answer["info"]))

    def image(self, job: dict) -> np.ndarray:
        return self.run(job).image

    def known_image(self, job: dict) -> np.ndarray:
        """Of a plain job: made once for each checkpoint and storage."""
        key = json.dumps([self.checkpoint, self.stored, job], sort_keys=True)
        if key not in self.known:
            self.known[key] = self.image(job)
        return self.known[key]

    def options(self, **options: object) -> None:
        self.must("/sdapi/v1/options", options)

    def refresh_loras(self) -> None:
        self.must("/sdapi/v1/refresh-loras", {})

    # the probe: see extension/scripts/klora_probe.py

    def state(self) -> dict:
        return self.must("/klora-probe/state")

    def weights(self) -> dict[str, str]:
        """A checksum of every weight of the model, the host's own merge undone."""
        return self.must("/klora-probe/weights")

    def memory(self) -> int:
        return self.must("/klora-probe/memory")["rss"]

    def reference(self) -> list[dict]:
        """What the brute-force reference did in the last job, one entry a sampling pass."""
        return self.must("/klora-probe/reference")

    def last_job(self) -> dict:
        """How often it called the denoiser ("calls"; 0 where it was told to fail), how many weights were "rewritten", and
        what an act within it has "said"."""
        return self.must("/klora-probe/job")

    def arm(self, **fault: int) -> None:
        """`fail`, `interrupt`, `skip` or `rewrite` the next job's model at the call with this number."""
        self.must("/klora-probe/arm", fault)

    def arm_act(self, at: int, act: str, *arguments: object) -> None:
        """Something happens within the next job, before its call with this number: see extension/klora_probe_lib/acts.py."""
        self.must("/klora-probe/arm", {"at": at, "act": act, "arguments": list(arguments)})

    def reload_ui(self) -> None:
        starts = self.log_text().count("Startup time")
        self.must("/klora-probe/restart", {})
        self.wait(starts + 1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def decode(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def encode(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a - b).max())
