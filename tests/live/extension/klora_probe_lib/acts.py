"""What others may do to a job while it is sampling: another job, another LoRA's weight, a request that unloads."""

import base64
import io
import threading
import urllib.request

import networks

from modules import processing, shared


def change_multiplier(name, weight):
    """As extensions do that schedule LoRAs: the WebUI merges the layers anew at their next forward."""
    for network in networks.loaded_networks:
        if network.name == name:
            network.unet_multiplier = weight


def activate(name, weight):
    """A LoRA that the prompt does not name, from here on."""
    networks.load_networks([name], [0.0], [weight], [None])


def draw(fields):
    """A whole job of its own, without scripts.  Returns the image as the API gives it."""
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, do_not_save_samples=True, do_not_save_grid=True, **fields
    )
    out = io.BytesIO()
    processing.process_images(p).images[0].save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def in_a_thread(act, *args):
    """Done when it is done; what it raises is what it says."""
    said = []

    def run():
        try:
            said.append(act(*args))
        except Exception as error:  # noqa: BLE001  a test reads it
            said.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said[0]


def request(path):
    """From outside, as another program would, while the job waits for the answer."""
    url = f"http://127.0.0.1:{shared.cmd_opts.port}{path}"
    headers = {"Content-Type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, b"{}", headers), timeout=60) as answer:
        return answer.status


ACTS = {
    "multiplier": change_multiplier,
    "activate": activate,
    "job": draw,
    "job_in_a_thread": lambda fields: in_a_thread(draw, fields),
    "request": request,
}
